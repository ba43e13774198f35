"""Changes of axes, orientations and units: scans become stacks of pictures, pictures become tiles. Nothing else does.

A stack is (S, H, W): S slices, H rows from the picture's top, W columns from its left. Slices run towards the patient's
left (sagittal), back (coronal) or head (axial). Points outside a scan's own grid are LPS millimetres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt
import torch
from nibabel.orientations import io_orientation
from torch import Tensor
from torch.nn import functional

from mois.grid import MOST_VOXELS, Grid
from mois.machine.processes import memory_bytes

SliceAxis = Literal["auto", "left-right", "anterior-posterior", "superior-inferior"]

# axes of the RAS world
_AXES = {"left-right": 0, "anterior-posterior": 1, "superior-inferior": 2}
# slice axis -> world axis and sign of slices, rows and columns: rows of a coronal picture go towards the feet (-z)
_PICTURES: dict[int, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    0: ((0, -1), (2, -1), (1, -1)),
    1: ((1, -1), (2, -1), (0, -1)),
    2: ((2, 1), (1, -1), (0, -1)),
}
_TIE = 0.99
LARGEST_TILE = 4.0
"""Largest edge of a tile, as a multiple of the longer edge of a slice. A larger tile shows mostly empty space."""
MOST_PIXELS = 2**15 - 1
"""Largest edge of a picture in pixels: positions in a picture are stored as int16."""


@dataclass(frozen=True, eq=False)
class SliceGrid:
    """Conversion of the voxels of a scan to a stack of pictures and back, for any orientation of the file.

    Coronal pictures: rows from superior to inferior, columns from the patient's right to left. Axial: rows from
    anterior to posterior, columns from right to left. Sagittal: rows from superior to inferior, columns from anterior
    to posterior.

    Attributes:
        shape: (I, J, K) of the scan.
        affine: (4, 4) float64, voxel indices to RAS millimetres.
        order: The voxel axes that slices, rows and columns are taken from.
        flipped: Whether slices, rows and columns run against their voxel axis.
        spacing_mm: Distance between slices, rows and columns.
    """

    shape: tuple[int, int, int]
    affine: Tensor
    order: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    spacing_mm: tuple[float, float, float]

    @staticmethod
    def of(shape: tuple[int, int, int], affine: Tensor, slice_axis: SliceAxis = "auto") -> SliceGrid:
        """Return the grid of a scan.

        Args:
            shape: (I, J, K) of the scan.
            affine: (4, 4), voxel indices to RAS millimetres.
            slice_axis: Direction across the slices. "auto" is the axis with the largest spacing. On a tie (within 1 %),
                superior-inferior comes before anterior-posterior, and that before left-right. An axis of one voxel
                comes before all others, so a scan of one slice is taken as this slice.

        Raises:
            ValueError: If the slice axis does not exist or the affine has no inverse.
        """
        if slice_axis != "auto" and slice_axis not in _AXES:
            raise ValueError(f"slice_axis={slice_axis!r} does not exist; choose auto, {', '.join(_AXES)}.")
        grid = Grid.of(shape, affine)
        facing = io_orientation(grid.affine.numpy())  # per voxel axis: its world axis, and the sign along it
        of_world = {int(world): (axis, int(sign)) for axis, (world, sign) in enumerate(facing)}
        voxel_mm = {world: grid.spacing_mm[axis] for world, (axis, _) in of_world.items()}
        thin = [world for world in (2, 1, 0) if grid.shape[of_world[world][0]] == 1]
        if slice_axis == "auto":
            eligible = thin or [2, 1, 0]
            coarsest = max(voxel_mm[world] for world in eligible)
            across = next(world for world in eligible if voxel_mm[world] >= _TIE * coarsest)
        else:
            across = _AXES[slice_axis]
        axes = [of_world[world] for world, _ in _PICTURES[across]]
        flips = [found != wanted for (_, found), (_, wanted) in zip(axes, _PICTURES[across], strict=True)]
        spacing = [grid.spacing_mm[axis] for axis, _ in axes]
        return SliceGrid(
            grid.shape,
            grid.affine,
            (axes[0][0], axes[1][0], axes[2][0]),
            (flips[0], flips[1], flips[2]),
            (spacing[0], spacing[1], spacing[2]),
        )

    @property
    def stack_shape(self) -> tuple[int, int, int]:
        """(S, H, W)."""
        return self.shape[self.order[0]], self.shape[self.order[1]], self.shape[self.order[2]]

    @property
    def gap_mm(self) -> float:
        """Distance between slices."""
        return self.spacing_mm[0]

    @property
    def row_mm(self) -> float:
        """Distance between rows: height of a pixel."""
        return self.spacing_mm[1]

    @property
    def column_mm(self) -> float:
        """Distance between columns: width of a pixel."""
        return self.spacing_mm[2]

    @property
    def edges_mm(self) -> tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]:
        """Steps to the next slice, row and column, each in RAS mm along x, y and z."""
        steps = self.affine[:3, list(self.order)].T * torch.tensor([[-1.0 if flip else 1.0] for flip in self.flipped])
        slices, rows, columns = ((x, y, z) for x, y, z in steps.tolist())
        return slices, rows, columns

    @property
    def extent_mm(self) -> float:
        """Longer edge of a slice."""
        return max(self.stack_shape[1] * self.row_mm, self.stack_shape[2] * self.column_mm)

    def to_stack(self, array: Tensor) -> Tensor:
        """Return a scan's array (I, J, K) as a stack (S, H, W), same values."""
        self._check(array, self.shape, "a scan")
        flips = [axis for axis, flip in enumerate(self.flipped) if flip]
        return array.permute(self.order).flip(flips).contiguous()

    def view(self, array: Tensor) -> npt.NDArray[Any]:
        """Return a scan's array (I, J, K) on the CPU as a stack (S, H, W) that shares its memory."""
        self._check(array, self.shape, "a scan")
        turned = array.numpy().transpose(self.order)
        return turned[tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)]

    def to_volume(self, stack: Tensor) -> Tensor:
        """Return a stack (S, H, W) as a scan's array (I, J, K): the exact inverse of `to_stack`."""
        self._check(stack, self.stack_shape, "a stack")
        flips = [axis for axis, flip in enumerate(self.flipped) if flip]
        inverse = [self.order.index(axis) for axis in range(3)]
        return stack.flip(flips).permute(inverse).contiguous()

    def to_stack_index(self, points_lps_mm: Tensor) -> Tensor:
        """Return slice, row, column (N, 3) float64 of points (N, 3) in LPS mm; whole numbers are voxel centres."""
        ras = points_lps_mm.to("cpu", torch.float64) * torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
        voxels = torch.linalg.solve(self.affine[:3, :3], (ras - self.affine[:3, 3]).T).T
        return self._mirror(voxels[:, list(self.order)])

    def to_lps_mm(self, index: Tensor) -> Tensor:
        """Return where slice, row, column (N, 3) lie, (N, 3) float64 in LPS mm: the inverse of `to_stack_index`."""
        inverse = [self.order.index(axis) for axis in range(3)]
        voxels = self._mirror(index.to("cpu", torch.float64))[:, inverse]
        ras = voxels @ self.affine[:3, :3].T + self.affine[:3, 3]
        return ras * torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)

    def picture_shape(self, pixel_mm: float) -> tuple[int, int]:
        """Return the (rows, columns) of a slice at this pixel."""
        _, height, width = self.stack_shape
        return max(1, round(height * self.row_mm / pixel_mm)), max(1, round(width * self.column_mm / pixel_mm))

    def to_picture_index(self, index: Tensor, pixel_mm: float) -> Tensor:
        """Return slice, row, column (N, 3) of the stack as those of the stack at `pixel_mm`."""
        return (index + 0.5) * self._zoom(pixel_mm).to(index) - 0.5

    def _zoom(self, pixel_mm: float) -> Tensor:
        (_, height, width), (rows, columns) = self.stack_shape, self.picture_shape(pixel_mm)
        return torch.tensor([1.0, rows / height, columns / width], dtype=torch.float64)

    def _mirror(self, index: Tensor) -> Tensor:
        last = torch.tensor(self.stack_shape, dtype=torch.float64) - 1
        return torch.where(torch.tensor(self.flipped), last - index, index)

    @staticmethod
    def _check(array: Tensor, shape: tuple[int, int, int], what: str) -> None:
        if tuple(array.shape) != shape:
            raise ValueError(f"{what} of this grid has shape {shape}, got {tuple(array.shape)}.")


