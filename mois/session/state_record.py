"""What stands in the file of a session's state, as JSON beside the arrays that it names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mois.session.state import Kind, Origin
from mois.sharing.bank_record import ExemplarFacts

MOST_LESIONS = 2**31 - 1
"""Maps hold ids as int32."""
_ARRAY = re.compile(r"[0-9]{6,}/[0-9]+")
"""Number of the file, then name of the array in it."""


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
