"""Points as readers have them, in LPS or RAS millimetres or in voxels of the scan, and as sessions take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

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


def mirrored(point: Sequence[float]) -> list[float]:
    """Return the point with x and y negated: from RAS to LPS, and back."""
    x, y, z = point
    return [0.0 - x, 0.0 - y, z]


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
