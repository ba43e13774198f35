"""Points as readers have them, in LPS or RAS millimetres or in voxels of the scan, and as sessions take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mois.geometry import SliceGrid
from mois.records import Volume

FARTHEST = 1e6
"""In millimetres or voxels. No scan reaches further from its origin; a number beyond it is a slip."""

FRAMES = ("lps", "ras", "voxel")
FORMS = 'LPS mm; or {"ras": [x, y, z]} in mm, or {"voxel": [i, j, k]}'
NEAR_VOXELS = 2
DARK, BRIGHT = 0.03, 0.15


class VoxelPoint(NamedTuple):
    """A point in indices of the scan's voxels, in the order of its file; whole numbers are their centres."""

    i: float
    j: float
    k: float


def read_point(given: Any) -> list[float] | VoxelPoint:
    """Return a point of a file of prompts: in LPS mm, or a `VoxelPoint`, which needs the scan to become one.

    Raises:
        ValueError: Saying what a point must be.
    """
    frame, numbers = "lps", given
    if isinstance(given, dict):
        if len(given) != 1 or next(iter(given)) not in FRAMES:
            raise ValueError(f"a point must be three numbers, {FORMS}")
        ((frame, numbers),) = given.items()
    whole = isinstance(numbers, list) and len(numbers) == 3
    if not whole or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers):
        raise ValueError(f"a point must be three numbers, {FORMS}")
    if not all(abs(v) <= FARTHEST and math.isfinite(v) for v in numbers):
        raise ValueError(f"a point must be three numbers of at most {FARTHEST:.0f}, {FORMS}")
    x, y, z = (float(v) for v in numbers)
    if frame == "voxel":
        return VoxelPoint(x, y, z)
    return mirrored([x, y, z]) if frame == "ras" else [x, y, z]


def to_lps_mm(point: Sequence[float] | VoxelPoint, volume: Volume) -> list[float]:
    """Return a point in LPS millimetres.

    Raises:
        ValueError: If a voxel is none of the scan's.
    """
    if not isinstance(point, VoxelPoint):
        return list(point)
    if not all(-0.5 <= at <= size - 0.5 for at, size in zip(point, volume.shape, strict=True)):
        last = ", ".join(str(size - 1) for size in volume.shape)
        raise ValueError(f"voxel={list(point)} lies outside the scan, whose voxels are 0, 0, 0 to {last}; correct it.")
    ras = volume.affine.double() @ torch.tensor([*point, 1.0], dtype=torch.float64)
    return mirrored(ras[:3].tolist())


def as_floats(point: Sequence[float] | Tensor) -> list[float]:
    """Return a point as plain numbers."""
    return [float(value) for value in point]


def mirrored(point: Sequence[float]) -> list[float]:
    """Return the point with x and y negated: from RAS to LPS, and back."""
    x, y, z = point
    return [0.0 - x, 0.0 - y, z]


class Place(NamedTuple):
    """A point of the scan's stack: the slice, and row and column as they fell."""

    slice_index: int
    row: float
    column: float

    @property
    def voxel(self) -> tuple[int, int, int]:
        """Return the voxel that it lies in."""
        return self.slice_index, round(self.row), round(self.column)


def place_on(grid: SliceGrid, point_lps_mm: Sequence[float]) -> Place:
    """Return where a point lies in a scan.

    Raises:
        ValueError: If it is no point, or lies outside the scan.
    """
    if len(point_lps_mm) != 3 or not all(math.isfinite(value) for value in point_lps_mm):
        raise ValueError(f"point_lps_mm={list(point_lps_mm)} must be three numbers: left, back and head in mm.")
    index, inside = _index(grid, point_lps_mm)
    if not inside:
        last = torch.tensor([[0.0, 0.0, 0.0], [n - 1.0 for n in grid.stack_shape]], dtype=torch.float64)
        corners = grid.to_lps_mm(last)
        low, high = corners.amin(0).tolist(), corners.amax(0).tolist()
        span = ", ".join(f"{a:.0f} to {b:.0f}" for a, b in zip(low, high, strict=True))
        ras = "did you give RAS? Negate x and y" if _index(grid, mirrored(point_lps_mm))[1] else "correct it"
        raise ValueError(f"point_lps_mm={list(point_lps_mm)} lies outside the scan ({span} mm); {ras}.")
    whole = [min(max(value, 0.0), count - 1.0) for value, count in zip(index, grid.stack_shape, strict=True)]
    return Place(round(whole[0]), whole[1], whole[2])


def _index(grid: SliceGrid, point_lps_mm: Sequence[float]) -> tuple[list[float], bool]:
    """Return a point's place in the stack, and whether that is inside."""
    index: list[float] = grid.to_stack_index(torch.tensor([list(point_lps_mm)], dtype=torch.float64))[0].tolist()
    return index, all(-0.5 <= value <= count - 0.5 for value, count in zip(index, grid.stack_shape, strict=True))


def ras_suspected(point_lps_mm: Sequence[float], volume: Volume) -> bool:
    """Return whether a point lies outside the body, and within it if it was meant as RAS.

    The body is what is brighter around a point than 15 % of the scan's range, up to its 99th percentile; below 3 % it
    is air.
    """
    there, meant = (_brightness(point, volume) for point in (point_lps_mm, mirrored(point_lps_mm)))
    return there < DARK and meant > BRIGHT


def _brightness(point_lps_mm: Sequence[float], volume: Volume) -> float:
    """Return the mean around a point as a share of the scan's range; 0 outside the scan."""
    inverse = torch.linalg.inv(volume.affine.double())
    at = (inverse @ torch.tensor([*mirrored(point_lps_mm), 1.0], dtype=torch.float64))[:3].round().long().tolist()
    if not all(0 <= place < size for place, size in zip(at, volume.shape, strict=True)):
        return 0.0
    box = tuple(slice(max(0, place - NEAR_VOXELS), place + NEAR_VOXELS + 1) for place in at)
    some = volume.image.reshape(-1)[:: max(1, volume.image.numel() // 100_000)].float()
    low, high = (float(torch.quantile(some, share)) for share in (0.01, 0.99))
    return (float(volume.image[box].float().mean()) - low) / max(high - low, 1e-12)
