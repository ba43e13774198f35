"""The state of a session at one moment. A state never changes, so undo is exact."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from torch import Tensor

from mois.lesions import InstanceMap
from mois.session.masks import BoxMask
from mois.sharing.bank import Exemplar
from mois.sharing.bank_record import ExemplarFacts

PromptKind = Literal["click", "box", "mask", "scribble", "lasso"]
AREAS = ("box", "mask", "lasso")
"""Kinds of prompts that have an area. A negative one takes the voxels in its area out of the lesion."""
MOST_SCRIBBLE_POINTS = 8
"""Largest number of places of a scribble that the model gets as clicks."""
Origin = Literal["prompted", "found"]
MOST_LESIONS = 2**31 - 1
"""Maps hold ids as int32."""
_ARRAY = re.compile(r"[0-9]{6,}/[0-9]+")
"""Number of the file, then name of the array in it."""


@dataclass(frozen=True)
class Prompt:
    """A prompt of the reader, on the scan's stack. Masks are compared by identity, not by voxels.

    Attributes:
        kind: Click, box, mask, scribble or lasso.
        slice_index: Slice of the prompt; for a mask on several slices, the first of them.
        points: (row, column) in pixels of the stack: one for a click, two opposite corners for a box, the corners of
            the box around a lasso, 1 to `MOST_SCRIBBLE_POINTS` places along a scribble, none for a mask.
        positive: Whether the prompt marks the lesion, and not what lies outside it.
        mask: Voxels of a mask, drawn voxels of a scribble, voxels inside a lasso; None for clicks and boxes.
    """

    kind: PromptKind
    slice_index: int
    points: tuple[tuple[float, float], ...] = ()
    positive: bool = True
    mask: BoxMask | None = None

    @property
    def slices(self) -> range:
        """Slices of the prompt."""
        return range(
            self.slice_index, self.slice_index + (len(self.mask.inside) if self.kind == "mask" and self.mask else 1)
        )

    @property
    def gives_mask(self) -> bool:
        """Whether the prompt says all voxels of the lesion on its slices."""
        return self.kind == "mask" and self.positive

    @property
    def is_whole(self) -> bool:
        """Whether the prompt gives the whole lesion: a mask on several slices."""
        return self.gives_mask and len(self.slices) > 1

    @property
    def erases(self) -> bool:
        """Whether the prompt takes an area out of the lesion."""
        return self.kind in AREAS and not self.positive


@dataclass(frozen=True, eq=False)
class Lesion:
    """A lesion that the reader prompted, or that a propagation found.

    Attributes:
        mask: Voxels of the lesion. No other lesion has them.
        origin: Prompted by the reader, or found by a propagation.
        prompts: All prompts of the lesion, in order.
        locked: Whether no action may change the lesion.
        accepted: Whether the reader accepted the lesion.
        peak: Highest probability within the lesion; 1 for a prompted lesion.
        confidence: Probability that it is a lesion, 0 to 1; 1 for a prompted or accepted lesion.
        explained_by: Key of the exemplar that the lesion is most like; its own exemplar if it has one.
        novelty: Distance to this exemplar. The mean distance between exemplars is 1.
        area_mm2: Area in mm2 on the slice on which the lesion is largest.
        mean_intensity: Mean normalised intensity on this slice.
        type: Type of the lesion, in a session of several models; "" for the model with which it began.
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
    type: str = ""

    @property
    def owns(self) -> bool:
        """Whether other lesions may not take its voxels."""
        return self.locked or self.origin == "prompted"


@dataclass(frozen=True)
class UnsureLesion:
    """A candidate that is not taken for a lesion: its probability is too low, or it is more like what was rejected.

    Attributes:
        point: Slice, row and column of the voxel with the highest probability.
        peak: Probability of this voxel, 0 to 1.
        voxels: Number of voxels.
        like_rejected: Whether it is more like the rejected lesions than like the exemplars.
    """

    point: tuple[int, int, int]
    peak: float
    voxels: int
    like_rejected: bool = False


