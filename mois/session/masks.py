"""Masks of lesions: kept as a bounding box, checked when a reader gives them, and packed for the journal."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mois.files.json_records import as_record
from mois.grid import Grid, put_on
from mois.lesions import Mask
from mois.records import Volume
from mois.scans.labels import array_of, one_mask
from mois.scans.volumes import read_on_grid
from mois.session.journal import PackedMask

Region = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class BoxMask:
    """The voxels of a lesion, kept as their bounding box.

    Attributes:
        corner: Slice, row and column of the first voxel of the box in the scan's stack (S, H, W).
        inside: Voxels of the box, (s, h, w) bool.
    """

    corner: tuple[int, int, int]
    inside: Mask

    def __post_init__(self) -> None:
        self.inside.setflags(write=False)

    @classmethod
    def of(cls, mask: Mask, corner: tuple[int, int, int] = (0, 0, 0)) -> BoxMask:
        """Return a mask (s, h, w) cut to its bounding box; `corner` is the place of its first voxel in the stack."""
        where = ndimage.find_objects(mask.astype(np.uint8))
        if not where:
            return cls((0, 0, 0), np.zeros((0, 0, 0), dtype=bool))
        first = tuple(start + part.start for start, part in zip(corner, where[0], strict=True))
        return cls((first[0], first[1], first[2]), mask[where[0]].copy())

    @property
    def region(self) -> Region:
        """Slices of the stack that cut out the box."""
        a, b, c = (slice(start, start + n) for start, n in zip(self.corner, self.inside.shape, strict=True))
        return a, b, c

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return int(self.inside.sum())

    def equals(self, other: BoxMask) -> bool:
        """Return whether two masks have the same voxels."""
        return self.corner == other.corner and np.array_equal(self.inside, other.inside)

    def on_slice(self, index: int, shape: tuple[int, int]) -> Mask:
        """Return the voxels on slice `index`, (H, W) bool."""
        plane = np.zeros(shape, dtype=bool)
        row = index - self.corner[0]
        if 0 <= row < len(self.inside):
            plane[self.region[1:]] = self.inside[row]
        return plane

    def largest_slice(self, among: Sequence[int] | None = None) -> int:
        """Return the first slice (of `among`, if given) with most voxels; -1 if no slice has a voxel."""
        counts = self.inside.sum((1, 2))
        area = {self.corner[0] + n: int(count) for n, count in enumerate(counts) if count}
        chosen = [index for index in (area if among is None else among) if index in area]
        return max(chosen, key=lambda index: (area[index], -index)) if chosen else -1

    def overlap(self, other: BoxMask) -> int:
        """Return the number of voxels that two masks share."""
        parts = _common(self, other)
        return int((self.inside[parts[0]] & other.inside[parts[1]]).sum()) if parts else 0

    def minus(self, others: Iterable[BoxMask]) -> BoxMask:
        """Return the voxels that are in none of the other masks."""
        left: Mask | None = None
        for other in others:
            parts = _common(self, other)
            if parts and (self.inside[parts[0]] & other.inside[parts[1]]).any():
                left = self.inside.copy() if left is None else left
                left[parts[0]] &= ~other.inside[parts[1]]
        return self if left is None else BoxMask.of(left, self.corner)

    def paint(self, stack: npt.NDArray[np.generic], value: float) -> None:
        """Set the voxels of the mask in a stack (S, H, W) to a value."""
        stack[self.region][self.inside] = value

    def centre(self) -> tuple[float, float, float]:
        """Return slice, row and column of the centre of mass; NaN if the mask is empty."""
        if not self.inside.size:
            return (np.nan, np.nan, np.nan)
        middle = np.argwhere(self.inside).mean(0) + self.corner
        return float(middle[0]), float(middle[1]), float(middle[2])


def _common(first: BoxMask, second: BoxMask) -> tuple[Region, Region] | None:
    """Return the region that two boxes share, in voxels of each box; None if they share none."""
    low = [max(a.start, b.start) for a, b in zip(first.region, second.region, strict=True)]
    high = [min(a.stop, b.stop) for a, b in zip(first.region, second.region, strict=True)]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return None
    in_first, in_second = (
        tuple(slice(a - start, b - start) for a, b, start in zip(low, high, mask.corner, strict=True))
        for mask in (first, second)
    )
    return (in_first[0], in_first[1], in_first[2]), (in_second[0], in_second[1], in_second[2])


def checked_mask(mask: Any, volume: Volume, affine: Any = None) -> Mask:
    """Return a mask of the reader as bool (I, J, K), in the voxel order of the scan.

    Args:
        mask: Array (I, J, K), or an image file, whose header states its position.
        volume: The scan.
        affine: From voxel indices of the array to RAS mm, (4, 4). None: the array is stored as the scan is.

    Raises:
        ValueError: If the mask is not on the scan's grid, is empty, or is not a mask (several labels, logits).
    """
    scan = f"scan {volume.subject}"
    if isinstance(mask, Path | str):
        return _some(one_mask(read_on_grid(Path(mask), volume.grid, scan), mask), str(mask))
    given = array_of(mask)
    try:
        given = put_on(given, Grid.of(given.shape, volume.affine if affine is None else affine), volume.grid, scan)
    except ValueError as error:
        raise ValueError(f"mask: {error}") from error
    return _some(one_mask(given, "mask"), "mask")


def _some(mask: Mask, name: str) -> Mask:
    if not mask.any():
        raise ValueError(f"{name}: it is empty; give a mask with at least one voxel.")
    return mask


def pack_mask(mask: Mask) -> dict[str, Any]:
    """Return a mask (I, J, K) on the scanner's grid as JSON: its bounding box, and its bits, compressed."""
    box = BoxMask.of(mask)
    bits = zlib.compress(np.packbits(box.inside.ravel()).tobytes(), 6)
    return {
        "corner": list(box.corner),
        "shape": list(box.inside.shape),
        "bits": base64.b64encode(bits).decode("ascii"),
    }


