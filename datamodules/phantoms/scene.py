"""A body into which lesions are put one by one. Each lesion has a plan, by which a later scan shows it again."""

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
_BLOBS = {  # look, smallest and largest volume in ml
    "cyst": (replace(_CYST, contrast=0.75, core_contrast=0.75), 0.4, 6.0),
    "node": (replace(_NODE, elongation=2.2), 0.4, 1.6),
}


@dataclass(frozen=True)
class PlannedLesion:
    """What is needed to draw a lesion, and to draw it again with another volume.

    Attributes:
        lesion: Id of the lesion, from 1.
        kind: Class of the lesion; 1 is the first type.
        centre: Slice, row and column of its centre, in voxels.
        volume_ml: Wanted volume in millilitres.
        seed: Seed of its shape and texture.
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

    def put(self, planned: PlannedLesion) -> bool:
        """Draw a lesion. Return False, and change nothing, if it does not fit."""
        lesion = self._types[planned.kind - 1]
        allowed = (self._body & (self.instances == 0)) if planned.touching else self._free
        painted = render_lesion(
            np.random.default_rng(planned.seed),
            self.image,
            allowed,
            lesion,
            planned.centre,
            planned.volume_ml,
            self._spacing_mm,
            tissue=_tissue(lesion),
        )
        if painted is None:
            return False
        self.instances[painted.box][painted.mask] = planned.lesion
        wide = _widened(painted.box, 1)
        self._free[wide] &= ~ndimage.binary_dilation(self.instances[wide] == planned.lesion, _NEIGHBOURS)
        return True

    def place(self, rng: np.random.Generator, lesion: int, kind: int, volume_ml: float) -> PlannedLesion | None:
        """Find room for a lesion and draw it. After some failed tries, it becomes smaller with each try.

        Args:
            rng: Source of random numbers.
            lesion: Id of the lesion.
            kind: Class of the lesion, from 1.
            volume_ml: Wanted volume in millilitres.

        Returns:
            The plan of the lesion; None if none fits.
        """
        low, high = _tissue(self._types[kind - 1])
        for attempt in range(_TRIES if self._starts.size else 0):
            tried_ml = max(smallest_ml(self._spacing_mm), volume_ml * 0.93 ** max(0, attempt - 8))
            at = np.unravel_index(self._starts[rng.integers(self._starts.size)], self.instances.shape)
            centre = (int(at[0]), int(at[1]), int(at[2]))
            seed = int(rng.integers(2**31))
            if not low <= self.image[centre] <= high or not self._roomy(centre, tried_ml):
                continue
            planned = PlannedLesion(lesion, kind, (float(at[0]), float(at[1]), float(at[2])), tried_ml, seed)
            if self.put(planned):
                return planned
        return None

    def place_touching(
        self, rng: np.random.Generator, lesion: int, partner: PlannedLesion, volume_ml: float
    ) -> PlannedLesion | None:
        """Draw a lesion that touches another lesion of its type. Return its plan; None if it does not fit."""
        mask = self.instances == partner.lesion
        box = _widened(ndimage.find_objects(mask.astype(np.uint8))[0], 3)
        shell = (
            ndimage.binary_dilation(mask[box], _NEIGHBOURS, iterations=2) & self._body[box] & (self.instances[box] == 0)
        )
        places = np.argwhere(shell)
        for _ in range(6 if len(places) else 0):
            y, z, x = (float(i + s.start) for i, s in zip(places[rng.integers(len(places))], box, strict=True))
            planned = PlannedLesion(lesion, partner.kind, (y, z, x), volume_ml, int(rng.integers(2**31)), touching=True)
            if self.put(planned):
                return planned
        return None

    def _roomy(self, centre: tuple[int, int, int], volume_ml: float) -> bool:
        """Return whether a ball of this volume has room, judged by its centre and four points around it."""
        reach_mm = 0.7 * (750 * volume_ml / math.pi) ** (1 / 3)
        rows, columns = (round(reach_mm / mm) for mm in self._spacing_mm[1:])
        s, row, column = centre
        return bool(self._free[centre]) and all(
            not (0 <= r < self._free.shape[1] and 0 <= c < self._free.shape[2]) or bool(self._free[s, r, c])
            for r, c in ((row - rows, column), (row + rows, column), (row, column - columns), (row, column + columns))
        )


def smallest_ml(spacing_mm: Triple) -> float:
    """Return the volume in millilitres of the smallest lesion that a grid can hold."""
    return SMALLEST_VOXELS * math.prod(spacing_mm) / 1000


def draw_volume_ml(rng: np.random.Generator, spacing_mm: Triple, largest_ml: float = LARGEST_ML) -> float:
    """Draw the volume of a lesion in millilitres: log-uniform, with more small lesions than large ones."""
    lowest_ml = smallest_ml(spacing_mm)
    return float(lowest_ml * (largest_ml / lowest_ml) ** (rng.random() ** 1.4))


def fill(
    scene: Scene, rng: np.random.Generator, kinds: Sequence[int], volumes_ml: Sequence[float]
) -> list[PlannedLesion]:
    """Put lesions into a body, the largest first. About one lesion in six touches another lesion.

    Args:
        scene: The body; it is changed.
        rng: Source of random numbers.
        kinds: Class of each lesion, from 1.
        volumes_ml: Wanted volume of each lesion in millilitres.

    Returns:
        The plans of the lesions that had room, with ids 1, 2, ...
    """
    planned_lesions: list[PlannedLesion] = []
    last: dict[int, PlannedLesion] = {}
    for at in np.argsort(volumes_ml, kind="stable")[::-1]:
        lesion, kind, volume_ml = len(planned_lesions) + 1, kinds[at], volumes_ml[at]
        planned = None
        if kind in last and rng.random() < 0.17:
            planned = scene.place_touching(rng, lesion, last[kind], volume_ml)
        if planned is None:
            planned = scene.place(rng, lesion, kind, volume_ml)
        if planned is not None:
            planned_lesions.append(planned)
            last[kind] = planned
    return planned_lesions


def follow_up(
    scene: Scene, rng: np.random.Generator, planned_lesions: Sequence[PlannedLesion], kinds: int, spacing_mm: Triple
) -> list[PlannedLesion]:
    """Draw the lesions of an earlier scan with other volumes, and up to three new lesions.

    Args:
        scene: The body without lesions; it is changed.
        rng: Source of random numbers.
        planned_lesions: Lesions of the earlier scan.
        kinds: Number of classes of new lesions.
        spacing_mm: Spacing of slices, rows and columns.

    Returns:
        The plans of all lesions of this scan.
    """
    now: list[PlannedLesion] = []
    for planned in planned_lesions:
        grown_ml = planned.volume_ml * math.exp(rng.normal(0.1, 0.35))
        grown = replace(planned, volume_ml=min(LARGEST_ML, max(smallest_ml(spacing_mm), grown_ml)))
        # without room to grow, the lesion keeps its volume; a neighbour that has grown may touch it
        for redrawn in (
            grown,
            replace(planned, touching=True),
            replace(planned, touching=True, volume_ml=0.5 * planned.volume_ml),
        ):
            if scene.put(redrawn):
                now.append(redrawn)
                break
    lesion = max((planned.lesion for planned in planned_lesions), default=0)
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
    """Put cysts and lymph nodes into a body as distractors.

    A blob that looks like a type of lesion is left out: no reader could know that it is no lesion.

    Args:
        anatomy: The body; it is changed.
        types: Types of the lesions.
        rng: Source of random numbers.
        count: Number of blobs.
        spacing_mm: Spacing of slices, rows and columns.
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
    """Return the lowest and highest signal of tissue in which a lesion is visible."""
    return (max(0.22, 0.02 - 0.9 * lesion.contrast), 0.9) if lesion.contrast < 0 else (0.13, 0.62)


def _widened(box: tuple[slice, ...], by: int) -> tuple[slice, slice, slice]:
    s, h, w = (slice(max(0, axis.start - by), axis.stop + by) for axis in box)
    return s, h, w
