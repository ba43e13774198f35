"""Clips that are cut to squares around their lesions."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from adapters import Frozen, Full, Lora, Placement
from adapters.placement import Part
from datamodules.episodes import EpisodeDataset, EpisodeSettings, collate
from datamodules.phantoms.lesion_types import draw_lesion_types
from datamodules.phantoms.phantom import make_phantom
from datamodules.pretraining import as_volume
from datamodules.subjects import prepare_volume
from mois.interfaces import Adapter
from mois.propagation import Similarity
from mois.records import Episode, Features
from mois.testing import nano_backbone
from mois.training.clip_windows import cut_clips, square_corners
from mois.training.episode_step import EpisodeLearning, StepResult, learn
from mois.training.feature_cache import CacheSettings
from mois.training.module import ExemplarSegmenter
from tests.support.example_episodes import example_episode


def _learn(adapter: Adapter, clip_px: int | None, episode: Episode) -> tuple[ExemplarSegmenter, StepResult]:
    torch.manual_seed(0)
    settings = EpisodeLearning(clip_px=clip_px)
    module = ExemplarSegmenter(nano_backbone(), adapter, Similarity(), learning=settings)
    return module, learn(module.backbone, module.propagations, episode, settings, 0)


def test_a_square_lies_around_the_box_of_the_lesion_on_all_slices() -> None:
    masks = torch.zeros(3, 3, 128, 128, dtype=torch.bool)
    masks[0, 0, 40:44, 70:80] = True  # rows 40 to 59 and columns 70 to 89 on three slices: the middle is (50, 80)
    masks[0, 1, 50:54, 75:85] = True
    masks[0, 2, 56:60, 80:90] = True
    masks[1, 1, 0:4, 120:128] = True  # in a corner
    corners = square_corners(masks, torch.full((3,), 0.5), 64)
    assert corners.tolist() == [[50 - 32, 80 - 32], [0, 64], [32, 32]]  # without a lesion: the middle of the patch


def test_a_square_around_a_lesion_that_is_larger_holds_the_first_click() -> None:
    masks = torch.zeros(2, 1, 128, 128, dtype=torch.bool)
    masks[:, :, 4:124, 4:124] = True
    masks[:, :, 20:108, 20:108] = False  # a ring: its middle is empty
    episode = example_episode(clip=1)._replace(track_masks=masks)
    first = episode._replace(chance=torch.zeros_like(episode.chance))  # the first pixel of the ring: (4, 4)
    assert square_corners(masks, first.chance[:, -1], 32).tolist() == [[0, 0], [0, 0]]
    assert cut_clips(first, 32).track_masks[:, :, 4, 4].all()


def test_squares_are_the_same_pixels_of_images_with_and_without_channels() -> None:
    episode = example_episode()
    corner = square_corners(episode.track_masks, episode.chance[:, -1], 64)
    cut = cut_clips(episode._replace(track_images=torch.stack([episode.track_images] * 2, dim=2)), 64)
    assert cut.track_images.shape == (2, 3, 2, 64, 64)
    for row, (top, left) in enumerate(corner.tolist()):
        part = (row, slice(None), slice(top, top + 64), slice(left, left + 64))
        assert torch.equal(cut.track_images[row, :, 1], episode.track_images[part])
        assert torch.equal(cut.track_masks[row], episode.track_masks[part])


def test_squares_hold_the_lesions_of_augmented_clips(episodes: EpisodeDataset) -> None:
    batch = collate([episodes[(0, index)] for index in range(24)])
    cut = cut_clips(batch, 64)
    whole, kept = (masks.flatten(2).sum(2) for masks in (batch.track_masks, cut.track_masks))
    union = batch.track_masks.any(1)
    rows, columns = (union.any(axis).sum(1) for axis in (2, 1))  # of one piece: as many as its box has
    small = (rows < 60) & (columns < 60)
    assert small.sum() > 12
    assert torch.equal(whole[small], kept[small])
    assert torch.equal(whole[:, 1] > 0, kept[:, 1] > 0)


@pytest.fixture(scope="module")
def episodes() -> EpisodeDataset:
    """Augmented episodes of a phantom with clips of three slices."""
    rng = np.random.default_rng(0)
    scan = as_volume(make_phantom(rng, draw_lesion_types(rng, 2)), "phantom")
    return EpisodeDataset([prepare_volume(scan, pixel_mm=1.5, patch_px=128)], EpisodeSettings(128, 1, 3))


def test_the_loss_is_that_of_whole_patches_if_the_square_is_the_patch() -> None:
    episode = example_episode()
    whole, square = (_learn(Full(), clip_px, episode)[1] for clip_px in (None, 128))
    assert whole.losses.keys() == square.losses.keys()
    for name, loss in whole.losses.items():
        assert torch.equal(loss, square.losses[name]), name


def test_the_loss_of_tracking_is_that_of_an_episode_with_smaller_clips() -> None:
    episode = example_episode()
    cut, given = (_learn(Full(), clip_px, some)[1] for clip_px, some in ((64, episode), (None, cut_clips(episode, 64))))
    whole = _learn(Full(), None, episode)[1]
    assert cut.losses["track"] == given.losses["track"]
    assert cut.losses["track"] != whole.losses["track"]
    for name in ("click", "semantic", "alone"):  # supports and queries stay whole
        torch.testing.assert_close(cut.losses[name], whole.losses[name])


@pytest.mark.parametrize("adapter", [Full(), Lora(placement=Placement(get_args(Part)))])
def test_gradient_reaches_every_trained_tensor(adapter: Adapter) -> None:
    module, result = _learn(adapter, 64, example_episode())
    torch.stack(list(result.losses.values())).sum().backward()
    assert [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None] == []


def test_slices_of_clips_are_encoded_small(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    backbone = nano_backbone()
    encode = type(backbone).encode

    def listening(self: object, images: torch.Tensor) -> Features:
        seen.append(tuple(images.shape))
        return encode(self, images)  # type: ignore[arg-type]

    monkeypatch.setattr(type(backbone), "encode", listening)
    _learn(Full(), 64, example_episode())
    _learn(Frozen(), 64, example_episode())  # does not track
    assert seen == [(14, 128, 128), (6, 64, 64), (14, 128, 128)]


def test_sides_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.learning\.clip_px=100 must be a multiple of 32"):
        EpisodeLearning(clip_px=100)
    with pytest.raises(ValueError, match=r"clip_px=256 is larger than the patches \(128 pixels"):
        cut_clips(example_episode(), 256)
    cache = CacheSettings(folder=tmp_path)
    with pytest.raises(ValueError, match=r"clip_px=64 cuts clips that model\.cache\.folder="):
        ExemplarSegmenter(nano_backbone(), Frozen(), Similarity(), learning=EpisodeLearning(clip_px=64), cache=cache)
