"""Lesion windows: tracking looks only at a square part of a tile around the lesion, not at the whole tile.

    tile, 32 x 32 cells of 16 pixels          a window is a smaller tile: model and memories see nothing else
    +----------------------------+
    |        +------+            |            - its side is one of `SIDES`, so that lesions batch
    |        | ##   |            |            - it moves when the lesion comes near its border
    |        |  ### |            |            - it grows when an answer reaches its border: the slice is asked again
    |        +------+            |            - its position codes are those of its place on the tile
    +----------------------------+

Here is where windows lie, and how they are cut. `mois.inference.window_tracking` tracks in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mois.inference.encoded_volume import UNCOVERED_LOGIT
from mois.records import Features, Windows

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


def side_for(box: Box, tile_cells: int, window: Window | None = None) -> int:
    """Return the side of the window for a lesion.

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
    if (
        window is not None
        and not reaches_border(box, window, tile_cells)
        and window.side <= larger_side(side, tile_cells)
    ):
        return window.side
    return side


def place(box: Box, side: int, tile_cells: int, window: Window | None = None) -> Window:
    """Return a window of a side around a lesion: the window so far if it still serves."""
    if window is not None and window.side == side and not reaches_border(box, window, tile_cells):
        return window
    top, left, bottom, right = box
    corners = [
        min(max((first + last + 1 - side) // 2, 0), tile_cells - side) for first, last in ((top, bottom), (left, right))
    ]
    return Window(side, *corners)


def reaches_border(box: Box, window: Window, tile_cells: int) -> bool:
    """Return whether a box lies in the outermost cells of a window, or beyond them, where the tile goes on."""
    low = any(first <= start and start > 0 for first, start in zip(box[:2], window[1:], strict=True))
    ends = [start + window.side for start in window[1:]]
    return low or any(last >= end - 1 and end < tile_cells for last, end in zip(box[2:], ends, strict=True))


def larger_side(side: int, tile_cells: int) -> int:
    """Return the next larger side of windows on a tile."""
    return next((larger for larger in SIDES if side < larger < tile_cells), tile_cells)


def cells_worth_a_call(device: torch.device) -> int:
    """Return how many cells more a batch may have so that one call of the model less is a gain.

    A call is some 400 operations. On a GPU, the host needs some 15 ms to launch them, and a cell costs 1 to 3
    microseconds (one H100, Hiera-tiny, 512 px, float32). On a CPU a call costs hardly anything.
    """
    return 0 if device.type == "cpu" else 8192


def joined(sides: Sequence[int], worth: int) -> list[int]:
    """Return sides of windows of which smaller ones became larger, so that more of them share a batch.

    Args:
        sides: The sides that are wanted.
        worth: How many cells all windows of one side may gain together to share the batch of the next larger side.
    """
    larger = {side: side for side in sides}
    for side, following in pairwise(sorted(larger)):
        members = [each for each in sides if larger[each] == side]
        if len(members) * (following**2 - side**2) <= worth:
            larger |= dict.fromkeys(members, following)
    return [larger[side] for side in sides]


def boxes_of(logits: Tensor) -> list[Box | None]:
    """Return the boxes of N masks (N, P / 4, P / 4) on tiles; None for an empty mask. The host waits once."""
    inside = (functional.max_pool2d(logits, MASK_CELLS) > 0).cpu().numpy()  # (N, P / 16, P / 16)
    found: list[Box | None] = []
    for cells in inside:
        rows, columns = (np.flatnonzero(cells.any(axis)) for axis in (1, 0))
        found.append((int(rows[0]), int(columns[0]), int(rows[-1]), int(columns[-1])) if len(rows) else None)
    return found


class _Places:
    """Where N windows of equal sides lie on their tiles, as the index of one operation for all of them.

    Args:
        windows: The windows.
        image: The number of the tile of each window among the tiles that are cut.
        device: Device of the tiles.
    """

    def __init__(self, windows: Sequence[Window], image: Sequence[int], device: torch.device) -> None:
        self.side = windows[0].side
        where = [(number, window.top, window.left) for number, window in zip(image, windows, strict=True)]
        at = torch.tensor(where).to(device, non_blocking=True)
        self.corners = at[:, 1:]
        self._image, self._top, self._left = at.unbind(1)

    def cut(self, maps: Tensor, scale: int) -> Tensor:
        """Return the windows (N, ..., e, e) of maps (T, ..., E, E) of tiles that have `scale` numbers a cell."""
        view, at = self._index(maps, scale)
        return view[at]

    def paste(self, maps: Tensor, parts: Tensor, scale: int) -> None:
        """Write windows (N, ..., e, e) into maps (T, ..., E, E)."""
        view, at = self._index(maps, scale)
        view[at] = parts  # parts of one tile do not overlap: each has a tile of its own

    def _index(self, maps: Tensor, scale: int) -> tuple[Tensor, tuple[Tensor | slice, ...]]:
        edge, rows = self.side * scale, maps.dim() - 2
        view = maps.unfold(rows, edge, scale).unfold(rows + 1, edge, scale)  # (T, ..., corners, corners, e, e)
        return view, (self._image, *(slice(None),) * (rows - 1), self._top, self._left)


def cut(features: Features, windows: Sequence[Window], tile_px: int, image: Sequence[int] | None = None) -> Features:
    """Return N windows of equal sides of the features of tiles, as features of N small images.

    Args:
        features: Features of T tiles.
        windows: The windows.
        tile_px: Edge of a tile in pixels.
        image: The number of the tile of each window; None if each has its own, in order.
    """
    numbers = range(len(windows)) if image is None else image
    device = features.position.device
    if windows[0].side * CELL_PX == tile_px:
        return features if image is None else features.select(torch.tensor(numbers).to(device, non_blocking=True))
    places = _Places(windows, numbers, device)
    cells = tile_px // CELL_PX
    return Features(
        tuple(places.cut(level, level.shape[-1] // cells) for level in features.levels),
        places.cut(features.position, 1),
        places.cut(features.image, CELL_PX),
        features.conditioned,
        Windows(places.corners, tile_px),
    )


def cut_masks(masks: Tensor, windows: Sequence[Window]) -> Tensor:
    """Return the parts of N masks (N, P / 4, P / 4) on tiles that lie in windows of equal sides."""
    if windows[0].side * MASK_CELLS == masks.shape[-1]:
        return masks
    return _Places(windows, range(len(windows)), masks.device).cut(masks, MASK_CELLS)


def on_tiles(parts: Tensor, windows: Sequence[Window], tile_cells: int) -> Tensor:
    """Return masks (N, M, e, e) in windows of equal sides as masks on whole tiles. Nothing is there outside."""
    edge = tile_cells * MASK_CELLS
    tiles = parts.new_full((*parts.shape[:2], edge, edge), UNCOVERED_LOGIT)
    _Places(windows, range(len(windows)), parts.device).paste(tiles, parts, MASK_CELLS)
    return tiles
