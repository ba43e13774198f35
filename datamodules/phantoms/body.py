"""A body without lesions: T2-weighted, fat-suppressed signal of its tissues, and the tissues that look like lesions.

Body coordinates are millimetres of an adult: y from the middle of the trunk to the back, z from the crown to the feet,
x from the midline to the patient's left. Millimetres of a scan are body coordinates times the scale of the body.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodules.phantoms.painting import Bool, Box, Float, Triple, smooth_field

DISTRACTORS: dict[str, int] = {
    "bladder": 1, "csf": 2, "vessel": 3, "kidney": 4, "eye": 5, "gallbladder": 6, "cyst": 7, "node": 8,
}  # fmt: skip

_SIGNAL = {  # of each tissue; every body differs a little from it
    "fat": 0.19, "muscle": 0.37, "bone": 0.25, "disc": 0.46, "skull": 0.08, "brain": 0.5, "white": 0.42,
    "fluid": 1.05, "lung": 0.06, "heart": 0.52, "liver": 0.42, "spleen": 0.6, "kidney": 0.72, "stomach": 0.3,
    "bowel": 0.42, "vessel": 0.75, "void": 0.12, "cord": 0.55, "gland": 0.47,
}  # fmt: skip

Knots = Sequence[tuple[float, float, float, float, float]]  # z, x of the axis, half width, half depth, y of the axis
_TRUNK: Knots = (
    (-2, 0, 1, 1, 10), (6, 0, 38, 50, 5), (30, 0, 65, 82, 0), (70, 0, 78, 98, 0), (120, 0, 76, 98, 0),
    (165, 0, 68, 84, -8), (205, 0, 58, 66, -12), (230, 0, 56, 56, 5), (262, 0, 60, 58, 10), (285, 0, 95, 68, 8),
    (310, 0, 165, 82, 5), (345, 0, 186, 98, 2), (420, 0, 176, 112, 0), (520, 0, 162, 112, 0), (620, 0, 150, 105, 0),
    (700, 0, 152, 102, 0), (790, 0, 170, 106, 2), (860, 0, 178, 108, 5), (915, 0, 165, 100, 8), (945, 0, 110, 70, 8),
    (960, 0, 30, 30, 8), (966, 0, 2, 2, 8),
)  # fmt: skip
_LEG: Knots = (
    (845, 84, 74, 86, 5), (920, 92, 90, 92, 8), (960, 93, 90, 92, 8), (1000, 95, 86, 90, 8), (1150, 92, 70, 76, 5),
    (1300, 86, 58, 62, 2), (1370, 84, 54, 60, 2), (1450, 84, 54, 62, 12), (1600, 82, 40, 44, 10),
    (1700, 82, 30, 36, 5), (1760, 82, 34, 60, -20), (1775, 82, 5, 5, -20),
)  # fmt: skip
_ARM: Knots = (
    (314, 188, 8, 8, 10), (332, 206, 42, 44, 8), (400, 230, 48, 50, 8), (520, 242, 45, 48, 8), (620, 246, 40, 44, 5),
    (700, 250, 42, 44, 0), (800, 256, 34, 36, -8), (880, 258, 26, 32, -14), (940, 259, 34, 40, -18),
    (1040, 258, 22, 30, -24), (1075, 258, 3, 4, -24),
)  # fmt: skip
_SPINE: Knots = (
    (212, 0, 13, 11, 22), (300, 0, 14, 13, 30), (450, 0, 17, 15, 48), (600, 0, 21, 18, 40), (720, 0, 25, 20, 28),
    (790, 0, 25, 20, 34),
)  # fmt: skip
_CANAL: Knots = (
    (150, 0, 8, 8, 40), (212, 0, 8, 8, 44), (300, 0, 9, 8, 55), (450, 0, 9, 8, 74), (600, 0, 10, 9, 68),
    (720, 0, 10, 9, 58), (820, 0, 7, 6, 66),
)  # fmt: skip
_CORD: Knots = (
    (150, 0, 5, 5, 40), (212, 0, 5, 5, 44), (300, 0, 5, 5, 55), (450, 0, 4, 4, 74), (590, 0, 5, 5, 68),
)  # fmt: skip
_BONES: tuple[Knots, ...] = (
    ((345, 216, 14, 14, 8), (390, 226, 11, 11, 8), (640, 244, 11, 11, 5)),
    ((660, 246, 9, 9, 2), (905, 256, 7, 7, -14)),
    ((905, 88, 26, 26, 5), (960, 116, 20, 20, 5), (1000, 112, 15, 15, 5), (1320, 88, 17, 17, 2), (1370, 86, 34, 30, 0)),
    ((1385, 84, 34, 28, 0), (1430, 84, 17, 17, -4), (1700, 82, 12, 12, 0)),
)  # fmt: skip
_PAIRED_VESSELS: tuple[Knots, ...] = (
    ((735, 8, 7, 7, 2), (870, 62, 7, 7, -30)),
    ((870, 62, 7, 7, -40), (1000, 82, 6, 6, -38), (1200, 76, 5, 5, -10), (1700, 80, 4, 4, 20)),
    ((180, 30, 5, 5, 0), (330, 26, 6, 6, 5)),
    ((340, 200, 5, 5, 4), (600, 228, 5, 5, -6), (880, 254, 4, 4, -14)),
)  # fmt: skip


@dataclass(frozen=True)
class BodyGrid:
    """Where the slices, rows and columns of a stack lie in the body.

    Attributes:
        shape: Number of slices, rows and columns.
        spacing_mm: Distance between slices, rows and columns.
        origin_mm: Centre (y, z, x) of the first voxel, in millimetres of the scan from the origin of the body.
        scale: Size of this body relative to an adult.
    """

    shape: tuple[int, int, int]
    spacing_mm: Triple
    origin_mm: Triple
    scale: float

    @property
    def adult_mm(self) -> Triple:
        """Distance between slices, rows and columns, in millimetres of an adult body."""
        depth, row, column = self.spacing_mm
        return depth / self.scale, row / self.scale, column / self.scale

    def axes(self) -> tuple[Float, Float, Float]:
        """Return the coordinates y (S,), z (H,), x (W,) in millimetres of an adult body, float32."""
        y, z, x = (
            (origin / self.scale + np.arange(count) * mm).astype(np.float32)
            for count, mm, origin in zip(self.shape, self.adult_mm, self.origin_mm, strict=True)
        )
        return y, z, x


@dataclass(frozen=True)
class Anatomy:
    """A body on a grid.

    Attributes:
        image: (S, H, W) float32 signal without noise; 0 is air.
        distractors: (S, H, W) int32, values of DISTRACTORS.
        tissue: (S, H, W) bool, where a lesion may lie: within the skin, but not in lungs, skull and other voids.
    """

    image: Float
    distractors: NDArray[np.int32]
    tissue: Bool


class _Canvas:
    """Paints soft-edged solids over each other, each in its own box."""

    def __init__(self, rng: np.random.Generator, grid: BodyGrid) -> None:
        self.rng = rng
        self.axes = grid.axes()
        self.pixel_mm = grid.adult_mm[1]
        self.image: Float = np.zeros(grid.shape, np.float32)
        self.codes: NDArray[np.int32] = np.zeros(grid.shape, np.int32)
        y, z, x = self.axes
        bend = [np.float32(mm) * smooth_field(rng, grid.shape, grid.adult_mm, 60.0) for mm in (2.5, 4.0, 3.0)]
        self.y, self.z, self.x = y[:, None, None] + bend[0], z[None, :, None] + bend[1], x + bend[2]
        self.signal = {name: value * float(rng.normal(1.0, 0.07)) for name, value in _SIGNAL.items()}
        self.build = float(rng.uniform(0.9, 1.1))

    def ellipsoid(
        self,
        centre: Triple,
        radii: Triple,
        signal: float,
        *,
        tilt: float = 0.0,
        distractor: str = "",
        wander_mm: float = 0.0,
    ) -> None:
        """Paint an ellipsoid.

        Args:
            centre: y, z, x in millimetres of an adult body.
            radii: Radii along y, z, x, in millimetres.
            signal: Signal of its inside.
            tilt: Turn in the coronal plane, in radians.
            distractor: Name in DISTRACTORS; "" for none.
            wander_mm: Standard deviation of its centre, because organs lie differently in every body.
        """
        if wander_mm:
            y, z, x = (at + self.rng.normal(0, wander_mm) for at in centre)
            centre = (y, z, x)
        c, s = math.cos(tilt), math.sin(tilt)
        reach = (radii[0], math.hypot(radii[1] * c, radii[2] * s), math.hypot(radii[1] * s, radii[2] * c))
        box = self._box(
            [at - r for at, r in zip(centre, reach, strict=True)], [at + r for at, r in zip(centre, reach, strict=True)]
        )
        if box is None:
            return
        down, left = self.z[box] - np.float32(centre[1]), self.x[box] - np.float32(centre[2])
        if tilt:
            down, left = c * down + s * left, c * left - s * down
        square = (
            ((self.y[box] - np.float32(centre[0])) / radii[0]) ** 2 + (down / radii[1]) ** 2 + (left / radii[2]) ** 2
        )
        self._blend(box, (np.sqrt(square) - 1) * min(radii), signal, distractor)

    def column(
        self,
        knots: Knots,
        signal: float | Triple,
        *,
        shrink_mm: float = 0.0,
        side: int = 1,
        grow: float = 1.0,
        distractor: str = "",
    ) -> None:
        """Paint an upright solid with elliptic cross-sections.

        Args:
            knots: Cross-sections from top to bottom; see `Knots`.
            signal: One value; or two values that take turns, and the period of their change in mm.
            shrink_mm: Length that half width and half depth lose.
            side: 1 for the patient's left, -1 for the right.
            grow: Factor of half width and half depth.
            distractor: Name in DISTRACTORS; "" for none.
        """
        table = np.asarray(knots, np.float32) * np.array([1, side, grow, grow, 1], np.float32)
        wide, deep = table[:, 2].max(), table[:, 3].max()
        box = self._box(
            (table[:, 4].min() - deep, table[0, 0], table[:, 1].min() - wide),
            (table[:, 4].max() + deep, table[-1, 0], table[:, 1].max() + wide),
        )
        if box is None:
            return
        z = self.axes[1][box[1]]
        axis_x, width, depth, axis_y = (
            np.interp(z, table[:, 0], table[:, i]).astype(np.float32)[:, None] for i in (1, 2, 3, 4)
        )
        width, depth = np.maximum(width - shrink_mm, 0.1), np.maximum(depth - shrink_mm, 0.1)
        radius = np.sqrt(((self.y[box] - axis_y) / depth) ** 2 + ((self.x[box] - axis_x) / width) ** 2)
        beyond = np.maximum(table[0, 0] - z, z - table[-1, 0])[:, None]
        distance = np.maximum((radius - 1) * np.minimum(width, depth), beyond)
        shade: float | Float
        if isinstance(signal, tuple):
            shade = np.where(z % signal[2] < 0.72 * signal[2], signal[0], signal[1]).astype(np.float32)[:, None]
        else:
            shade = signal
        self._blend(box, distance, shade, distractor)

    def _box(self, low: Sequence[float], high: Sequence[float]) -> Box | None:
        """Return the box of the grid between two corners (y, z, x), with a margin for bends; None if it is empty."""
        ends = [np.searchsorted(axis, (a - 12, b + 12)) for axis, a, b in zip(self.axes, low, high, strict=True)]
        if any(start >= stop for start, stop in ends):
            return None
        y, z, x = (slice(int(start), int(stop)) for start, stop in ends)
        return y, z, x

    def _blend(self, box: Box, distance: Float, signal: float | Float, distractor: str) -> None:
        alpha = np.clip(0.5 - distance / np.float32(self.pixel_mm), 0, 1)
        view = self.image[box]
        view += alpha * (np.asarray(signal, np.float32) - view)
        self.codes[box][alpha > 0.5] = DISTRACTORS[distractor] if distractor else 0


def _frame(canvas: _Canvas) -> None:
    """Paint skin, fat, muscle and the bones of the limbs."""
    s, grow = canvas.signal, canvas.build
    fat_mm = float(canvas.rng.uniform(9, 24))
    arm = [(z, x + 190 * (grow - 1), w, d, y) for z, x, w, d, y in _ARM]
    below_skull = [knot for knot in _TRUNK if knot[0] >= 230]
    trunk = [(z, x, w * (grow if z > 280 else 1), d * (grow if z > 280 else 1), y) for z, x, w, d, y in _TRUNK]
    for tissue, limb_mm in (("fat", 0.0), ("muscle", 0.6 * fat_mm)):
        for side in (-1, 1):
            canvas.column(arm, s[tissue], shrink_mm=limb_mm, side=side)
            canvas.column(_LEG, s[tissue], shrink_mm=1.2 * limb_mm, side=side, grow=grow)
        if tissue == "fat":
            canvas.column(trunk, s["fat"])
        else:
            canvas.column(below_skull, s["muscle"], shrink_mm=fat_mm, grow=grow)
            canvas.column(_TRUNK[3:8], s["muscle"], shrink_mm=7)
    for side in (-1, 1):
        for bone in _BONES:
            canvas.column(bone, s["bone"], side=side)


def _head(canvas: _Canvas) -> None:
    s = canvas.signal
    canvas.ellipsoid((2, 84, 0), (90, 80, 70), s["skull"])
    canvas.ellipsoid((2, 84, 0), (84, 74, 64), s["fluid"] * 0.8, distractor="csf")
    canvas.ellipsoid((2, 84, 0), (80, 70, 60), s["brain"])
    canvas.ellipsoid((-5, 80, 0), (58, 46, 42), s["white"])
    canvas.ellipsoid((30, 138, 0), (28, 20, 42), s["brain"] * 0.95)
    canvas.ellipsoid((-60, 185, 0), (26, 12, 22), s["muscle"] * 1.15)
    for side in (-1, 1):
        canvas.ellipsoid((8, 74, 13 * side), (38, 15, 6), s["fluid"], tilt=0.35 * side, distractor="csf")
        canvas.ellipsoid((-74, 118, 31 * side), (11, 11, 11), s["fluid"] * 0.95, distractor="eye")
        canvas.ellipsoid((-70, 150, 26 * side), (16, 16, 13), s["void"])
        canvas.ellipsoid((0, 175, 48 * side), (22, 20, 9), s["gland"])
        canvas.ellipsoid((-10, 262, 18 * side), (10, 18, 9), s["gland"], wander_mm=2)


def _chest(canvas: _Canvas) -> None:
    s, rng = canvas.signal, canvas.rng
    for side in (-1, 1):
        canvas.ellipsoid((0, 430, 82 * side), (78, 118, 62), s["lung"], tilt=-0.08 * side, wander_mm=3)
        canvas.ellipsoid((10, 325, 110 * side), (12, 8, 55), s["bone"], tilt=0.25 * side)
    canvas.column([(215, 0, 9, 9, -22), (395, 0, 9, 9, 5)], s["lung"])
    canvas.ellipsoid((-28, 455, 25), (48, 56, 50), s["heart"], tilt=-0.5, wander_mm=4)
    for down, left in ((-12, -4), (16, 30)):
        blood = s["void"] if rng.random() < 0.6 else s["vessel"]
        canvas.ellipsoid((-28, 452 + down, left), (26, 22, 18), blood, tilt=-0.5, wander_mm=3)


def _abdomen(canvas: _Canvas) -> None:
    s, rng = canvas.signal, canvas.rng
    canvas.ellipsoid((-8, 648, 0), (82, 128, 118), s["fat"] * 1.2)
    canvas.ellipsoid((-12, 572, -68), (80, 62, 76), s["liver"], tilt=0.45, wander_mm=5)
    canvas.ellipsoid((-38, 548, 0), (38, 34, 62), s["liver"], tilt=0.15, wander_mm=4)
    canvas.ellipsoid((42, 565, 104), (30, 52, 27), s["spleen"], tilt=-0.25, wander_mm=5)
    canvas.ellipsoid((-30, 572, 62), (38, 46, 34), s["stomach"] * rng.uniform(0.6, 2.2), tilt=-0.5, wander_mm=6)
    bile = s["fluid"] * rng.uniform(0.6, 1.0)
    canvas.ellipsoid((-45, 618, -58), (14, 24, 12), bile, tilt=0.3, distractor="gallbladder", wander_mm=6)
    for side in (-1, 1):
        z = 640 + 12 * (side < 0) + float(rng.normal(0, 6))
        canvas.ellipsoid((46, z, 62 * side), (25, 52, 28), s["kidney"], tilt=0.22 * side, distractor="kidney")
        canvas.ellipsoid((44, z, 54 * side), (10, 24, 11), s["fat"] * 1.2, tilt=0.22 * side)
        canvas.ellipsoid((38, 720, 32 * side), (22, 95, 20), s["muscle"], tilt=0.1 * side)
    for _ in range(18):
        place = (rng.uniform(-62, 10), rng.uniform(670, 800), rng.uniform(-92, 92))
        radii = (rng.uniform(14, 26), rng.uniform(12, 26), rng.uniform(14, 32))
        canvas.ellipsoid(place, radii, s["bowel"] * rng.uniform(0.55, 1.35), tilt=rng.uniform(-1.5, 1.5))


def _pelvis(canvas: _Canvas) -> None:
    s, rng = canvas.signal, canvas.rng
    for side in (-1, 1):
        canvas.ellipsoid((32, 795, 96 * side), (34, 58, 20), s["bone"], tilt=0.45 * side)
        canvas.ellipsoid((5, 905, 88 * side), (26, 26, 26), s["bone"] * 1.1)
    canvas.ellipsoid((52, 822, 0), (18, 50, 42), s["bone"])
    size = rng.uniform(0.5, 1.15)
    canvas.ellipsoid(
        (-22, 884, 0), (36 * size, 32 * size, 44 * size), s["fluid"] * 1.05, distractor="bladder", wander_mm=4
    )
    canvas.ellipsoid((22, 895, 0), (22, 20, 26), s["gland"])


def _vessels(canvas: _Canvas) -> None:
    s, rng = canvas.signal, canvas.rng
    aorta = s["void"] if rng.random() < 0.5 else s["vessel"] * 0.9
    canvas.column([(400, 12, 12, 12, 22), (600, 12, 11, 11, 14), (735, 8, 10, 10, 2)], aorta, distractor="vessel")
    canvas.column([(500, -16, 12, 10, 10), (735, -12, 11, 9, 4)], s["vessel"], distractor="vessel")
    for side in (-1, 1):
        for knots in _PAIRED_VESSELS:
            canvas.column(knots, s["vessel"] * rng.uniform(0.6, 1.0), side=side, distractor="vessel")
    for _ in range(14):  # thin vessels that wind through muscle and fat
        z, x, y = rng.uniform(300, 1500), rng.uniform(-1, 1) * 130, rng.uniform(-1, 1) * 45
        radius = rng.uniform(2.2, 4.0)
        knots = []
        for _ in range(int(rng.integers(4, 12))):
            knots.append((z, x, radius, radius, y))
            z, x, y = z + rng.uniform(8, 16), x + rng.normal(0, 9), y + rng.normal(0, 6)
        canvas.column(knots, s["vessel"] * rng.uniform(0.7, 1.1), distractor="vessel")


def make_anatomy(rng: np.random.Generator, grid: BodyGrid) -> Anatomy:
    """Draw a body, and return the part inside a grid: without lesions, noise and bias."""
    canvas = _Canvas(rng, grid)
    _frame(canvas)
    _head(canvas)
    _chest(canvas)
    _abdomen(canvas)
    _pelvis(canvas)
    canvas.column(_SPINE, (canvas.signal["bone"] * 1.1, canvas.signal["disc"], 33.0))
    canvas.column(_CANAL, canvas.signal["fluid"] * 0.95, distractor="csf")
    canvas.column(_CORD, canvas.signal["cord"])
    skin = canvas.image > 0.1
    _vessels(canvas)
    canvas.image[~skin & (canvas.codes == DISTRACTORS["vessel"])] = 0
    canvas.codes[~skin] = 0
    canvas.image *= 1 + np.float32(0.055) * smooth_field(rng, grid.shape, grid.adult_mm, 12.0)
    np.maximum(canvas.image, 0, out=canvas.image)
    return Anatomy(canvas.image, canvas.codes, canvas.image > 0.11)


def draw_place(rng: np.random.Generator) -> Triple:
    """Draw a place (y, z, x) in body coordinates, in or close to head, trunk, arms or legs."""
    z = float(rng.uniform(30, 1450))
    if z > 950:
        return float(rng.uniform(-45, 45)), z, float(rng.uniform(-150, 150))
    table = np.asarray(_TRUNK)
    half_width, half_depth = (float(np.interp(z, table[:, 0], table[:, i])) for i in (2, 3))
    arm = 70 * rng.random() if 330 < z < 900 else 0.0
    return float(rng.uniform(-0.6, 0.6)) * half_depth, z, float(rng.uniform(-1, 1)) * (half_width + arm)