def same_masks(first: Any, second: Any) -> bool:
    """Return whether two packed masks have the same voxels, however they are compressed; False if one is no mask."""
    try:
        boxes = [[packed["corner"], packed["shape"]] for packed in (first, second)]
        bits = [zlib.decompress(base64.b64decode(packed["bits"])) for packed in (first, second)]
    except (KeyError, TypeError, ValueError, zlib.error):
        return False
    return boxes[0] == boxes[1] and bits[0] == bits[1]


def unpack_mask(packed: Mapping[str, Any], shape: tuple[int, ...]) -> Mask:
    """Return the mask (I, J, K) bool that `pack_mask` packed.

    Args:
        packed: The mask as JSON.
        shape: Shape (I, J, K) of the scan.

    Raises:
        ValueError: If it is damaged, or does not fit into the scan.
    """
    given = as_record(dict(packed), PackedMask, "the mask")
    ends = [start + count for start, count in zip(given.corner, given.shape, strict=True)]
    if min(*given.corner, *given.shape) < 0 or any(end > most for end, most in zip(ends, shape, strict=True)):
        raise ValueError(f"mask: its box ends at {ends}, the scan has {list(shape)} voxels; give a mask of this scan.")
    voxels = math.prod(given.shape)
    try:
        content = zlib.decompressobj().decompress(base64.b64decode(given.bits, validate=True), -(-voxels // 8) + 1)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"mask: its bits are damaged ({error}); take a copy of the journal.") from error
    if len(content) != -(-voxels // 8):
        raise ValueError("mask: it has other bits than its shape; take a copy of the journal.")
    inside = np.unpackbits(np.frombuffer(content, dtype=np.uint8), count=voxels).astype(bool).reshape(given.shape)
    full = np.zeros(shape, dtype=bool)
    BoxMask(given.corner, inside).paint(full, True)
    return full
