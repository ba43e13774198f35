"""Episodes of several channels: shapes, what moves and changes together, prepared files, slabs, foreign lesions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.episodes import EpisodeDataset, EpisodeMix, EpisodeSettings
from datamodules.foreign import paint_random_types, plant
from datamodules.prepared import Entry, PreparedScans
from datamodules.slabs import cut_slab
from datamodules.subjects import BODY, PreparedSubject, prepare_volume
from datamodules.transforms import Augmentation, augment
from mois.geometry import SliceGrid
from mois.records import Channel, Volume
from mois.scans.channels import normalised_stack, sequence_of_each
from tests.support.datasets import SPACING_MM, scan_with_lesions

NAMES = ("T2", "T1")


def volume() -> Volume:
    """Return a scan whose T1 is its T2 upside down."""
    image, classes, ids = (torch.from_numpy(array) for array in scan_with_lesions())
    kinds = {int(i): int(classes[ids == i][0]) for i in ids.unique() if i}
    affine = torch.diag(torch.tensor([*SPACING_MM, 1.0], dtype=torch.float64))
    further = (Channel("T1", torch.where(image == 0, 0.0, 300 - image)),)
    return Volume("s", "p", image, affine, ids.int(), kinds, channel="T2", further=further)


def prepared(names: tuple[str, ...] = NAMES) -> PreparedSubject:
    return prepare_volume(volume(), pixel_mm=2.0, patch_px=64, channels=names)


def settings(names: tuple[str, ...], augmentation: Augmentation | None = None) -> EpisodeSettings:
    mix = EpisodeMix(other_class=0, transplant=1, anatomy=0)
    return EpisodeSettings(64, 2, 3, mix, augmentation or Augmentation.none(), sequence_of_each(names))


@pytest.mark.parametrize("names", [NAMES, ("T2", "T2@-1", "T2@+1")], ids=len)
def test_every_image_of_an_episode_has_all_channels(names: tuple[str, ...]) -> None:
    subject = prepared(names)
    episode = EpisodeDataset([subject], settings(names, Augmentation()))[0, 0]
    count = len(names)
    assert subject.channels == count
    assert episode.support_images.shape == (2, 2, count, 64, 64)
    assert episode.query_images.shape == (count, 64, 64)
    assert episode.track_images.shape == (3, count, 64, 64)
    assert episode.support_masks.shape == (2, 2, 64, 64)


def test_neighbouring_slices_of_a_patch_are_the_patches_before_and_after_it() -> None:
    subject = prepared(("T2", "T2@-1", "T2@+1"))
    before, here, after = (subject.cut(subject.window(slice_, 24, 20, 64)).image for slice_ in (2, 3, 4))
    assert here[0].any()
    assert torch.equal(here[1], before[0])
    assert torch.equal(here[2], after[0])


def test_one_channel_by_name_is_the_same_as_the_only_image() -> None:
    alone = volume()._replace(further=())
    one = EpisodeDataset([prepare_volume(alone, pixel_mm=2.0, patch_px=64)], settings(()))[0, 3]
    named = EpisodeDataset([prepared(("T2",))], settings(("T2",)))[0, 3]
    assert all(torch.equal(first, second) for first, second in zip(one, named, strict=True))


def test_channels_move_together_and_only_slices_of_a_sequence_change_alike() -> None:
    images = torch.rand(1, 1, 64, 64).expand(4, 3, -1, -1) + 0.1
    masks, clips = torch.zeros(4, 1, 64, 64, dtype=torch.bool), torch.arange(4)
    moves, scanner = (Augmentation(0, 0, 0, 0, 0, 1, 1), Augmentation(1, 0, 1, 0, 0, 0, 0))
    torch.manual_seed(0)
    moved, _ = augment(images, masks, clips, moves, may_vanish=1)
    assert not torch.equal(moved[0], images[0])
    assert torch.equal(moved[:, 0], moved[:, 1])
    changed, _ = augment(images, masks, clips, Augmentation(0, 1, 0, 0, 0, 0, 0), sequences=(0, 0, 1))
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert not torch.equal(changed[:, 0], changed[:, 2])
    noisy, _ = augment(images, masks, clips, scanner)
    assert not torch.equal(noisy[:, 0], noisy[:, 1])


def test_a_foreign_lesion_has_its_own_contrast_in_each_channel() -> None:
    subject, rng = prepared(), np.random.default_rng(3)
    patch = subject.cut(subject.window(2, 24, 20, 64))
    before = patch.image.clone()
    mask = plant(patch, paint_random_types(rng), 200.0, subject, rng, [-0.5])
    assert mask.any()
    free = mask & (before[0] > BODY)
    first, second = ((patch.image[number] / before[number] - 1)[free] for number in (0, 1))
    assert torch.allclose(second, (-0.5 * first).clamp(min=-0.98), atol=1e-4)


def test_a_prepared_file_keeps_all_channels(tmp_path: Path) -> None:
    made = prepared()
    entry = PreparedScans(tmp_path).get("k", "s", "p", lambda: Entry(made, None), check=True)
    image = entry.subject.scan["image"].data
    assert image.shape[0] == 2
    assert torch.equal(image, made.scan["image"].data)


def test_a_slab_keeps_the_levels_of_each_channel() -> None:
    whole = volume()
    part = cut_slab(whole, range(1, 3))
    stacks = [normalised_stack(one, SliceGrid.of(one.shape, one.affine), 2.0, names=NAMES) for one in (whole, part)]
    assert stacks[1].shape[1] == 2
    assert torch.equal(stacks[0][:, 1:3], stacks[1])
