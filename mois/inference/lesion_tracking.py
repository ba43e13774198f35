"""Tracking: finds a clicked lesion on the neighbouring slices, until it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.inference.encoded_volume import EncodedVolume, Tracked
from mois.inference.followed_lesions import FollowedLesion
from mois.inference.matched_masks import CELL_PX, MATCHED, MaskRules, Picture, by_cell, for_model
from mois.inference.window_tracking import LesionWindows, Remembered, Slice
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
        mask_rules: The limits of matched masks.
        windows: Whether a lesion is looked for in a window of the tile (`mois.inference.lesion_windows`).
    """

    range_mm: float
    growth: float
    rules: TrackingRules
    matched_pixel_mm: float | None = None
    mask_rules: MaskRules = MATCHED
    windows: bool = False

    @property
    def towards_a_click(self) -> Limits:
        """The same between two clicked slices of a lesion, where it may be further from both than it reaches alone."""
        return replace(self, mask_rules=self.mask_rules._replace(stays_near=False))


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

    def at_hand(self, encoded: EncodedVolume) -> Remembered:
        """Return the clicked slices as lesion windows remember them."""
        logits = for_model(self.logits, encoded.tile_px)
        return Remembered(self.rows, logits, self.pointer, self.presence, hard=True)

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
        new_area = (answer.logits > 0).sum((1, 2)).float()
        # + 4: a lesion of one or two cells may double in area from slice to slice
        alive = (answer.presence > 0) & (new_area > 0) & (new_area <= self._growth * (_at(self._area, tracks) + 4))
        if _is_all(tracks, len(self._area)):
            self._area = new_area
        else:
            self._area[_on(tracks, self._area.device)] = new_area
        return answer.logits, np.flatnonzero(alive.cpu().numpy())  # the only wait for the device in a step