def resample_stack(stack: Tensor, grid: SliceGrid, pixel_mm: float, *, nearest: bool = False) -> Tensor:
    """Return a stack with square pixels.

    Args:
        stack: (S, H, W), any dtype if `nearest`, else float.
        grid: Of the scan that the stack came from.
        pixel_mm: Edge of the new pixels; slices stay where they are.
        nearest: Take values instead of blending them (label maps).

    Returns:
        (S, H2, W2), `grid.picture_shape(pixel_mm)`, covering the same millimetres.

    Raises:
        ValueError: As `check_pictures` does.
    """
    SliceGrid._check(stack, grid.stack_shape, "a stack")
    check_pictures(grid, pixel_mm)
    return _resize(stack, grid.picture_shape(pixel_mm), nearest=nearest)


def check_pictures(grid: SliceGrid, pixel_mm: float) -> None:
    """Refuse pictures that are too large, before memory is taken for them.

    Raises:
        ValueError: If the pixel size is no length, a scan of one slice would be cut into lines, or the pictures would
            hold more pixels than `MOST_VOXELS`.
    """
    if not 0 < pixel_mm < math.inf:
        raise ValueError(f"pixel_mm={pixel_mm} must be a length above 0.")
    slices, height, width = grid.stack_shape
    if slices > 1 and min(height, width) == 1:
        raise ValueError(
            f"slice_axis: a scan of one slice, shape {grid.shape}, would be cut into {slices} lines of "
            f"{height} x {width} pixels; set it to auto."
        )
    rows, columns = grid.picture_shape(pixel_mm)
    pixels, fitting = slices * rows * columns, min(MOST_VOXELS, memory_bytes() // 8)  # the stack, and a copy of it
    if pixels > fitting or max(rows, columns) > MOST_PIXELS:
        raise ValueError(
            f"pixel_mm={pixel_mm:g} makes {slices} pictures of {rows} x {columns} pixels of this scan ("
            f"{grid.row_mm:.4g} x {grid.column_mm:.4g} mm a voxel); at most {MOST_PIXELS} along an edge and "
            f"{fitting} in all can be worked on; set a larger pixel_mm, or correct the scan's spacing."
        )


def restore_stack(stack: Tensor, grid: SliceGrid, *, nearest: bool = False) -> Tensor:
    """Return a resampled stack (S, h, w) on the own pixels of the scan, (S, H, W)."""
    return _resize(stack, grid.stack_shape[1:], nearest=nearest)


def _resize(stack: Tensor, size: tuple[int, int], *, nearest: bool) -> Tensor:
    height, width = stack.shape[-2:]
    if (height, width) == size:
        return stack
    if nearest:
        rows = ((torch.arange(size[0], device=stack.device) + 0.5) * (height / size[0])).long().clamp(max=height - 1)
        columns = ((torch.arange(size[1], device=stack.device) + 0.5) * (width / size[1])).long().clamp(max=width - 1)
        return stack.index_select(-1, columns).index_select(-2, rows)  # rows are copied whole
    shrinks = size[0] < height or size[1] < width
    return functional.interpolate(stack.unsqueeze(1), size=size, mode="bilinear", antialias=shrinks).squeeze(1)


@dataclass(frozen=True, eq=False)
class TileGrid:
    """Overlapping square tiles that cover a picture. A picture smaller than a tile is padded at the bottom and right.

    Attributes:
        height: H of the picture.
        width: W of the picture.
        tile_px: Edge P of a tile in pixels.
        corners: (T, 2) int64, row and column of the top left pixel of each tile.
    """

    height: int
    width: int
    tile_px: int
    corners: Tensor

    @staticmethod
    def of(height: int, width: int, tile_px: int, overlap: float = 0.5) -> TileGrid:
        """Return the smallest number of evenly spread tiles that overlap by at least this share of their edge.

        Raises:
            ValueError: If the overlap is not in [0, 1) or an edge is below 1.
        """
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap={overlap} is the share of a tile's edge; choose 0 or more and below 1.")
        if min(height, width, tile_px) < 1:
            raise ValueError(f"a picture of {height} x {width} in tiles of {tile_px} px: every edge must be 1 or more.")
        stride = max(1, math.floor(tile_px * (1 - overlap)))
        rows, columns = (_starts(length, tile_px, stride) for length in (height, width))
        return TileGrid(height, width, tile_px, torch.cartesian_prod(rows, columns).view(-1, 2))

    def cut(self, picture: Tensor) -> Tensor:
        """Cut pictures (..., H, W) into tiles (T, ..., P, P)."""
        if tuple(picture.shape[-2:]) != (self.height, self.width):
            raise ValueError(f"tiles of a {self.height} x {self.width} picture, got {tuple(picture.shape[-2:])}.")
        edge = self.tile_px
        below, right = max(0, edge - self.height), max(0, edge - self.width)
        padded = functional.pad(picture, (0, right, 0, below)) if below or right else picture
        return torch.stack([padded[..., y : y + edge, x : x + edge] for y, x in self.corners.tolist()])

    def blend(self, tiles: Tensor, index: Tensor | None = None) -> Tensor:
        """Blend tiles into a picture, weighted by a Hann window.

        Args:
            tiles: (T, ..., P, P) float: all tiles, or the tiles in `index`.
            index: (T,) int, numbers of the tiles; None for all tiles.

        Returns:
            (..., H, W), 0 outside of the tiles.
        """
        chosen = self.corners if index is None else self.corners[index.to(self.corners.device)]
        if len(chosen) != len(tiles):
            raise ValueError(f"{len(tiles)} tiles to blend, but {len(chosen)} places for them; pass the index of each.")
        edge = self.tile_px
        ramp = torch.sin((torch.arange(edge, device=tiles.device, dtype=tiles.dtype) + 0.5) * (math.pi / edge)) ** 2
        window = ramp[:, None] * ramp[None, :]
        size = (max(self.height, edge), max(self.width, edge))
        total = tiles.new_zeros(*tiles.shape[1:-2], *size)
        weight = tiles.new_zeros(size)
        for tile, (y, x) in zip(tiles, chosen.tolist(), strict=True):
            total[..., y : y + edge, x : x + edge] += tile * window
            weight[y : y + edge, x : x + edge] += window
        picture = total / weight.clamp(min=torch.finfo(tiles.dtype).tiny)
        return picture[..., : self.height, : self.width]

    def best_tile(self, y: float, x: float) -> int:
        """Return the number of the tile whose centre is nearest to a pixel (row y, column x)."""
        centres = self.corners + (self.tile_px - 1) / 2
        return int(((centres - torch.tensor([y, x])) ** 2).sum(1).argmin())


def _starts(length: int, tile_px: int, stride: int) -> Tensor:
    """Return the first pixel of each tile along one edge of a picture, evenly spread."""
    last = max(0, length - tile_px)
    return torch.linspace(0, last, math.ceil(last / stride) + 1, dtype=torch.float64).round().long()
