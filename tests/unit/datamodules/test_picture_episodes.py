"""Episodes of pictures beside those of phantoms, and pictures to validate on."""

import numpy as np
import pytest
import torch

from datamodules import PretrainDataModule
from datamodules.episodes import EpisodeMix, EpisodeSettings
from datamodules.pretraining import NewTypeEpisodes, picture_volume
from datamodules.transforms import Augmentation
from mois.geometry import SliceGrid
from mois.records import Episode
from mois.testing import check_datamodule

SETTINGS = EpisodeSettings(64, 2, 3, EpisodeMix(1.0, 0.0, 0.15), Augmentation())


def episodes(pictures: float, **changes) -> NewTypeEpisodes:
    return NewTypeEpisodes(SETTINGS, slices=5, piece_px=112, lesions_per_type=(2, 3), pictures=pictures, **changes)


def same(one: Episode, other: Episode) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_episode_of_a_picture_is_always_the_same() -> None:
    assert same(episodes(1.0)[0, 1], episodes(1.0)[0, 1])
    assert not same(episodes(1.0)[0, 1], episodes(1.0)[0, 2])
    assert not same(episodes(1.0)[0, 1], episodes(1.0)[1, 1])
    assert not same(episodes(1.0)[0, 1], episodes(1.0, seed=1)[0, 1])


def test_pictures_take_their_share_and_leave_the_other_episodes_as_they_were() -> None:
    phantoms, half, pictures = episodes(0.0), episodes(0.5), episodes(1.0)
    of_phantoms = []
    for index in range(12):
        mixed = half[0, index]
        of_phantoms.append(same(mixed, phantoms[0, index]))
        assert of_phantoms[-1] != same(mixed, pictures[0, index])
    assert 3 <= sum(of_phantoms) <= 9


def test_exemplars_and_targets_are_of_lesions() -> None:
    for index in range(12):
        episode = episodes(1.0)[2, index]
        assert episode.support_valid[0].any()
        shown = episode.support_masks.flatten(2).any(2)
        assert bool((shown == episode.support_valid).all())
        assert float(episode.query_images.max()) <= 2
        assert not bool((episode.query_targets[0] & ~episode.query_lesions).any())


def test_the_datamodule_keeps_its_contract() -> None:
    small = {"val_subjects": 0, "val_pictures": 1, "patch_px": 64, "exemplars": 2, "num_workers": 0}
    check_datamodule(PretrainDataModule(2, 1, pictures=1.0, **small))


def test_pictures_to_validate_on_are_fixed_and_sliced_as_they_were_drawn() -> None:
    one, same_one, other = picture_volume(0, 0), picture_volume(0, 0), picture_volume(0, 1)
    assert torch.equal(one.image, same_one.image)
    assert not torch.equal(one.image, other.image)
    assert len(set(one.classes.values())) >= 2
    assert set(np.unique(one.lesions)) - {0} == set(one.classes)
    assert SliceGrid.of(one.shape, one.affine).stack_shape[0] == 12


def test_the_digest_of_the_data_says_whether_pictures_are_in_it() -> None:
    plain, none, some = (PretrainDataModule(), PretrainDataModule(pictures=0.0), PretrainDataModule(pictures=0.6))
    assert plain.fingerprint() == none.fingerprint() != some.fingerprint()


@pytest.mark.parametrize(("changes", "said"), [({"pictures": 1.2}, "is a share"), ({"val_pictures": -1}, "0 or more")])
def test_wrong_settings(changes, said) -> None:
    with pytest.raises(ValueError, match=said):
        PretrainDataModule(**changes)


def test_several_episodes_of_a_piece_share_the_piece_and_nothing_else() -> None:
    several = episodes(0.5, episodes_per_piece=2)
    first, second, third = (several[0, index] for index in (0, 1, 2))
    assert same(episodes(0.5, episodes_per_piece=2)[0, 1], second)  # whatever was drawn before it
    assert not same(first, second)
    assert not same(second, third)
    drawn: list[tuple[int, int]] = []
    draw = several._draw
    several._draw = lambda key: drawn.append(key) or draw(key)
    for index in range(6):
        several[1, index]
    assert drawn == [(1, 0), (1, 1), (1, 2)]
