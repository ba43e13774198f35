"""Lesion windows: tracking looks only at a square part of a tile around the lesion, not at the whole tile.

    tile, 32 x 32 cells of 16 pixels          a window is a smaller tile: model and memories see nothing else
    +----------------------------+
    |        +------+            |            - its side is one of `SIDES`, so that lesions batch
    |        | ##   |            |            - it moves when the lesion comes near its border
    |        |  ### |            |            - it grows when an answer reaches its border: the slice is asked again
    |        +------+            |            - its position codes are those of its place on the tile
    +----------------------------+

A remembered slice keeps its mask on the whole tile. Its memory is computed for the window of now, and again when that
window moves or grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.inference.encoded_volume import UNCOVERED_LOGIT, EncodedVolume
from mois.interfaces import Backbone, Memory, TrackingRules
from mois.records import Features, MaskPrediction, Windows

CELL_PX = 16
"""Pixels of a cell of the coarsest level."""
MASK_CELLS = CELL_PX // 4
"""Cells of a mask in a cell of the coarsest level."""
SIDES = (10, 12, 16, 24, 32, 48)
"""Sides of windows, in cells. A lesion that needs more than the largest that is smaller than the tile gets the tile."""
MARGIN = 4
"""Cells around the box of a lesion, at least, in a new window. With 2 cells, masks agreed at .96 instead of .98."""


class Window(NamedTuple):
    """A square part of a tile: its side and its first row and column, in cells of the coarsest level."""

    side: int
    top: int
    left: int


Box = tuple[int, int, int, int]
"""First row, first column, last row and last column of a mask, in cells of the coarsest level."""


def window_around(box: Box, tile_cells: int, window: Window | None = None) -> Window:
    """Return the window for a lesion.

    Args:
        box: The lesion's box.
        tile_cells: Edge of the tile in cells.
        window: The window so far. It stays as long as a cell is left between the lesion and each border that is no
            border of the tile, and the lesion does not fit two sizes less.
    """
    top, left, bottom, right = box
    extent = max(bottom - top, right - left) + 1
    fitting = [side for side in SIDES if side < tile_cells and side >= extent + 2 * MARGIN]
    side = fitting[0] if fitting else tile_cells
    if window is not None and not reaches_border(box, window, tile_cells) and window.side <= _next(side, tile_cells):
        return window
    corners = [
        min(max((first + last + 1 - side) // 2, 0), tile_cells - side) for first, last in ((top, bottom), (left, right))
    ]
    return Window(side, *corners)


def reaches_border(box: Box, window: Window, tile_cells: int) -> bool:
    """Return whether a box lies in the outermost cells of a window, or beyond them, where the tile goes on."""
    low = any(first <= start and start > 0 for first, start in zip(box[:2], window[1:], strict=True))
    ends = [start + window.side for start in window[1:]]
    return low or any(last >= end - 1 and end < tile_cells for last, end in zip(box[2:], ends, strict=True))


def _next(side: int, tile_cells: int) -> int:
    return next((larger for larger in SIDES if side < larger < tile_cells), tile_cells)


def boxes_of(logits: Tensor) -> list[Box | None]:
    """Return the boxes of N masks (N, P / 4, P / 4) on tiles; None for an empty mask. The host waits once."""
    inside = logits > 0
    found = []
    for axis in (2, 1):
        line = inside.any(axis)  # (N, P / 4)
        size = line.shape[1]
        place = torch.arange(size, device=line.device)
        found += [torch.where(line, place, size).amin(1), torch.where(line, place, -1).amax(1)]
    top, bottom, left, right = torch.stack(found).cpu().tolist()
    return [
        None if b < 0 else (t // MASK_CELLS, le // MASK_CELLS, b // MASK_CELLS, r // MASK_CELLS)
        for t, le, b, r in zip(top, left, bottom, right, strict=True)
    ]


def cut(features: Features, windows: Sequence[Window], tile_px: int) -> Features:
    """Return windows of equal sides of the features of N tiles, as features of N small images."""
    side = windows[0].side
    if side * CELL_PX == tile_px:
        return features

    def part(maps: Tensor, scale: int) -> Tensor:
        edge = side * scale
        parts = [
            maps[n, ..., top * scale : top * scale + edge, left * scale : left * scale + edge]
            for n, (_, top, left) in enumerate(windows)
        ]
        return torch.stack(parts)

    cells = tile_px // CELL_PX
    levels = tuple(part(level, level.shape[-1] // cells) for level in features.levels)
    corners = torch.tensor([window[1:] for window in windows]).to(features.position.device, non_blocking=True)
    return Features(
        levels,
        part(features.position, 1),
        part(features.image, CELL_PX),
        features.conditioned,
        Windows(corners, tile_px),
    )


def cut_masks(masks: Tensor, windows: Sequence[Window]) -> Tensor:
    """Return the parts of N masks (N, P / 4, P / 4) on tiles that lie in windows of equal sides."""
    return torch.stack([masks[n][_inside(window)] for n, window in enumerate(windows)])


def _inside(window: Window) -> tuple[slice, slice]:
    top, left, edge = window.top * MASK_CELLS, window.left * MASK_CELLS, window.side * MASK_CELLS
    return slice(top, top + edge), slice(left, left + edge)


class Slice(NamedTuple):
    """A slice on which N lesions were found: rows (N,), masks (N, P / 4, P / 4), pointers (N, D), presence (N,)."""

    rows: npt.NDArray[np.int64]
    logits: Tensor
    pointer: Tensor
    presence: Tensor


@dataclass
class Remembered:
    """A slice that N lesions remember.

    Attributes:
        rows: (N,) rows of an `EncodedVolume`.
        logits: (N, P / 4, P / 4), the masks on whole tiles.
        pointer: (N, D).
        presence: (N,).
        hard: Whether a reader accepted the masks.
        known: What each lesion remembers within its window, once it was asked for.
    """

    rows: npt.NDArray[np.int64]
    logits: Tensor
    pointer: Tensor
    presence: Tensor
    hard: bool = False
    known: list[tuple[Window, Memory] | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Nothing is known yet."""
        self.known = self.known or [None] * len(self.rows)

    def pick(self, index: npt.NDArray[np.int64]) -> Remembered:
        """Return what the lesions at `index` remember."""
        at = torch.from_numpy(index).to(self.logits.device, non_blocking=True)
        known = [self.known[n] for n in index.tolist()]
        return Remembered(self.rows[index], self.logits[at], self.pointer[at], self.presence[at], self.hard, known)

    def memory(
        self, backbone: Backbone, encoded: EncodedVolume, index: Sequence[int], windows: Sequence[Window]
    ) -> Memory:
        """Return what the lesions at `index` remember within windows of equal sides."""
        missing = [n for n, at in enumerate(index) if (kept := self.known[at]) is None or kept[0] != windows[n]]
        if missing:
            some, places = [index[n] for n in missing], [windows[n] for n in missing]
            features = cut(encoded.select(self.rows[some]), places, encoded.tile_px)
            masks = cut_masks(self.logits[some], places)
            new = backbone.remember_slice(features, masks, self.pointer[some], self.presence[some], hard=self.hard)
            for n, (at, window) in enumerate(zip(some, places, strict=True)):
                self.known[at] = window, new.part(n)
        return Memory.stack([kept[1] for at in index if (kept := self.known[at]) is not None])


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
        self.windows = [self._around(box, None) for box in boxes_of(self.clicked[0][1].logits)]

    @property
    def _cells(self) -> int:
        return self.encoded.tile_px // CELL_PX

    def _around(self, box: Box | None, window: Window | None) -> Window:
        if box is None:
            return window or Window(self._cells, 0, 0)
        return window_around(box, self._cells, window)

    def answer(self, step: int, going: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> MaskPrediction:
        """See `mois.inference.lesion_tracking`.

        Where an answer reaches the border of its window, the window grows, and the slice is asked again.
        """
        parts: list[MaskPrediction | None] = [None] * len(going)
        waiting = list(range(len(going)))
        while waiting:
            sides = {self.windows[going[n]].side for n in waiting}
            again = []
            for side in sorted(sides):
                group = [n for n in waiting if self.windows[going[n]].side == side]
                answer = self._ask(step, [int(going[n]) for n in group], rows[group])
                for position, (n, box) in enumerate(zip(group, boxes_of(answer.logits), strict=True)):
                    parts[n] = MaskPrediction(*(part[position : position + 1] for part in answer))
                    window = self.windows[going[n]]
                    if box is not None and reaches_border(box, window, self._cells):
                        again.append(n)
                        self.windows[going[n]] = self._larger(box, window)
            waiting = again
        return MaskPrediction(*(torch.cat(part) for part in zip(*(part for part in parts if part), strict=True)))

    def _larger(self, box: Box, window: Window) -> Window:
        """Return a window around a box with a larger side than that of a window."""
        wanted = window_around(box, self._cells)
        side = max(wanted.side, _next(window.side, self._cells))
        top, left = (
            min(max((first + last + 1 - side) // 2, 0), self._cells - side)
            for first, last in ((box[0], box[2]), (box[1], box[3]))
        )
        return Window(side, top, left)

    def _ask(self, step: int, tracks: list[int], rows: npt.NDArray[np.int64]) -> MaskPrediction:
        """Return the answer for tracks whose windows have equal sides, on whole tiles."""
        windows = [self.windows[track] for track in tracks]
        known = [
            (step + behind, slice_.memory(self.backbone, self.encoded, tracks, windows))
            for behind, slice_ in self.clicked
        ]
        memory = self.rules.gather(known, self._latest(tracks, windows, known[0][1]), slices=len(self.encoded.row_of))
        distinct, number = np.unique(rows, return_inverse=True)
        features = self.encoded.select(distinct)
        image = torch.from_numpy(number).to(features.position.device, non_blocking=True)
        if windows[0].side < self._cells:
            features = cut(features.select(image), windows, self.encoded.tile_px)
            image = torch.arange(len(rows), device=image.device)
        answer = self.backbone.decode(self.backbone.attend_on(features, image, memory), None)
        return self._on_tiles(answer, windows)

    @property
    def _most(self) -> int:
        return max(self.rules.maps, self.rules.maps if self.rules.pointers is None else self.rules.pointers)

    def _latest(self, tracks: list[int], windows: Sequence[Window], one: Memory) -> list[Memory]:
        """Return what tracks remember of the latest slices. `one` is any memory of a slice of these tracks."""
        maps = self.rules.maps
        pointers = maps if self.rules.pointers is None else self.rules.pointers
        parts = []
        for age, slice_ in enumerate(self.latest, start=1):
            if age <= maps:
                part = slice_.memory(self.backbone, self.encoded, tracks, windows)
            else:
                part = one.without_map()._replace(pointers=slice_.pointer[tracks].unsqueeze(1))
            parts.append(part.without_pointer() if age > pointers else part)
        return parts

    def _on_tiles(self, answer: MaskPrediction, windows: Sequence[Window]) -> MaskPrediction:
        """Return an answer on windows as one on whole tiles. Nothing is there outside."""
        if windows[0].side == self._cells:
            return answer
        edge = self._cells * MASK_CELLS
        logits = answer.logits.new_full((len(windows), edge, edge), UNCOVERED_LOGIT)
        candidates = answer.candidates.new_full((*answer.candidates.shape[:2], edge, edge), UNCOVERED_LOGIT)
        for n, window in enumerate(windows):
            logits[n][_inside(window)] = answer.logits[n]
            candidates[n][:, *_inside(window)] = answer.candidates[n]
        return answer._replace(logits=logits, candidates=candidates)

    def keep(self, going: npt.NDArray[np.int64], kept: npt.NDArray[np.int64], latest: Slice) -> None:
        """See `mois.inference.lesion_tracking`: remember a slice, and go on with the tracks at `going[kept]`."""
        index = going[kept]
        self.clicked = [(behind, slice_.pick(index)) for behind, slice_ in self.clicked]
        self.latest = [Remembered(*latest), *(slice_.pick(index) for slice_ in self.latest[: self._most - 1])]
        self.windows = [
            self._around(box, self.windows[at]) for at, box in zip(index.tolist(), boxes_of(latest.logits), strict=True)
        ]
