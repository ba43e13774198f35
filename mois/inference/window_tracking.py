"""Tracking in windows: what tracks remember, each within a window of its tile, and what the model answers with it.

A remembered slice keeps its row and its mask on the whole tile. Its memory is computed for the window of now, and again
when that window moves or grows. All lesions whose windows have one side share one call of the model, and so do all
slices that are remembered again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.inference.encoded_volume import EncodedVolume
from mois.inference.lesion_windows import (
    CELL_PX,
    Box,
    Window,
    boxes_of,
    cells_worth_a_call,
    cut,
    cut_masks,
    joined,
    larger_side,
    on_tiles,
    place,
    reaches_border,
    side_for,
)
from mois.interfaces import Backbone, Memory, TrackingRules
from mois.records import Features, MaskPrediction

CELLS_AT_ONCE = 1 << 15
"""Cells of the windows whose memories are computed at once: 327 windows of 10 cells, 32 tiles of 512 pixels."""


class Slice(NamedTuple):
    """A slice on which N lesions were found: rows (N,), masks (N, P / 4, P / 4), pointers (N, D), presence (N,).

    `as_answered` says whether the masks are those that the model gave.
    """

    rows: npt.NDArray[np.int64]
    logits: Tensor
    pointer: Tensor
    presence: Tensor
    as_answered: bool = False


@dataclass
class Remembered:
    """A slice that N lesions remember.

    Attributes:
        rows: (N,) rows of an `EncodedVolume`.
        logits: (K, P / 4, P / 4), the masks on whole tiles.
        pointer: (K, D).
        presence: (K,).
        hard: Whether a reader accepted the masks.
        places: (N,) places of the lesions among the K of the tensors.
        known: What each of the N lesions remembers within its window, once it was asked for.
    """

    rows: npt.NDArray[np.int64]
    logits: Tensor
    pointer: Tensor
    presence: Tensor
    hard: bool = False
    places: list[int] = field(default_factory=list)
    known: list[tuple[Window, Memory] | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Nothing is known yet."""
        self.places = self.places or list(range(len(self.rows)))
        self.known = self.known or [None] * len(self.rows)

    def pick(self, index: npt.NDArray[np.int64]) -> Remembered:
        """Return what the lesions at `index` remember. The device has nothing to do."""
        at = index.tolist()
        places, known = [self.places[n] for n in at], [self.known[n] for n in at]
        return replace(self, rows=self.rows[index], places=places, known=known)

    def lacks(self, track: int, window: Window) -> bool:
        """Return whether the memory of a lesion within a window is not computed yet."""
        kept = self.known[track]
        return kept is None or kept[0] != window