@dataclass(frozen=True, eq=False)
class State:
    """All that the voxels of a session depend on, besides scan and model.

    Attributes:
        lesions: Lesions by id. Ids begin at 1 and are never used twice.
        exemplars: Exemplars by key, in the order in which they were added.
        rejected: Masks of rejected lesions by exemplar key. Nothing is found there again.
        unsure: Candidates of the latest propagation that it did not take for lesions, the highest first.
        next_id: Id of the next lesion.
        propagated: Whether a propagation was done.
        type: Type for which actions are that name no lesion.
        exemplar_types: Types of exemplars by key, where they are not "".
    """

    lesions: dict[int, Lesion] = field(default_factory=dict)
    exemplars: dict[str, Exemplar] = field(default_factory=dict)
    rejected: dict[str, BoxMask] = field(default_factory=dict)
    unsure: tuple[UnsureLesion, ...] = ()
    next_id: int = 1
    propagated: bool = False
    type: str = ""
    exemplar_types: dict[str, str] = field(default_factory=dict)

    def of_type(self, name: str) -> State:
        """Return the state with the lesions, exemplars and rejected lesions of one type alone."""
        return replace(
            self,
            lesions={number: lesion for number, lesion in self.lesions.items() if lesion.type == name},
            exemplars={key: each for key, each in self.exemplars.items() if self.exemplar_types.get(key, "") == name},
            rejected={key: mask for key, mask in self.rejected.items() if self.exemplar_types.get(key, "") == name},
        )

    def owned(self, but: int | None = None) -> list[BoxMask]:
        """Return the masks of locked and prompted lesions, except lesion `but`."""
        return [lesion.mask for number, lesion in self.lesions.items() if lesion.owns and number != but]

    def label_map(self, shape: tuple[int, int, int]) -> InstanceMap:
        """Return the lesions as an instance map (S, H, W) int32."""
        stack = np.zeros(shape, dtype=np.int32)
        for number, lesion in self.lesions.items():
            lesion.mask.paint(stack, number)
        return stack


@dataclass(frozen=True, eq=False)
class Preview:
    """What a click would show on its slice. After the click, `label_map().select(axis, index) == lesion` is the same.

    Attributes:
        lesion: Id that the click would return.
        axis: Voxel axis of the scan across the slices: 0, 1 or 2.
        index: Index of the clicked slice along this axis.
        mask: The lesion on this slice, bool, (I, J, K) without this axis.
    """

    lesion: int
    axis: int
    index: int
    mask: Tensor


# -- a state as JSON; its arrays are stored beside it ------------------------------------------------------------------


@dataclass(frozen=True)
class MaskRecord:
    """A `BoxMask` as JSON. `bits` is the name of an array."""

    corner: tuple[int, int, int]
    shape: tuple[int, int, int]
    bits: str

    def __post_init__(self) -> None:
        _check_array(self.bits)


@dataclass(frozen=True)
class PromptRecord:
    """A `Prompt` as JSON."""

    kind: PromptKind
    slice_index: int
    points: tuple[tuple[float, float], ...]
    positive: bool
    mask: MaskRecord | None

    def __post_init__(self) -> None:
        most = {"click": 1, "box": 2, "lasso": 2, "scribble": MOST_SCRIBBLE_POINTS}.get(self.kind, 0)
        least = 1 if self.kind == "scribble" else most
        if (self.kind not in ("click", "box")) != (self.mask is not None) or not least <= len(self.points) <= most:
            raise ValueError("a click has a point, a box and a lasso two, a scribble up to 8; the others a mask")


@dataclass(frozen=True)
class LesionRecord:
    """A `Lesion` as JSON."""

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
    """An `Exemplar` as JSON. Its tokens are names of arrays."""

    tokens: dict[str, str]

    def __post_init__(self) -> None:
        for name in self.tokens.values():
            _check_array(name)


@dataclass(frozen=True)
class UnsureLesionRecord:
    """An `UnsureLesion` as JSON."""

    point: tuple[int, int, int]
    peak: float
    voxels: int
    like_rejected: bool = False


@dataclass(frozen=True)
class StateRecord:
    """A `State` as JSON. The key `maybes` holds the unsure lesions. A session of one model has no types."""

    lesions: dict[str, LesionRecord]
    exemplars: tuple[ExemplarRecord, ...]
    rejected: dict[str, MaskRecord]
    maybes: tuple[UnsureLesionRecord, ...]
    next_id: int
    propagated: bool
    type: str = ""
    lesion_types: dict[str, str] = field(default_factory=dict)
    exemplar_types: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.next_id <= MOST_LESIONS:
            raise ValueError(f"next_id is {self.next_id}")
        for key in self.lesions:
            if not (re.fullmatch("[1-9][0-9]{0,9}", key) and int(key) < self.next_id):
                raise ValueError(f"a lesion has the id {key[:20]!r}")
        if unknown := sorted(self.lesion_types.keys() - self.lesions.keys()):
            raise ValueError(f"lesion {unknown[0][:20]!r} has a type but no mask")


TYPE_KEYS = ("type", "lesion_types", "exemplar_types")
"""Keys of a `StateRecord` that a session of one model does not write."""


def _check_array(name: str) -> None:
    if not _ARRAY.fullmatch(name):
        raise ValueError(f"{name[:40]!r} names no array")
