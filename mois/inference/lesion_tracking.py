"""Tracking: finds a clicked lesion on the neighbouring slices, until it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.inference.encoded_volume import EncodedVolume, Tracked
from mois.inference.matched_masks import CELL_PX, FollowedLesion, Picture, by_cell, for_model
from mois.interfaces import Backbone, Memory, TrackingRules
from mois.records import MaskPrediction


@dataclass(frozen=True)
class Limits:
    """Where tracking ends.

    Attributes:
        range_mm: Largest distance from the clicked slice.
        growth: Largest growth of the area from one slice to the next, as a factor. Faster growth ends the track.
        rules: Which clicked slices and which latest slices are remembered.
        matched_pixel_mm: Edge of a pixel if masks are matched to the picture (`mois.inference.matched_masks`); None
            leaves masks as the model gives them. Matched masks have their own limits instead of `growth`.
    """

    range_mm: float
    growth: float
    rules: TrackingRules
    matched_pixel_mm: float | None = None


@dataclass(frozen=True)
class Seeds:
    """N lesions on the slices on which they were clicked.

    Attributes:
        rows: (N,) int64, rows of an `EncodedVolume`.
        logits: (N, P / 4, P / 4), masks that the clicks gave; (N, P / 2, P / 2) where they are matched to the picture.
        pointer: (N, D), object pointers.
        presence: (N,), logit that the lesion is present.
    """

    rows: npt.NDArray[np.int64]
    logits: Tensor
    pointer: Tensor
    presence: Tensor

    def __getitem__(self, part: slice) -> Seeds:
        return Seeds(self.rows[part], self.logits[part], self.pointer[part], self.presence[part])

    def remembered(self, backbone: Backbone, encoded: EncodedVolume) -> Memory:
        """Return the memory of the clicked slices."""
        logits = for_model(self.logits, encoded.tile_px)
        return backbone.remember_slice(encoded.select(self.rows), logits, self.pointer, self.presence, hard=True)

    def within(self, limits: Limits, encoded: EncodedVolume) -> Seeds:
        """Return the lesions, with masks by cell if masks are matched to the picture."""
        if limits.matched_pixel_mm is None:
            return self
        return replace(self, logits=by_cell(self.logits, encoded.tile_px))


class _Rule(Protocol):
    """Decides which of N tracks go on to the next slice, and with which masks."""

    def __call__(
        self, tracks: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], answer: MaskPrediction
    ) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Return N masks as logits, and the positions of the tracks that go on.

        Args:
            tracks: (N,) numbers of the tracks.
            rows: (N,) their tiles on the next slice.
            answer: What the model says there.
        """


class _ModelRule:
    """Tracks go on while the model sees the lesion and its area does not grow too fast."""

    def __init__(self, seeds: Seeds, growth: float) -> None:
        self._area = (seeds.logits > 0).sum((1, 2)).float()  # of each track, in cells of 4 x 4 pixels
        self._growth = growth

    def __call__(
        self, tracks: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], answer: MaskPrediction
    ) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """See `_Rule`."""
        at = _on(tracks, self._area.device)
        new_area = (answer.logits > 0).sum((1, 2)).float()
        # + 4: a lesion of one or two cells may double in area from slice to slice
        alive = (answer.presence > 0) & (new_area > 0) & (new_area <= self._growth * (self._area[at] + 4))
        self._area[at] = new_area
        return answer.logits, np.flatnonzero(alive.cpu().numpy())  # the only wait for the device in a step


