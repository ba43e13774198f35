"""What a session knows at one moment; nothing in it ever changes, so that going back is exact."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from mois.lesions import InstanceMap
from mois.session.masks import BoxMask
from mois.sharing.bank import Exemplar
from mois.sharing.bank_record import ExemplarFacts

Kind = Literal["click", "box", "mask"]
Origin = Literal["prompted", "found"]
MOST_LESIONS = 2**31 - 1
"""Maps hold ids as int32."""
_ARRAY = re.compile(r"[0-9]{6,}/[0-9]+")
"""Number of the file, then name of the array in it."""


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


# -- a state as JSON, beside the arrays that it names ------------------------------------------------------------------


@dataclass(frozen=True)
class MaskRecord:
    """A `BoxMask`, whose bits are an array."""

    corner: tuple[int, int, int]
    shape: tuple[int, int, int]
    bits: str

    def __post_init__(self) -> None:
        _check_array(self.bits)


@dataclass(frozen=True)
class PromptRecord:
    """A `Prompt`."""

    kind: Kind
    slice_index: int
    points: tuple[tuple[float, float], ...]
    positive: bool
    mask: MaskRecord | None

    def __post_init__(self) -> None:
        if (self.kind == "mask") != (self.mask is not None) or len(self.points) != {"click": 1, "box": 2}.get(
            self.kind, 0
        ):
            raise ValueError("a click has a point, a box two, a mask its mask")


@dataclass(frozen=True)
class LesionRecord:
    """A `Lesion`."""

    mask: MaskRecord
    origin: Origin
    prompts: tuple[PromptRecord, ...]
    locked: bool
    accepted: bool
    peak: float
    confidence: float
    explained_by: str
    novelty: float
    area_mm2: float
    mean_intensity: float


@dataclass(frozen=True)
class ExemplarRecord(ExemplarFacts):
    """An `Exemplar`, whose tokens are arrays."""

    tokens: dict[str, str]

    def __post_init__(self) -> None:
        for name in self.tokens.values():
            _check_array(name)


@dataclass(frozen=True)
class MaybeRecord:
    """A `Maybe`."""

    point: tuple[int, int, int]
    peak: float
    voxels: int


@dataclass(frozen=True)
class StateRecord:
    """A `State`."""

    lesions: dict[str, LesionRecord]
    exemplars: tuple[ExemplarRecord, ...]
    rejected: dict[str, MaskRecord]
    maybes: tuple[MaybeRecord, ...]
    next_id: int
    propagated: bool

    def __post_init__(self) -> None:
        if not 1 <= self.next_id <= MOST_LESIONS:
            raise ValueError(f"next_id is {self.next_id}")
        for key in self.lesions:
            if not (re.fullmatch("[1-9][0-9]{0,9}", key) and int(key) < self.next_id):
                raise ValueError(f"a lesion has the id {key[:20]!r}")


def _check_array(name: str) -> None:
    if not _ARRAY.fullmatch(name):
        raise ValueError(f"{name[:40]!r} names no array")