@dataclass
class LesionWindows:
    """What N tracks remember, each within a window of its tile. See `mois.inference.lesion_tracking`.

    Attributes:
        backbone: The model.
        encoded: The scan.
        rules: Which slices are remembered.
        clicked: The clicked slices, each with the number of slices by which it lies behind the first.
        windows: The window of each track.
        latest: The slices before this slice, newest first.
    """

    backbone: Backbone
    encoded: EncodedVolume
    rules: TrackingRules
    clicked: list[tuple[int, Remembered]]
    windows: list[Window] = field(default_factory=list)
    latest: list[Remembered] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin with a window around each clicked mask; an empty mask gets the whole tile."""
        first = self.clicked[0][1]
        self._at_hand: tuple[npt.NDArray[np.int64], Features] | None = None
        self._boxes: list[Box | None] = []  # of the lesions that were answered last
        self._worth = cells_worth_a_call(first.logits.device)
        self.windows = self._around(boxes_of(first.logits), [None] * len(first.rows))

    @property
    def _cells(self) -> int:
        return self.encoded.tile_px // CELL_PX

    def _around(self, boxes: Sequence[Box | None], windows: Sequence[Window | None]) -> list[Window]:
        """Return the windows of tracks for the boxes of their lesions, and their windows so far."""
        whole = Window(self._cells, 0, 0)
        known = list(zip(boxes, windows, strict=True))
        sides = [side_for(box, self._cells, window) if box else (window or whole).side for box, window in known]
        return [
            place(box, side, self._cells, window) if box else self._enlarged(window or whole, side)
            for side, (box, window) in zip(joined(sides, self._worth), known, strict=True)
        ]

    def _enlarged(self, window: Window, side: int) -> Window:
        """Return a window around a window."""
        if side == window.side:
            return window
        last_row, last_column = window.top + window.side - 1, window.left + window.side - 1
        return place((window.top, window.left, last_row, last_column), side, self._cells)

    def answer(self, step: int, going: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> MaskPrediction:
        """See `mois.inference.lesion_tracking`.

        Where an answer reaches the border of its window, the window grows, and the slice is asked again.
        """
        parts: list[MaskPrediction | None] = [None] * len(going)
        self._boxes = [None] * len(going)
        waiting = list(range(len(going)))
        while waiting:
            sides = {self.windows[going[n]].side for n in waiting}
            again: list[int] = []
            for side in sorted(sides):
                group = [n for n in waiting if self.windows[going[n]].side == side]
                answer = self._ask(step, [int(going[n]) for n in group], rows[group])
                for position, (n, box) in enumerate(zip(group, boxes_of(answer.logits), strict=True)):
                    self._boxes[n] = box
                    parts[n] = MaskPrediction(*(part[position : position + 1] for part in answer))
                again += [n for n in group if self._is_near_border(int(going[n]), self._boxes[n])]
            if len(waiting) == len(going) and len(sides) == 1 and not again:
                return answer
            waiting = again
            self._grow([(int(going[n]), box) for n in again if (box := self._boxes[n])])
        return MaskPrediction(*(torch.cat(part) for part in zip(*(part for part in parts if part), strict=True)))

    def _is_near_border(self, track: int, box: Box | None) -> bool:
        return box is not None and reaches_border(box, self.windows[track], self._cells)

    def _grow(self, tracks: Sequence[tuple[int, Box]]) -> None:
        """Give tracks windows around boxes with larger sides than those of their windows."""
        sides = [max(side_for(box, self._cells), larger_side(self.windows[at].side, self._cells)) for at, box in tracks]
        for (at, box), side in zip(tracks, joined(sides, self._worth), strict=True):
            self.windows[at] = place(box, side, self._cells)

    def _ask(self, step: int, tracks: list[int], rows: npt.NDArray[np.int64]) -> MaskPrediction:
        """Return the answer for tracks whose windows have equal sides, on whole tiles."""
        windows = [self.windows[track] for track in tracks]
        memory = self._memory(step, tracks, windows)
        distinct, number = np.unique(rows, return_inverse=True)
        features = self._tiles(distinct)
        if windows[0].side == self._cells:
            image = torch.from_numpy(number).to(features.position.device, non_blocking=True)
            return self.backbone.decode(self.backbone.attend_on(features, image, memory), None)
        features = cut(features, windows, self.encoded.tile_px, number.tolist())
        answer = self.backbone.decode(self.backbone.attend_on(features, None, memory), None)
        parts = on_tiles(torch.cat([answer.logits.unsqueeze(1), answer.candidates], 1), windows, self._cells)
        return answer._replace(logits=parts[:, 0].clone(), candidates=parts[:, 1:])  # logits are kept for longer

    def _tiles(self, rows: npt.NDArray[np.int64]) -> Features:
        """Return the features of tiles. Those that were asked for last are at hand."""
        if self._at_hand is None or not np.array_equal(self._at_hand[0], rows):
            self._at_hand = rows, self.encoded.select(rows)
        return self._at_hand[1]

    @property
    def _reach(self) -> tuple[int, int]:
        """How many of the latest slices are remembered as maps, and as pointers."""
        return self.rules.maps, self.rules.maps if self.rules.pointers is None else self.rules.pointers

    def _memory(self, step: int, tracks: Sequence[int], windows: Sequence[Window]) -> Memory:
        """Return what tracks remember, within windows of equal sides."""
        maps, pointers = self._reach
        clicked, latest = [slice_ for _, slice_ in self.clicked], self.latest[:maps]
        for hard in (True, False):
            slices = [slice_ for slice_ in (*clicked, *latest) if slice_.hard == hard]
            self._learn(
                [(of, at, w) for of in slices for at, w in zip(tracks, windows, strict=True) if of.lacks(at, w)]
            )
        kept = [slice_.known[track] for slice_ in (*clicked, *latest) for track in tracks]
        every = Memory.stack([each[1] for each in kept if each])  # slice by slice
        parts = [every.part_of(slice(n, n + len(tracks))) for n in range(0, len(kept), len(tracks))]
        known = [(step + behind, part) for (behind, _), part in zip(self.clicked, parts, strict=False)]
        ages = enumerate(parts[len(clicked) :], start=1)
        told = [part.without_pointer() if age > pointers else part for age, part in ages]
        if older := self.latest[maps:]:
            vectors = torch.stack([slice_.pointer[slice_.places[track]] for slice_ in older for track in tracks])
            alone = parts[0].without_map()
            told += [alone._replace(pointers=vector.unsqueeze(1)) for vector in torch.split(vectors, len(tracks))]
        return self.rules.gather(known, told, slices=len(self.encoded.row_of))

    def _learn(self, missing: Sequence[tuple[Remembered, int, Window]]) -> None:
        """Compute what tracks remember of slices within windows of equal sides: many slices at once."""
        at_once = max(1, CELLS_AT_ONCE // missing[0][2].side ** 2) if missing else 1
        for start in range(0, len(missing), at_once):
            some = missing[start : start + at_once]
            windows = [window for _, _, window in some]
            rows, image = np.unique([slice_.rows[track] for slice_, track, _ in some], return_inverse=True)
            features = cut(self._tiles(rows), windows, self.encoded.tile_px, image.tolist())
            logits, pointer, presence = (
                torch.stack([getattr(slice_, name)[slice_.places[track]] for slice_, track, _ in some])
                for name in ("logits", "pointer", "presence")
            )
            masks = cut_masks(logits, windows)
            new = self.backbone.remember_slice(features, masks, pointer, presence, hard=some[0][0].hard)
            for n, (slice_, track, window) in enumerate(some):
                slice_.known[track] = window, new.part(n)

    def keep(self, going: npt.NDArray[np.int64], kept: npt.NDArray[np.int64], latest: Slice) -> None:
        """See `mois.inference.lesion_tracking`: remember a slice, and go on with the tracks at `going[kept]`."""
        index = going[kept]
        self.clicked = [(behind, slice_.pick(index)) for behind, slice_ in self.clicked]
        others = self.latest[: max(self._reach) - 1]
        self.latest = [Remembered(*latest[:4]), *(slice_.pick(index) for slice_ in others)]
        boxes = [self._boxes[n] for n in kept.tolist()] if latest.as_answered else boxes_of(latest.logits)
        self.windows = self._around(boxes, [self.windows[at] for at in index.tolist()])
