"""Points of the reader, in LPS or RAS millimetres or in voxels, and their place in the stack of slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mois.geometry import SliceGrid
from mois.intensities import along_edges
from mois.records import Volume

MAX_COORDINATE = 1e6
"""Largest coordinate, in millimetres or voxels. No scan reaches that far from its origin."""

FRAMES = ("lps", "ras", "voxel")
POINT_FORMS = 'LPS mm; or {"ras": [x, y, z]} in mm, or {"voxel": [i, j, k]}'
AROUND_VOXELS = 2
"""Voxels around a point, in each direction, whose mean tells air from body."""
AIR_LEVEL, BODY_LEVEL = 0.03, 0.15
"""Share of the scan's range of intensities: air is below the first, the body is above the second."""


class VoxelPoint(NamedTuple):
    """A point in voxel indices of the scan, in the axis order of its file. Whole numbers are centres of voxels."""

    i: float
    j: float
    k: float


def read_point(given: Any) -> list[float] | VoxelPoint:
    """Return a point of a prompt file, in LPS mm or as a `VoxelPoint`.

    Raises:
        ValueError: If it is not a point; the message says what a point is.
    """
    frame, numbers = "lps", given
    if isinstance(given, dict):
        if len(given) != 1 or next(iter(given)) not in FRAMES:
            raise ValueError(f"a point must be three numbers, {POINT_FORMS}")
        ((frame, numbers),) = given.items()
    whole = isinstance(numbers, list) and len(numbers) == 3
    if not whole or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers):
        raise ValueError(f"a point must be three numbers, {POINT_FORMS}")
    if not all(abs(v) <= MAX_COORDINATE and math.isfinite(v) for v in numbers):
        raise ValueError(f"a point must be three numbers of at most {MAX_COORDINATE:.0f}, {POINT_FORMS}")
    x, y, z = (float(v) for v in numbers)
    if frame == "voxel":
        return VoxelPoint(x, y, z)
    return mirrored([x, y, z]) if frame == "ras" else [x, y, z]


def to_lps_mm(point: Sequence[float] | VoxelPoint, volume: Volume) -> list[float]:
    """Return a point in LPS millimetres.

    Raises:
        ValueError: If the point is given in voxels and lies outside the scan.
    """
    if not isinstance(point, VoxelPoint):
        return list(point)
    if not all(-0.5 <= index <= size - 0.5 for index, size in zip(point, volume.shape, strict=True)):
        last = ", ".join(str(size - 1) for size in volume.shape)
        raise ValueError(f"voxel={list(point)} lies outside the scan, whose voxels are 0, 0, 0 to {last}; correct it.")
    ras = volume.affine.double() @ torch.tensor([*point, 1.0], dtype=torch.float64)
    return mirrored(ras[:3].tolist())


def as_floats(point: Sequence[float] | Tensor) -> list[float]:
    """Return a point as a list of floats."""
    return [float(value) for value in point]


def mirrored(point: Sequence[float]) -> list[float]:
    """Return a point with x and y negated: from RAS to LPS, or from LPS to RAS."""
    x, y, z = point
    return [0.0 - x, 0.0 - y, z]


class StackPoint(NamedTuple):
    """A point in the scan's stack: index of its slice, and row and column in pixels (not rounded)."""

    slice_index: int
    row: float
    column: float

    @property
    def voxel(self) -> tuple[int, int, int]:
        """Slice, row and column of the voxel that holds the point."""
        return self.slice_index, round(self.row), round(self.column)


def stack_point(grid: SliceGrid, point_lps_mm: Sequence[float]) -> StackPoint:
    """Return the place of a point in the stack of a scan.

    Args:
        grid: Grid of the scan.
        point_lps_mm: The point, LPS mm.

    Raises:
        ValueError: If it is not a point, or lies outside the scan.
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
    return StackPoint(round(whole[0]), whole[1], whole[2])


def _index(grid: SliceGrid, point_lps_mm: Sequence[float]) -> tuple[list[float], bool]:
    """Return slice, row and column of a point, and whether the point lies in the scan."""
    index: list[float] = grid.to_stack_index(torch.tensor([list(point_lps_mm)], dtype=torch.float64))[0].tolist()
    return index, all(-0.5 <= value <= count - 0.5 for value, count in zip(index, grid.stack_shape, strict=True))


def ras_suspected(point_lps_mm: Sequence[float], volume: Volume) -> bool:
    """Return whether a point in LPS mm lies in air, and would lie in the body if it was meant as RAS.

    The mean intensity around the point decides, as a share of the scan's range (1st to 99th percentile): below 3 % is
    air, above 15 % is body. If the edges of the scan are brighter than air, nothing is air: around a difference of two
    scans lies a grey 0, and what is dark may be a lesion.
    """
    given, as_ras = (_brightness(point, volume) for point in (point_lps_mm, mirrored(point_lps_mm)))
    around = float(torch.from_numpy(along_edges(volume.image.numpy())).float().median())
    return given < AIR_LEVEL and as_ras > BODY_LEVEL and _share_of_range(around, volume) < AIR_LEVEL


def _brightness(point_lps_mm: Sequence[float], volume: Volume) -> float:
    """Return the mean intensity around a point as a share of the scan's range; 0 outside the scan."""
    inverse = torch.linalg.inv(volume.affine.double())
    voxel = (inverse @ torch.tensor([*mirrored(point_lps_mm), 1.0], dtype=torch.float64))[:3].round().long().tolist()
    if not all(0 <= index < size for index, size in zip(voxel, volume.shape, strict=True)):
        return 0.0
    box = tuple(slice(max(0, index - AROUND_VOXELS), index + AROUND_VOXELS + 1) for index in voxel)
    return _share_of_range(float(volume.image[box].float().mean()), volume)


def _share_of_range(intensity: float, volume: Volume) -> float:
    """Return an intensity as a share of the scan's range, 0 at its 1st percentile and 1 at its 99th."""
    sample = volume.image.reshape(-1)[:: max(1, volume.image.numel() // 100_000)].float()
    low, high = (float(torch.quantile(sample, share)) for share in (0.01, 0.99))
    return (intensity - low) / max(high - low, 1e-12)
