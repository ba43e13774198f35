"""A mask kept as its bounding box and what lies in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mois.lesions import Mask

Region = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class BoxMask:
    """A lesion's voxels, as the box that holds them.

    Attributes:
        corner: Slice, row and column of the box's first voxel in the scan's stack (S, H, W).
        inside: (s, h, w) bool.
    """

    corner: tuple[int, int, int]
    inside: Mask

    def __post_init__(self) -> None:
        self.inside.setflags(write=False)

    @classmethod
    def of(cls, mask: Mask, corner: tuple[int, int, int] = (0, 0, 0)) -> BoxMask:
        """Cut a mask (s, h, w), whose first voxel is `corner`, to what it holds."""
        where = ndimage.find_objects(mask.astype(np.uint8))
        if not where:
            return cls((0, 0, 0), np.zeros((0, 0, 0), dtype=bool))
        first = tuple(start + part.start for start, part in zip(corner, where[0], strict=True))
        return cls((first[0], first[1], first[2]), mask[where[0]].copy())

    @property
    def region(self) -> Region:
        """Where the box lies in the stack."""
        a, b, c = (slice(start, start + n) for start, n in zip(self.corner, self.inside.shape, strict=True))
        return a, b, c

    @property
    def voxels(self) -> int:
        """How many voxels it has."""
        return int(self.inside.sum())

    def equals(self, other: BoxMask) -> bool:
        """Return whether two masks have the same voxels."""
        return self.corner == other.corner and np.array_equal(self.inside, other.inside)

    def on_slice(self, index: int, shape: tuple[int, int]) -> Mask:
        """Return the voxels on a slice, (H, W) bool."""
        plane = np.zeros(shape, dtype=bool)
        place = index - self.corner[0]
        if 0 <= place < len(self.inside):
            plane[self.region[1:]] = self.inside[place]
        return plane

    def largest_slice(self, among: Sequence[int] | None = None) -> int:
        """Return the slice (of those named) on which it has most voxels, the first of equals; -1 where it has none."""
        counts = self.inside.sum((1, 2))
        area = {self.corner[0] + n: int(count) for n, count in enumerate(counts) if count}
        chosen = [index for index in (area if among is None else among) if index in area]
        return max(chosen, key=lambda index: (area[index], -index)) if chosen else -1

    def overlap(self, other: BoxMask) -> int:
        """Return how many voxels two masks share."""
        parts = _common(self, other)
        return int((self.inside[parts[0]] & other.inside[parts[1]]).sum()) if parts else 0

    def minus(self, others: Iterable[BoxMask]) -> BoxMask:
        """Return what is in none of the others."""
        left: Mask | None = None
        for other in others:
            parts = _common(self, other)
            if parts and (self.inside[parts[0]] & other.inside[parts[1]]).any():
                left = self.inside.copy() if left is None else left
                left[parts[0]] &= ~other.inside[parts[1]]
        return self if left is None else BoxMask.of(left, self.corner)

    def paint(self, stack: npt.NDArray[np.generic], value: float) -> None:
        """Give its voxels in a stack (S, H, W) a value."""
        stack[self.region][self.inside] = value

    def centre(self) -> tuple[float, float, float]:
        """Return the slice, row and column of the centre of mass; NaN where it is empty."""
        if not self.inside.size:
            return (np.nan, np.nan, np.nan)
        middle = np.argwhere(self.inside).mean(0) + self.corner
        return float(middle[0]), float(middle[1]), float(middle[2])


def _common(one: BoxMask, two: BoxMask) -> tuple[Region, Region] | None:
    """Return where two boxes meet, in the voxels of each."""
    low = [max(a.start, b.start) for a, b in zip(one.region, two.region, strict=True)]
    high = [min(a.stop, b.stop) for a, b in zip(one.region, two.region, strict=True)]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return None
    first, second = (
        tuple(slice(a - start, b - start) for a, b, start in zip(low, high, mask.corner, strict=True))
        for mask in (one, two)
    )
    return (first[0], first[1], first[2]), (second[0], second[1], second[2])