class _PictureRule:
    """Tracks go on while the picture shows a lesion like the one that was clicked."""

    def __init__(self, encoded: EncodedVolume, seeds: Seeds, pixel_mm: float, rules: MaskRules) -> None:
        gap_cells = encoded.grid.gap_mm / (CELL_PX * pixel_mm)
        self._encoded = encoded
        self._lesions = [
            FollowedLesion(Picture.of(encoded, row), logits, gap_cells, rules)
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


class _Memories(Protocol):
    """What N tracks remember, and what the model answers with it."""

    def answer(self, step: int, going: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> MaskPrediction:
        """Return the answer for M tracks on their next slices, on whole tiles.

        Args:
            step: Number of slices from the start.
            going: (M,) positions of the tracks.
            rows: (M,) their tiles.
        """

    def keep(self, going: npt.NDArray[np.int64], kept: npt.NDArray[np.int64], latest: Slice) -> None:
        """Remember the slice that was answered last, and go on with the tracks at `going[kept]`."""


class _WholeTiles:
    """Memories of whole tiles.

    Args:
        backbone: The model.
        encoded: The scan.
        rules: Which slices are remembered.
        clicked: Memories of clicked slices, each with its distance to the start in slices; the distance is positive if
            the slice lies behind. The first is that of the start.
    """

    def __init__(
        self, backbone: Backbone, encoded: EncodedVolume, rules: TrackingRules, clicked: Sequence[tuple[int, Memory]]
    ) -> None:
        self._backbone, self._encoded, self._rules, self._clicked = backbone, encoded, rules, clicked
        self._recent: list[Memory] = []  # memories of the latest slices, newest first

    def answer(self, step: int, going: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> MaskPrediction:
        """See `_Memories`."""
        distinct, self._number = np.unique(rows, return_inverse=True)
        self._features = self._encoded.select(distinct)
        image = _on(self._number, self._features.position.device)
        known = [(step + behind, memory) for behind, memory in self._clicked]
        memory = self._rules.gather(known, self._recent, slices=len(self._encoded.row_of))
        if len(going) < len(memory.maps):
            memory = _pick(memory, going)
        return self._backbone.decode(self._backbone.attend_on(self._features, image, memory), None)

    def keep(self, going: npt.NDArray[np.int64], kept: npt.NDArray[np.int64], latest: Slice) -> None:
        """See `_Memories`."""
        seen = self._features.select(_on(self._number[kept], latest.logits.device))
        memory = self._backbone.remember_slice(seen, latest.logits, latest.pointer, latest.presence)
        self._recent = self._rules.keep(memory, [_pick(part, going[kept]) for part in self._recent])
        self._clicked = [(behind, _pick(part, going[kept])) for behind, part in self._clicked]


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
        both_ways = np.tile(np.arange(count), 2)
        starts = Seeds(
            chunk_seeds.rows[both_ways],
            *(_at(of, both_ways) for of in (chunk_seeds.logits, chunk_seeds.pointer, chunk_seeds.presence)),
        )
        direction = np.repeat([1, -1], count)
        steps = np.full(2 * count, int(limits.range_mm / encoded.grid.gap_mm))
        memories: _Memories
        if limits.windows:
            memories = LesionWindows(backbone, encoded, limits.rules, [(0, starts.at_hand(encoded))])
        else:
            memory = _pick(chunk_seeds.remembered(backbone, encoded), both_ways)
            memories = _WholeTiles(backbone, encoded, limits.rules, [(0, memory)])
        parts = _track(encoded, starts, memories, direction, steps, limits)
        masks += [Tracked(both_ways[tracked.lesion] + first, tracked.rows, tracked.logits) for tracked in parts]
    return _join(masks)


@torch.inference_mode()
def track_one_lesion(backbone: Backbone, encoded: EncodedVolume, seeds: Seeds, limits: Limits) -> Tracked:
    """Track one lesion that was clicked on N slices of one tile. Each clicked slice is remembered on all slices.

    The masks on clicked slices stay. Between two clicked slices, each track ends in the middle, and no rule ends it for
    being far from its clicked slice, since the reader has shown that the lesion goes on. Tracking does not start on a
    slice where the clicks left an empty mask, and it does not cross that slice.

    Args:
        backbone: The model.
        encoded: The scan.
        seeds: The clicked slices of one tile, ascending.
        limits: Where tracking ends.
    """
    seeds = seeds.within(limits, encoded)
    places = encoded.places[seeds.rows][:, 0]
    reach = int(limits.range_mm / encoded.grid.gap_mm)
    masks = [Tracked(np.zeros(len(places), np.int64), seeds.rows, seeds.logits.float())]
    shown = (seeds.logits > 0).flatten(1).any(1).tolist()
    whole = [] if limits.windows else [seeds[n : n + 1].remembered(backbone, encoded) for n in range(len(places))]
    for n, place in enumerate(places.tolist()):
        if not shown[n]:
            continue
        for direction in (1, -1):
            steps = min(reach, _slices_until_next_click(places.tolist(), shown, n, direction))
            others = [m for m in range(len(places)) if m != n and shown[m]]
            behind = [(m, direction * (place - int(places[m]))) for m in (n, *others)]
            memories: _Memories
            if limits.windows:
                clicked = [(distance, seeds[m : m + 1].at_hand(encoded)) for m, distance in behind]
                memories = LesionWindows(backbone, encoded, limits.rules, clicked)
            else:
                memories = _WholeTiles(backbone, encoded, limits.rules, [(by, whole[m]) for m, by in behind])
            start = seeds[n : n + 1]
            here = limits.towards_a_click if _is_shown(shown, n + direction) else limits
            masks += _track(encoded, start, memories, np.array([direction]), np.array([steps]), here)
    return _join(masks)


def _is_shown(shown: Sequence[bool], n: int) -> bool:
    """Return whether there is a clicked slice `n`, and the lesion is on it."""
    return 0 <= n < len(shown) and shown[n]


def _slices_until_next_click(places: Sequence[int], shown: Sequence[bool], n: int, direction: int) -> int:
    """Return the number of slices from clicked slice `n` to the part that belongs to the next clicked slice."""
    if not 0 <= n + direction < len(places):
        return 1 << 30
    gap = abs(places[n + direction] - places[n]) - 1
    if not shown[n + direction]:
        return gap
    return (gap + 1) // 2 if direction > 0 else gap // 2


def _track(
    encoded: EncodedVolume,
    seeds: Seeds,
    memories: _Memories,
    direction: npt.NDArray[np.int64],
    steps: npt.NDArray[np.int64],
    limits: Limits,
) -> list[Tracked]:
    """Track N lesions, each in one direction, slice by slice.

    Args:
        encoded: The scan.
        seeds: Slices on which the tracks start.
        memories: What the tracks remember.
        direction: (N,) 1 or -1.
        steps: (N,) largest length of each track, in slices.
        limits: Where tracking ends.

    Returns:
        The masks after the start, step by step; `lesion` is the number of the track.
    """
    rows = encoded.shown_rows()
    track = np.arange(len(seeds.rows))
    start, tile = encoded.places[seeds.rows].T
    rule: _Rule
    if limits.matched_pixel_mm is None:
        rule = _ModelRule(seeds, limits.growth)
    else:
        rule = _PictureRule(encoded, seeds, limits.matched_pixel_mm, limits.mask_rules)
    masks: list[Tracked] = []
    for step in range(1, int(steps.max(initial=0)) + 1):
        here = start + step * direction
        inside = (here >= 0) & (here < len(rows)) & (step <= steps)
        at_row = np.where(inside, rows[here.clip(0, len(rows) - 1), tile], -1)
        going = np.flatnonzero(at_row >= 0)
        if not len(going):
            break
        answer = memories.answer(step, going, at_row[going])
        logits, kept = rule(track[going], at_row[going], answer)
        if not len(kept):
            break
        index = going[kept]
        kept_logits = _at(logits, kept)
        masks.append(Tracked(track[index], at_row[index], kept_logits.float()))
        if step == steps[index].max():
            break  # nobody will read this slice
        seen = for_model(kept_logits, encoded.tile_px)
        told = (_at(answer.pointer, kept), _at(answer.presence, kept))
        memories.keep(going, kept, Slice(at_row[index], seen, *told, as_answered=logits is answer.logits))
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
    if _is_all(index, len(tensor)):
        return tensor
    return tensor[_on(index, tensor.device)]


def _on(index: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(index).to(device, non_blocking=True)


def _pick(memory: Memory, index: npt.NDArray[np.int64]) -> Memory:
    """Return the memory of the objects at `index`."""
    if _is_all(index, len(memory.maps)):
        return memory
    return memory.pick(_on(index, memory.maps.device))


def _is_all(index: npt.NDArray[np.int64], count: int) -> bool:
    """Return whether an index names all of `count` rows, in order. Most tracks go on, and then nothing is copied."""
    return np.array_equal(index, np.arange(count))
