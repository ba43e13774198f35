"""Episodes of the pretraining between those of one's own scans."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datamodules import NiftiDataModule
from datamodules.episodes import EpisodeDataset, EpisodeMix, EpisodeSettings
from datamodules.replay import WithReplay
from datamodules.transforms import Augmentation
from tests.support.episode_stacks import ONE_CLASS, PATCH, stack

SETTINGS = EpisodeSettings(PATCH, 2, 3, EpisodeMix(), Augmentation.none())


def with_replay(share: float, views: int = 0) -> WithReplay:
    own = EpisodeDataset([stack(ONE_CLASS)], SETTINGS, 1, None, views)
    return WithReplay(own, SETTINGS, share, seed=1, views=views)


def test_a_share_of_the_episodes_is_replayed_and_the_others_are_as_without() -> None:
    episodes = with_replay(0.25)
    assert sum(episodes.is_replayed(0, index) for index in range(4000)) == pytest.approx(1000, abs=80)
    own = next(index for index in range(99) if not episodes.is_replayed(2, index))
    replayed = next(index for index in range(99) if episodes.is_replayed(2, index))
    assert all(map(torch.equal, episodes[2, own], episodes.own[2, own]))
    drawn, again = episodes[2, replayed], with_replay(0.25)[2, replayed]
    assert all(map(torch.equal, drawn, again))
    assert not torch.equal(drawn.query_images, episodes.own[2, replayed].query_images)
    assert [part.shape for part in drawn] == [part.shape for part in episodes.own[2, replayed]]


def test_with_views_replayed_patches_come_again_too_and_chance_does_not() -> None:
    episodes = with_replay(1.0, views=2)
    first, third = episodes[0, 0], episodes[2, 0]
    assert all(map(torch.equal, first._replace(chance=third.chance), third))
    assert not torch.equal(first.chance, third.chance)


def test_a_share_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.init_args.replay=1.5 is a share of the episodes; choose 0 to 1"):
        NiftiDataModule(Path("scans"), replay=1.5)


def test_replayed_images_have_the_same_picture_in_each_channel() -> None:
    one, two = with_replay(1.0), WithReplay(with_replay(1.0).own, SETTINGS, 1.0, seed=1, channels=2)
    single, pair = one[0, 0], two[0, 0]
    for name in ("support_images", "query_images", "track_images"):
        images, wanted = getattr(pair, name), getattr(single, name)
        assert images.shape == (*wanted.shape[:-2], 2, *wanted.shape[-2:])
        assert torch.equal(images[..., 0, :, :], wanted)
        assert torch.equal(images[..., 1, :, :], wanted)
    assert torch.equal(pair.query_targets, single.query_targets)
