"""What a session knows at one moment; nothing in it ever changes, so that going back is exact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from torch import Tensor

from mois.exemplars import Exemplar
from mois.metrics import InstanceMap, Mask

Region = tuple[slice, slice, slice]
Kind = Literal["click", "box", "mask"]
Origin = Literal["prompted", "found"]


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


@dataclass(frozen=True)
class Prompt:
    """Something that the reader pointed at, on the scan's stack; equal prompts ask the same (of a mask, the very same).

    Attributes:
        kind: Click, box or mask.
        slice_index: Where; of a mask over several slices, the first.
        points: Row and column in the stack's pixels: of a click one, of a box two opposite corners, of a mask none.
        positive: Whether it belongs to the lesion.
        mask: Of a mask, its voxels.
    """

    kind: Kind
    slice_index: int
    points: tuple[tuple[float, float], ...] = ()
    positive: bool = True
    mask: BoxMask | None = None


@dataclass(frozen=True, eq=False)
class Lesion:
    """A lesion of the reader's, or one that was found.

    Attributes:
        mask: Its voxels, which no other lesion has.
        origin: Prompted by the reader, or found.
        prompts: All that the reader pointed at for it, in order.
        locked: Whether nothing may change it.
        accepted: Whether the reader called a found one right.
        peak: Highest probability within; 1 if it was prompted.
        confidence: That it is a lesion; 1 if the reader says so.
        explained_by: Key of the exemplar that it is most like; its own where it has one.
        novelty: How unlike that exemplar it is, where exemplars differ from each other by 1 in the mean.
        area_mm2: On the slice on which it is largest.
        mean_intensity: There, normalised.
    """

    mask: BoxMask
    origin: Origin
    prompts: tuple[Prompt, ...] = ()
    locked: bool = False
    accepted: bool = False
    peak: float = 1.0
    confidence: float = 1.0
    explained_by: str = ""
    novelty: float = 0.0
    area_mm2: float = 0.0
    mean_intensity: float = 0.0

    @property
    def owns(self) -> bool:
        """Whether its voxels are not for others to take."""
        return self.locked or self.origin == "prompted"


@dataclass(frozen=True)
class Maybe:
    """Something that might be a lesion but was not sure enough anywhere.

    Attributes:
        point: Slice, row and column of its surest voxel.
        peak: The probability there.
        voxels: How many voxels it has.
    """

    point: tuple[int, int, int]
    peak: float
    voxels: int


@dataclass(frozen=True, eq=False)
class State:
    """All that a session's answers depend on, besides scan and model.

    Attributes:
        lesions: By id, 1 or more; ids are never given twice.
        exemplars: By key, in the order in which they came.
        rejected: What the reader called wrong, by the key of its exemplar: nothing is found there any more.
        maybes: What the latest propagation was not sure of, the surest first.
        next_id: Of the next lesion.
        propagated: Whether the found lesions are there.
    """

    lesions: dict[int, Lesion] = field(default_factory=dict)
    exemplars: dict[str, Exemplar] = field(default_factory=dict)
    rejected: dict[str, BoxMask] = field(default_factory=dict)
    maybes: tuple[Maybe, ...] = ()
    next_id: int = 1
    propagated: bool = False

    def owned(self, but: int | None = None) -> list[BoxMask]:
        """Return the masks of locked and prompted lesions, but for one."""
        return [lesion.mask for number, lesion in self.lesions.items() if lesion.owns and number != but]

    def label_map(self, shape: tuple[int, int, int]) -> InstanceMap:
        """Return the lesions as an instance map (S, H, W) int32."""
        stack = np.zeros(shape, dtype=np.int32)
        for number, lesion in self.lesions.items():
            lesion.mask.paint(stack, number)
        return stack


@dataclass(frozen=True, eq=False)
class Preview:
    """What a click would show on its slice; `label_map().select(axis, index) == lesion` is the same once it is made.

    Attributes:
        lesion: The id that the click would return.
        axis: The scan's voxel axis across its slices: 0, 1 or 2.
        index: The clicked slice along it.
        mask: The lesion there, bool, (I, J, K) without that axis.
    """

    lesion: int
    axis: int
    index: int
    mask: Tensor
