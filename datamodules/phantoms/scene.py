"""A body that lesions are put into one by one, and the plans by which they can be put there again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from datamodules.phantoms.body import DISTRACTORS, Anatomy
from datamodules.phantoms.lesion_types import LesionType, clearly_different, make_lesion_type
from datamodules.phantoms.painting import SMALLEST_VOXELS, Bool, Float, Triple, render_lesion

LARGEST_ML = 50.0
_NEIGHBOURS = np.ones((3, 3, 3), bool)
_TRIES = 80
_CYST = make_lesion_type(np.random.default_rng(1), "very_bright", "solid", "smooth", "round", "sharp")
_NODE = make_lesion_type(np.random.default_rng(2), "bright", "solid", "smooth", "round", "sharp")
_BLOBS = {  # look, smallest and largest ml
    "cyst": (replace(_CYST, contrast=0.75, core_contrast=0.75), 0.4, 6.0),
    "node": (replace(_NODE, elongation=2.2), 0.4, 1.6),
}


@dataclass(frozen=True)
class Plan:
    """One lesion as planned: all that is needed to draw it again, larger or smaller.

    Attributes:
        lesion: Its id.
        kind: Its class, 1 is the first type.
        centre: Slice, row, column.
        volume_ml: Volume asked for.
        seed: Of its shape and texture.
        touching: Whether it may touch other lesions.
    """

    lesion: int
    kind: int
    centre: Triple
    volume_ml: float
    seed: int
    touching: bool = False


class Scene:
    """A body on a grid, and the lesions put into it so far.

    Attributes:
        image: (S, H, W) float32, signal without noise and bias.
        instances: (S, H, W) int32, lesion ids.
    """

    def __init__(self, anatomy: Anatomy, types: Sequence[LesionType], spacing_mm: Triple) -> None:
        self.image: Float = anatomy.image.copy()
        self.instances: NDArray[np.int32] = np.zeros(anatomy.image.shape, np.int32)
        self._types = types
        self._spacing_mm = spacing_mm
        self._body: Bool = anatomy.tissue & (anatomy.distractors == 0)
        self._free: Bool = self._body.copy()  # neither in a lesion nor next to one
        self._starts: NDArray[np.intp] = np.flatnonzero(self._body)

    def put(self, plan: Plan) -> bool:
        """Draw a lesion; return False, with nothing changed, where it does not fit."""
        lesion = self._types[plan.kind - 1]
        allowed = (self._body & (self.instances == 0)) if plan.touching else self._free
        painted = render_lesion(
            np.random.default_rng(plan.seed),
            self.image,
            allowed,
            lesion,
            plan.centre,
            plan.volume_ml,
            self._spacing_mm,
            tissue=_tissue(lesion),
        )
        if painted is None:
            return False
        self.instances[painted.box][painted.mask] = plan.lesion
        wide = _widened(painted.box, 1)
        self._free[wide] &= ~ndimage.binary_dilation(self.instances[wide] == plan.lesion, _NEIGHBOURS)
        return True

    def place(self, rng: np.random.Generator, lesion: int, kind: int, volume_ml: float) -> Plan | None:
        """Find room for a lesion and draw it, making it smaller where there is none; None where nothing fits."""
        low, high = _tissue(self._types[kind - 1])
        for attempt in range(_TRIES if self._starts.size else 0):
            tried_ml = max(smallest_ml(self._spacing_mm), volume_ml * 0.93 ** max(0, attempt - 8))
            at = np.unravel_index(self._starts[rng.integers(self._starts.size)], self.instances.shape)
            centre = (int(at[0]), int(at[1]), int(at[2]))
            seed = int(rng.integers(2**31))
            if not low <= self.image[centre] <= high or not self._roomy(centre, tried_ml):
                continue
            plan = Plan(lesion, kind, (float(at[0]), float(at[1]), float(at[2])), tried_ml, seed)
            if self.put(plan):
                return plan
        return None

    def place_touching(self, rng: np.random.Generator, lesion: int, partner: Plan, volume_ml: float) -> Plan | None:
        """Draw a lesion that touches another one of its type, as an instance of its own; None if it does not fit."""
        mask = self.instances == partner.lesion
        box = _widened(ndimage.find_objects(mask.astype(np.uint8))[0], 3)
        shell = (
            ndimage.binary_dilation(mask[box], _NEIGHBOURS, iterations=2) & self._body[box] & (self.instances[box] == 0)
        )
        places = np.argwhere(shell)
        for _ in range(6 if len(places) else 0):
            y, z, x = (float(i + s.start) for i, s in zip(places[rng.integers(len(places))], box, strict=True))
            plan = Plan(lesion, partner.kind, (y, z, x), volume_ml, int(rng.integers(2**31)), touching=True)
            if self.put(plan):
                return plan
        return None

    def _roomy(self, centre: tuple[int, int, int], volume_ml: float) -> bool:
        """Tell at a glance whether most of a ball of this volume would be free: looks at its centre and four points."""
        reach_mm = 0.7 * (750 * volume_ml / math.pi) ** (1 / 3)
        rows, columns = (round(reach_mm / mm) for mm in self._spacing_mm[1:])
        s, row, column = centre
        return bool(self._free[centre]) and all(
            not (0 <= r < self._free.shape[1] and 0 <= c < self._free.shape[2]) or bool(self._free[s, r, c])
            for r, c in ((row - rows, column), (row + rows, column), (row, column - columns), (row, column + columns))
        )


def smallest_ml(spacing_mm: Triple) -> float:
    """Return the volume of the smallest lesion there is on a grid."""
    return SMALLEST_VOXELS * math.prod(spacing_mm) / 1000


def draw_volume_ml(rng: np.random.Generator, spacing_mm: Triple, largest_ml: float = LARGEST_ML) -> float:
    """Draw a lesion's volume: log-uniform, leaning to the small."""
    lowest_ml = smallest_ml(spacing_mm)
    return float(lowest_ml * (largest_ml / lowest_ml) ** (rng.random() ** 1.4))


