"""Lesion windows: a window finds what the whole tile shows, and moves and grows with the lesion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mois.backbones import SAM2
from mois.inference import window_tracking
from mois.inference.encoded_volume import Tracked
from mois.inference.lesion_tracking import Limits, Seeds, track_lesions, track_one_lesion
from mois.inference.lesion_windows import (
    Box,
    Window,
    boxes_of,
    cut,
    joined,
    on_tiles,
    place,
    reaches_border,
    side_for,
)
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.records import Features, MaskPrediction, Prompts, Volume, Windows
from tests.support.fake_model import FakeBackbone, FakePropagation, box, make_scan

EDGE = 512  # 32 x 32 cells


def window_around(box: Box, tile_cells: int, window: Window | None = None) -> Window:
    return place(box, side_for(box, tile_cells, window), tile_cells, window)


class Watching(FakeBackbone):
    """Keeps the edge in cells, and the corners, of all windows in which it decoded a tracked lesion."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_px = EDGE
        self.looked: list[tuple[int, list[Any] | None]] = []

    def decode(self, features: Features, prompts: Prompts | None, dense: Tensor | None = None) -> MaskPrediction:
        if prompts is None:
            corners = None if features.windows is None else features.windows.corners.tolist()
            self.looked.append((features.image.shape[-1] // 16, corners))
        return super().decode(features, prompts, dense)


def track(
    scan: Volume, clicks: list[tuple[int, int, int]], window: str, batch_size: int = 32
) -> tuple[dict[tuple[int, int], Tensor], Watching]:
    """Return the masks by lesion and slice, and the model. Clicks are (slice, row, column)."""
    backbone = Watching()
    settings = InferenceSettings(window=window, batch_size=batch_size)  # type: ignore[arg-type]
    segmenter = VolumeSegmenter(backbone, FakePropagation(), settings)
    encoded = segmenter.encode(scan)
    rows = np.array([encoded.row(index, 0) for index, _, _ in clicks])
    points = torch.tensor([[[float(x), float(y)]] for _, y, x in clicks])
    answer = segmenter.answer(encoded, rows, Prompts(points, torch.ones(len(clicks), 1, dtype=torch.int32)))
    return by_place(segmenter.track(encoded, rows, answer)), backbone


def by_place(tracked: Tracked) -> dict[tuple[int, int], Tensor]:
    keys = zip(tracked.lesion.tolist(), tracked.rows.tolist(), strict=True)
    return {key: logits > 0 for key, logits in zip(keys, tracked.logits, strict=True)}


def same(one: dict[tuple[int, int], Tensor], other: dict[tuple[int, int], Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


# ---------------------------------------------------------------------------------------------- where a window lies


def test_a_window_has_four_cells_around_the_lesion_and_stays_on_the_tile() -> None:
    assert window_around((7, 7, 8, 8), 32) == Window(10, 3, 3)
    assert window_around((7, 7, 9, 8), 32) == Window(12, 2, 2)  # 3 + 2 * 4 cells need more than 10
    assert window_around((0, 30, 0, 31), 32) == Window(10, 0, 22)
    assert window_around((2, 2, 16, 16), 32) == Window(24, 0, 0)
    assert window_around((2, 2, 26, 20), 32) == Window(32, 0, 0)  # the whole tile
    assert window_around((1, 1, 2, 2), 12) == Window(10, 0, 0)
    assert window_around((1, 1, 4, 2), 12) == Window(12, 0, 0)
    assert window_around((1, 1, 1, 1), 8) == Window(8, 0, 0)  # a tile of the nano


def test_a_window_stays_until_the_lesion_is_near_its_border_or_much_smaller() -> None:
    now = Window(12, 10, 10)
    assert window_around((11, 11, 12, 12), 32, now) == now  # a cell is left, and 10 is only one size less
    assert window_around((10, 11, 11, 12), 32, now) == Window(10, 6, 7)
    assert window_around((15, 15, 16, 16), 32, Window(16, 10, 10)) == Window(10, 11, 11)  # two sizes less
    assert window_around((0, 0, 1, 1), 32, Window(10, 0, 0)) == Window(10, 0, 0)  # the tile ends there


def test_a_border_of_the_tile_is_no_border_of_a_window() -> None:
    assert not reaches_border((0, 28, 1, 31), Window(8, 0, 24), 32)
    assert reaches_border((0, 24, 1, 30), Window(8, 0, 24), 32)
    assert reaches_border((3, 28, 7, 30), Window(8, 0, 24), 32)


def test_boxes_are_those_of_the_masks_in_cells() -> None:
    masks = torch.full((2, 32, 32), -1.0)
    masks[0, 5, 7] = masks[0, 12, 8] = 1.0
    assert boxes_of(masks) == [(1, 1, 3, 2), None]


def test_windows_of_features_and_their_codes_are_those_of_their_places() -> None:
    levels = tuple(torch.rand(2, 3, 128 // stride, 128 // stride) for stride in (4, 8, 16))
    features = Features(levels, torch.rand(2, 3, 8, 8), torch.rand(2, 1, 128, 128))
    part = cut(features, [Window(6, 0, 2), Window(6, 1, 0)], 128)
    assert torch.equal(part.levels[0][0], levels[0][0, :, :24, 8:32])
    assert torch.equal(part.levels[2][1], levels[2][1, :, 1:7, :6])
    assert torch.equal(part.image[1], features.image[1, :, 16:112, :96])
    assert isinstance(part.windows, Windows)
    code = features.position[0]
    assert torch.equal(part.windows.cut(code, 6), torch.stack([code[:, :6, 2:8], code[:, 1:7, :6]]))
    assert part.select(torch.tensor([1])).windows.corners.tolist() == [[1, 0]]  # type: ignore[union-attr]


def test_windows_of_one_tile_are_cut_at_once() -> None:
    level = torch.arange(2 * 64.0).view(2, 1, 8, 8)
    features = Features((level,) * 3, level, torch.rand(2, 1, 128, 128))
    part = cut(features, [Window(6, 0, 2), Window(6, 1, 0), Window(6, 2, 2)], 128, [1, 1, 0])
    assert torch.equal(part.levels[2], torch.stack([level[1, :, :6, 2:], level[1, :, 1:7, :6], level[0, :, 2:, 2:]]))


def test_masks_in_windows_are_put_back_where_they_were() -> None:
    masks = torch.arange(2 * 3 * 40 * 40.0).view(2, 3, 40, 40)
    tiles = on_tiles(masks, [Window(10, 6, 0), Window(10, 0, 5)], 16)
    assert tiles.shape == (2, 3, 64, 64)
    assert torch.equal(tiles[0, :, 24:, :40], masks[0])
    assert torch.equal(tiles[1, :, :40, 20:60], masks[1])
    assert int((tiles == -20.0).sum()) == 2 * 3 * (64 * 64 - 40 * 40)


def test_smaller_windows_join_larger_ones_if_they_gain_few_cells() -> None:
    sides = [10, 16, 12, 10, 48]
    assert joined(sides, 0) == sides
    assert joined(sides, 88) == [12, 16, 12, 12, 48]  # two windows of 10 gain 2 * 44 cells
    assert joined(sides, 335) == [12, 16, 12, 12, 48]
    assert joined(sides, 336) == [16, 16, 16, 16, 48]  # three windows of 12 gain 3 * 112


# ---------------------------------------------------------------------------------------------- tracking

STILL = [(80.0, box((0, 6), (104, 120), (96, 112)))]
MOVING = [(80.0, box((n, n + 1), (40 + 48 * n, 56 + 48 * n), (40 + 48 * n, 56 + 48 * n))) for n in range(6)]
GROWING = [(80.0, box((n, n + 1), (236 - 16 * n, 276 + 16 * n), (236 - 16 * n, 276 + 16 * n))) for n in range(6)]
AT_BORDER = [(80.0, box((0, 6), (6, 20), (8, 22)))]


@pytest.mark.parametrize("lesion", [STILL, MOVING, GROWING, AT_BORDER], ids=["still", "moving", "growing", "border"])
def test_a_window_finds_what_the_whole_tile_shows(lesion: list[Any]) -> None:
    scan = make_scan(lesion, shape=(6, EDGE, EDGE))
    _, rows, columns = lesion[0][1]
    click = [(0, (rows.start + rows.stop) // 2, (columns.start + columns.stop) // 2)]
    whole, _ = track(scan, click, "off")
    found, backbone = track(scan, click, "auto")
    assert len(whole) == 6
    same(found, whole)
    assert backbone.looked[0][0] < 32


def test_a_window_moves_with_the_lesion_and_grows_only_as_needed() -> None:
    _, still = track(make_scan(STILL, shape=(6, EDGE, EDGE)), [(0, 112, 104)], "auto")
    assert still.looked == [(10, [[2, 1]])] * 5  # rows of cells 6 and 7, column 6
    _, moving = track(make_scan(MOVING, shape=(6, EDGE, EDGE)), [(0, 48, 48)], "auto")
    corners = [looked[0] for _, looked in moving.looked if looked]
    assert corners == sorted(corners)
    assert corners[0] != corners[-1]
    _, growing = track(make_scan(GROWING, shape=(6, EDGE, EDGE)), [(0, 256, 256)], "auto")
    sides = [side for side, _ in growing.looked]
    assert sides == sorted(sides)
    assert sides[0] == 12  # 4 cells and 4 on each side
    assert sides[-1] >= 16


@pytest.mark.parametrize("batch_size", [1, 32])
def test_lesions_with_windows_of_different_sides_are_tracked_together(batch_size: int) -> None:
    large = (100.0, box((0, 6), (150, 220), (150, 220)))
    scan = make_scan([*STILL, large], shape=(6, EDGE, EDGE))
    clicks = [(2, 112, 104), (3, 185, 185)]
    whole, _ = track(scan, clicks, "off", batch_size)
    found, backbone = track(scan, clicks, "auto", batch_size)
    assert len(whole) == 12
    same(found, whole)
    assert {side for side, _ in backbone.looked} == {10, 16}


def test_on_a_gpu_lesions_share_the_largest_side_and_are_asked_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_tracking, "cells_worth_a_call", lambda _: 8192)
    large = (100.0, box((0, 6), (150, 220), (150, 220)))
    scan = make_scan([*STILL, large], shape=(6, EDGE, EDGE))
    whole, _ = track(scan, [(2, 112, 104), (3, 185, 185)], "off")
    found, backbone = track(scan, [(2, 112, 104), (3, 185, 185)], "auto")
    same(found, whole)
    assert [side for side, _ in backbone.looked] == [16] * 3  # one call a step; the longest track has 3 steps
    moving = make_scan([*MOVING, (100.0, box((0, 6), (400, 420), (20, 40)))], shape=(6, EDGE, EDGE))
    clicks = [(0, 48, 48), (0, 410, 30)]
    same(track(moving, clicks, "auto")[0], track(moving, clicks, "off")[0])


def test_whole_tiles_have_no_windows() -> None:
    _, backbone = track(make_scan(STILL, shape=(6, EDGE, EDGE)), [(0, 112, 104)], "off")
    assert backbone.looked == [(32, None)] * 5


# ---------------------------------------------------------------------------------------------- SAM 2.1


@pytest.mark.parametrize("size", ["nano", "tiny"])
@torch.no_grad()
def test_windows_that_must_be_the_whole_tile_answer_as_whole_tiles(size: str) -> None:
    backbone = SAM2(size, "bundled-2" if size == "nano" else "random", patch_px=128)  # type: ignore[arg-type]
    scan = make_scan([(80.0, box((0, 5), (12, 116), (12, 116)))], shape=(5, 128, 128))
    segmenter = VolumeSegmenter(backbone, FakePropagation(), InferenceSettings(half_features=False))
    encoded = segmenter.encode(scan)
    rows = np.array([1, 3])
    logits = torch.full((2, 32, 32), -5.0)
    logits[:, 2:30, 2:30] = 5.0
    seeds = Seeds(rows, logits, torch.ones(2, backbone.width), torch.ones(2))
    off, auto = (Limits(1e4, 1e9, backbone.tracking, windows=windows) for windows in (False, True))
    for one, other in (
        (
            track_lesions(backbone, encoded, seeds, off, 32),
            track_lesions(backbone, encoded, seeds, auto, 32),
        ),
        (track_one_lesion(backbone, encoded, seeds, off), track_one_lesion(backbone, encoded, seeds, auto)),
    ):
        assert np.array_equal(one.rows, other.rows)
        assert torch.allclose(one.logits, other.logits, atol=1e-4)


@torch.no_grad()
def test_codes_of_a_window_are_those_of_its_place_on_the_tile() -> None:
    backbone = SAM2("nano", "bundled-2", patch_px=128)
    features = backbone.encode(torch.rand(2, 128, 128))
    windows = [Window(6, 2, 1), Window(6, 0, 2)]
    part = cut(features, windows, 128)
    pointer = torch.zeros(2, backbone.width)
    whole = backbone.remember(features, torch.zeros(2, 32, 32), pointer)
    memory = backbone.remember(part, torch.zeros(2, 24, 24), pointer)
    assert torch.equal(memory.position[0, 0], whole.position[0, 0, :, 2:8, 1:7])
    assert torch.equal(memory.position[1, 0], whole.position[1, 0, :, 0:6, 2:8])
    answer = backbone.decode(part, None)
    apart = [backbone.decode(part.select(slice(n, n + 1)), None) for n in range(2)]
    assert torch.allclose(answer.logits, torch.cat([one.logits for one in apart]), atol=1e-4)
    elsewhere = part._replace(windows=part.windows._replace(corners=torch.tensor([[0, 0], [0, 0]])))  # type: ignore[union-attr]
    assert not torch.allclose(answer.logits, backbone.decode(elsewhere, None).logits, atol=1e-2)