class _PictureRule:
    """Tracks go on while the picture shows a lesion like the one that was clicked."""

    def __init__(self, encoded: EncodedVolume, seeds: Seeds, pixel_mm: float) -> None:
        reach_cells = max(1, ceil(encoded.grid.gap_mm / (CELL_PX * pixel_mm)))
        self._encoded = encoded
        self._lesions = [
            FollowedLesion(Picture.of(encoded, row), logits, reach_cells)
            for row, logits in zip(seeds.rows.tolist(), seeds.logits.float().cpu(), strict=True)
        ]

    def __call__(
        self, tracks: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], answer: MaskPrediction
    ) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """See `_Rule`."""
        masks = by_cell(answer.logits, self._encoded.tile_px)
        kept = []
        for position, (track, row) in enumerate(zip(tracks.tolist(), rows.tolist(), strict=True)):
            mask = self._lesions[track].follow(Picture.of(self._encoded, row), answer.candidates[position])
            if mask is not None:
                masks[position] = mask.to(masks.device)
                kept.append(position)
        return masks, np.array(kept, dtype=np.int64)


@torch.inference_mode()
def track_lesions(backbone: Backbone, encoded: EncodedVolume, seeds: Seeds, limits: Limits, batch_size: int) -> Tracked:
    """Track N lesions in both directions, each from the slice on which it was clicked.

    A track ends in five cases:

    - The model sees no lesion: its presence is not above 0, or its mask is empty.
    - The area grows too fast (`Limits.growth`).
    - The scan ends.
    - The tile shows only air.
    - The range ends (`Limits.range_mm`).

    Where masks are matched to the picture, the first two cases are those of `FollowedLesion` instead.
    """
    seeds = seeds.within(limits, encoded)
    masks = [Tracked(np.arange(len(seeds.rows)), seeds.rows, seeds.logits.float())]
    chunk = max(1, batch_size // 2)
    for first in range(0, len(seeds.rows), chunk):
        chunk_seeds = seeds[first : first + chunk]
        count = len(chunk_seeds.rows)
        memory = chunk_seeds.remembered(backbone, encoded)
        both_ways = np.tile(np.arange(count), 2)
        starts = Seeds(
            chunk_seeds.rows[both_ways],
            *(_at(of, both_ways) for of in (chunk_seeds.logits, chunk_seeds.pointer, chunk_seeds.presence)),
        )
        direction = np.repeat([1, -1], count)
        steps = np.full(2 * count, int(limits.range_mm / encoded.grid.gap_mm))
        parts = _track(backbone, encoded, starts, _pick(memory, both_ways), direction, steps, limits)
        masks += [Tracked(both_ways[tracked.lesion] + first, tracked.rows, tracked.logits) for tracked in parts]
    return _join(masks)


@torch.inference_mode()
def track_one_lesion(backbone: Backbone, encoded: EncodedVolume, seeds: Seeds, limits: Limits) -> Tracked:
    """Track one lesion that was clicked on N slices of one tile. Each clicked slice is remembered on all slices.

    The masks on clicked slices stay. Between two clicked slices, each track ends in the middle. Tracking does not start
    on a slice where the clicks left an empty mask, and it does not cross that slice.

    Args:
        backbone: The model.
        encoded: The scan.
        seeds: The clicked slices of one tile, ascending.
        limits: Where tracking ends.
    """
    seeds = seeds.within(limits, encoded)
    places = encoded.places[seeds.rows][:, 0]
    reach = int(limits.range_mm / encoded.grid.gap_mm)
    memories = [seeds[n : n + 1].remembered(backbone, encoded) for n in range(len(places))]
    masks = [Tracked(np.zeros(len(places), np.int64), seeds.rows, seeds.logits.float())]
    shown = (seeds.logits > 0).flatten(1).any(1).tolist()
    for n, place in enumerate(places.tolist()):
        if not shown[n]:
            continue
        for direction in (1, -1):
            steps = min(reach, _slices_until_next_click(places.tolist(), shown, n, direction))
            others = [
                (direction * (place - int(other)), memories[m]) for m, other in enumerate(places) if m != n and shown[m]
            ]
            masks += _track(
                backbone,
                encoded,
                seeds[n : n + 1],
                memories[n],
                np.array([direction]),
                np.array([steps]),
                limits,
                others,
            )
    return _join(masks)


def _slices_until_next_click(places: Sequence[int], shown: Sequence[bool], n: int, direction: int) -> int:
    """Return the number of slices from clicked slice `n` to the part that belongs to the next clicked slice."""
    if not 0 <= n + direction < len(places):
        return 1 << 30
    gap = abs(places[n + direction] - places[n]) - 1
    if not shown[n + direction]:
        return gap
    return (gap + 1) // 2 if direction > 0 else gap // 2


def _track(
    backbone: Backbone,
    encoded: EncodedVolume,
    seeds: Seeds,
    clicked: Memory,
    direction: npt.NDArray[np.int64],
    steps: npt.NDArray[np.int64],
    limits: Limits,
    others: Sequence[tuple[int, Memory]] = (),
) -> list[Tracked]:
    """Track N lesions, each in one direction, slice by slice.

    Args:
        backbone: The model.
        encoded: The scan.
        seeds: Slices on which the tracks start.
        clicked: Memory of those slices.
        direction: (N,) 1 or -1.
        steps: (N,) largest length of each track, in slices.
        limits: Where tracking ends.
        others: Memories of further clicked slices, each with its distance to the start in slices; the distance is
            positive if the slice lies behind. Only used with N = 1.

    Returns:
        The masks after the start, step by step; `lesion` is the number of the track.
    """
    rows = encoded.shown_rows()
    recent: list[Memory] = []  # memories of the latest slices, newest first
    track = np.arange(len(seeds.rows))
    start, tile = encoded.places[seeds.rows].T
    rule: _Rule
    if limits.matched_pixel_mm is None:
        rule = _ModelRule(seeds, limits.growth)
    else:
        rule = _PictureRule(encoded, seeds, limits.matched_pixel_mm)
    masks: list[Tracked] = []
    for step in range(1, int(steps.max(initial=0)) + 1):
        here = start + step * direction
        inside = (here >= 0) & (here < len(rows)) & (step <= steps)
        at_row = np.where(inside, rows[here.clip(0, len(rows) - 1), tile], -1)
        going = np.flatnonzero(at_row >= 0)
        if not len(going):
            break
        distinct, number = np.unique(at_row[going], return_inverse=True)
        features = encoded.select(distinct)
        image = _on(number, features.position.device)
        known = [(step, clicked), *((step + behind, memory) for behind, memory in others)]
        memory = limits.rules.gather(known, recent, slices=len(rows))
        if len(going) < len(track):
            memory = _pick(memory, going)
        answer = backbone.decode(backbone.attend_on(features, image, memory), None)
        logits, kept = rule(track[going], at_row[going], answer)
        if not len(kept):
            break
        index = going[kept]
        kept_logits = _at(logits, kept)
        masks.append(Tracked(track[index], at_row[index], kept_logits.float()))
        if step == steps[index].max():
            break  # nobody will read this slice
        seen = features.select(_on(number[kept], kept_logits.device))
        remembered = for_model(kept_logits, encoded.tile_px)
        latest = backbone.remember_slice(seen, remembered, _at(answer.pointer, kept), _at(answer.presence, kept))
        recent = limits.rules.keep(latest, [_pick(part, index) for part in recent])
        clicked = _pick(clicked, index)
        track, direction, steps, start, tile = (part[index] for part in (track, direction, steps, start, tile))
    return masks


def _join(parts: Sequence[Tracked]) -> Tracked:
    return Tracked(
        np.concatenate([part.lesion for part in parts]),
        np.concatenate([part.rows for part in parts]),
        torch.cat([part.logits for part in parts]).cpu(),
    )


def _at(tensor: Tensor, index: npt.NDArray[np.int64]) -> Tensor:
    """Return the rows of a tensor at `index`, on its device."""
    return tensor[_on(index, tensor.device)]


def _on(index: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(index).to(device, non_blocking=True)


def _pick(memory: Memory, index: npt.NDArray[np.int64]) -> Memory:
    """Return the memory of the objects at `index`."""
    return memory.pick(_on(index, memory.maps.device))