def fill(scene: Scene, rng: np.random.Generator, kinds: Sequence[int], volumes_ml: Sequence[float]) -> list[Plan]:
    """Put lesions of these classes and volumes into a body, the largest first; about one in six touches another.

    Returns:
        The plans of those that found room, with ids 1, 2, ...
    """
    plans: list[Plan] = []
    last: dict[int, Plan] = {}
    for at in np.argsort(volumes_ml, kind="stable")[::-1]:
        lesion, kind, volume_ml = len(plans) + 1, kinds[at], volumes_ml[at]
        plan = None
        if kind in last and rng.random() < 0.17:
            plan = scene.place_touching(rng, lesion, last[kind], volume_ml)
        if plan is None:
            plan = scene.place(rng, lesion, kind, volume_ml)
        if plan is not None:
            plans.append(plan)
            last[kind] = plan
    return plans


def follow_up(
    scene: Scene, rng: np.random.Generator, plans: Sequence[Plan], kinds: int, spacing_mm: Triple
) -> list[Plan]:
    """Draw the lesions of an earlier scan again, grown or shrunk, and up to three new ones of `kinds` classes."""
    now: list[Plan] = []
    for plan in plans:
        grown_ml = plan.volume_ml * math.exp(rng.normal(0.1, 0.35))
        grown = replace(plan, volume_ml=min(LARGEST_ML, max(smallest_ml(spacing_mm), grown_ml)))
        # where it has no room to grow, it stays as it was; where a neighbour has grown up to it, the two touch
        for redrawn in (
            grown,
            replace(plan, touching=True),
            replace(plan, touching=True, volume_ml=0.5 * plan.volume_ml),
        ):
            if scene.put(redrawn):
                now.append(redrawn)
                break
    lesion = max((plan.lesion for plan in plans), default=0)
    for _ in range(rng.integers(4)):
        kind = int(rng.integers(kinds)) + 1
        added = scene.place(rng, lesion + 1, kind, draw_volume_ml(rng, spacing_mm, 5.0))
        if added is not None:
            now.append(added)
            lesion += 1
    return now


def add_blobs(
    anatomy: Anatomy, types: Sequence[LesionType], rng: np.random.Generator, count: int, spacing_mm: Triple
) -> None:
    """Put cysts and lymph nodes into a body, in place, as distractors.

    Those that would look like one of the types are left out: nobody could tell that they are no lesions.
    """
    names = [name for name, blob in _BLOBS.items() if all(clearly_different(blob[0], kind) for kind in types)]
    starts = np.flatnonzero(anatomy.tissue & (anatomy.distractors == 0))
    for _ in range(count if names and starts.size else 0):
        name = names[rng.integers(len(names))]
        blob, lowest_ml, highest_ml = _BLOBS[name]
        volume_ml = max(smallest_ml(spacing_mm), float(rng.uniform(lowest_ml, highest_ml)))
        y, z, x = (float(i) for i in np.unravel_index(starts[rng.integers(starts.size)], anatomy.image.shape))
        allowed = anatomy.tissue & (anatomy.distractors == 0)
        painted = render_lesion(
            rng, anatomy.image, allowed, blob, (y, z, x), volume_ml, spacing_mm, tissue=_tissue(blob)
        )
        if painted is not None:
            anatomy.distractors[painted.box][painted.mask] = DISTRACTORS[name]


def _tissue(lesion: LesionType) -> tuple[float, float]:
    """Return the signal of tissue that a lesion shows on."""
    return (max(0.22, 0.02 - 0.9 * lesion.contrast), 0.9) if lesion.contrast < 0 else (0.13, 0.62)


def _widened(box: tuple[slice, ...], by: int) -> tuple[slice, slice, slice]:
    s, h, w = (slice(max(0, axis.start - by), axis.stop + by) for axis in box)
    return s, h, w
