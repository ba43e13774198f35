"""Objects in a stack. Each object is an instance; touching objects share a border.

A voxel belongs to the object that it lies deepest in. So two touching objects part midway, like cells that press
against each other.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.phantoms.painting import Bool, Box, Float, Triple, smooth_field
from datamodules.pictures.grids import Grid

SHAPES = ("round", "lobulated", "star", "crescent", "plexiform", "tube")
THIN = ("plexiform", "tube", "crescent")
FAR_PX = -1e4


class Build(NamedTuple):
    """Shape and size of the objects of a type.

    Attributes:
        shape: One of SHAPES.
        radius_px: Radius of a ball of about the same width.
        elongation: Ratio of the longest to the shortest axis.
        roughness: Depth of bumps on the surface, as a share of the radius.
    """

    shape: str
    radius_px: float
    elongation: float
    roughness: float


class Canvas:
    """Objects on a grid.

    Attributes:
        owner: (S, H, W) int32, object that each voxel is in or near; 0 is none.
        first: (S, H, W) float32, depth below the surface of the owner in pixels, negative outside.
        second: (S, H, W) float32, depth below the surface of the next object.
    """

    def __init__(self, rng: np.random.Generator, grid: Grid, bump_px: float) -> None:
        self.grid = grid
        self.owner: NDArray[np.int32] = np.zeros(grid.shape, np.int32)
        self.first: Float = np.full(grid.shape, FAR_PX, np.float32)
        self.second: Float = np.full(grid.shape, FAR_PX, np.float32)
        self._axes = grid.axes()
        self._bumps = smooth_field(rng, grid.shape, grid.spacing_px, max(bump_px, 2 * grid.spacing_px[1]))

    def put(
        self,
        rng: np.random.Generator,
        number: int,
        build: Build,
        centre_px: Triple,
        radius_px: float,
        margin_px: float,
        allowed: Bool | None = None,
    ) -> None:
        """Add an object.

        Args:
            rng: Generator of its shape.
            number: Its id.
            build: Its build; the radius is given apart.
            centre_px: Its centre along the three axes.
            radius_px: Its radius.
            margin_px: Width around it in which depths are needed.
            allowed: (S, H, W) bool, where it may lie; None for everywhere.
        """
        found = _solid(rng, self, build, centre_px, radius_px, margin_px)
        if found is None:
            return
        box, depth = found
        if build.roughness:
            depth += np.float32(build.roughness * radius_px) * self._bumps[box]
        if allowed is not None:
            depth = np.where(allowed[box], depth, np.minimum(depth, np.float32(-margin_px)))
        first, second = self.first[box], self.second[box]
        np.maximum(second, np.minimum(first, depth), out=second)
        wins = depth > first
        self.owner[box][wins] = number
        first[wins] = depth[wins]

    def between(self, gap_px: float = 0.0) -> Float:
        """Return pixels to the middle between the two nearest objects, (S, H, W).

        Args:
            gap_px: How wide the gap between touching objects is.
        """
        apart: Float = np.float32(0.5) * (self.first - self.second - np.float32(gap_px))
        return apart

    def depth(self, gap_px: float = 0.0) -> Float:
        """Return pixels to the surface or to the middle between two objects, (S, H, W), negative outside."""
        nearest: Float = np.minimum(self.first, self.between(gap_px))
        return nearest

    def box(self, centre_px: Triple, reach_px: Triple) -> Box | None:
        """Return the box around a place; None if it is outside of the stack."""
        ends = []
        for at, reach, px, count in zip(centre_px, reach_px, self.grid.spacing_px, self.grid.shape, strict=True):
            low, high = math.floor((at - reach) / px), math.ceil((at + reach) / px) + 1
            ends.append(slice(max(0, low), min(count, high)))
            if ends[-1].stop <= ends[-1].start:
                return None
        return ends[0], ends[1], ends[2]

    def offsets(self, box: Box, centre_px: Triple) -> tuple[Float, Float, Float]:
        """Return pixels from a place along the three axes of a box, ready to be broadcast."""
        z, y, x = self._axes
        return (
            z[box[0]] - np.float32(centre_px[0]),
            y[:, box[1]] - np.float32(centre_px[1]),
            x[box[2]] - np.float32(centre_px[2]),
        )


def _turn(rng: np.random.Generator, elongation: float) -> NDArray[np.float64]:
    """Return a turn (3, 3) that shortens the long axis and lengthens the others, volume kept."""
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    stretch = elongation ** np.array([-2 / 3, 1 / 3, 1 / 3])
    return np.asarray(stretch[:, None] * turn)


def _solid(
    rng: np.random.Generator, canvas: Canvas, build: Build, centre_px: Triple, radius_px: float, margin_px: float
) -> tuple[Box, Float] | None:
    """Return the box of an object and the pixels (s, h, w) below its surface."""
    if build.shape in ("plexiform", "tube"):
        return _tubes(rng, canvas, build, centre_px, radius_px, margin_px)
    turn = _turn(rng, build.elongation)
    reach = 1.25 * radius_px * build.elongation ** (2 / 3) + margin_px
    box = canvas.box(centre_px, (reach, reach, reach))
    if box is None:
        return None
    z, y, x = canvas.offsets(box, centre_px)
    u = [np.float32(row[0]) * z + (np.float32(row[1]) * y + np.float32(row[2]) * x) for row in turn]
    if build.shape == "lobulated":
        return box, _lobes(rng, u, radius_px)
    far = np.sqrt(u[0] * u[0] + u[1] * u[1] + u[2] * u[2])
    surface: Float | np.float32 = np.float32(radius_px)
    if build.shape == "star":  # a surface that depends on the direction alone
        waves = rng.standard_normal((3, 3)) * 2.2
        shift = rng.uniform(0, 2 * math.pi, 3)
        part = np.float32(1) / np.maximum(far, np.float32(0.5))
        wave = np.zeros_like(far)
        for (a, b, c), at in zip(waves.astype(np.float32), shift.astype(np.float32), strict=True):
            wave += np.cos((a * u[0] + b * u[1] + c * u[2]) * part + at)
        surface = np.float32(radius_px) * (1 + np.float32(0.11) * wave)
    depth = surface - far
    if build.shape == "crescent":
        way = turn @ (rng.standard_normal(3) * (0.15, 1.0, 1.0))  # the bite is seen on most slices
        way *= rng.uniform(0.6, 0.85) * radius_px / np.linalg.norm(way)
        a, b, c = way.astype(np.float32)
        bite = np.sqrt((u[0] - a) ** 2 + (u[1] - b) ** 2 + (u[2] - c) ** 2) - np.float32(
            rng.uniform(0.75, 0.9) * radius_px
        )
        np.minimum(depth, bite, out=depth)
    return box, depth


def _lobes(rng: np.random.Generator, u: list[Float], radius_px: float) -> Float:
    """Return the depth (s, h, w) in a heap of 3 to 7 balls, places `u` from its middle."""
    count = int(rng.integers(3, 7))
    ways = rng.standard_normal((count, 3))
    ways *= radius_px * rng.uniform(0.55, 0.8, (count, 1)) / np.linalg.norm(ways, axis=1, keepdims=True)
    radii = radius_px * rng.uniform(0.35, 0.55, count)
    depth: Float = np.float32(0.65 * radius_px) - np.sqrt(u[0] * u[0] + u[1] * u[1] + u[2] * u[2])
    for (a, b, c), radius in zip(ways.astype(np.float32), radii.astype(np.float32), strict=True):
        np.maximum(depth, radius - np.sqrt((u[0] - a) ** 2 + (u[1] - b) ** 2 + (u[2] - c) ** 2), out=depth)
    return depth


def _tubes(
    rng: np.random.Generator, canvas: Canvas, build: Build, centre_px: Triple, radius_px: float, margin_px: float
) -> tuple[Box, Float] | None:
    """Return box and depth of tubes that wander from the middle: one both ways, or a tangle of them."""
    tube_px = max((0.3 if build.shape == "plexiform" else 0.2) * radius_px, 0.8 * canvas.grid.spacing_px[1], 1.2)
    branches = int(rng.integers(3, 6)) if build.shape == "plexiform" else 2
    steps = max(2, round(1.5 * radius_px / tube_px)) if build.shape == "plexiform" else round(2.0 * radius_px / tube_px)
    wander = 0.5 if build.shape == "plexiform" else 0.25
    flat = np.array([0.5, 1.0, 1.0])
    start = rng.standard_normal(3)
    places = [np.zeros(3)]
    for branch in range(branches):
        heading = rng.standard_normal(3) if branches > 2 else start * (1 - 2 * branch)
        place = np.zeros(3)
        for _ in range(steps):
            heading = heading / np.linalg.norm(heading) + wander * rng.standard_normal(3)
            place = place + 0.9 * tube_px * flat * heading / np.linalg.norm(heading)
            places.append(place)
    centres = np.stack(places)
    radii = tube_px * rng.uniform(0.8, 1.15, len(centres))
    reach = np.abs(centres).max(0) + radii.max() + margin_px
    box = canvas.box(centre_px, (reach[0], reach[1], reach[2]))
    if box is None:
        return None
    z, y, x = canvas.offsets(box, centre_px)
    depth = np.full((z.shape[0], y.shape[1], x.shape[0]), FAR_PX, np.float32)
    for at, radius in zip(centres.astype(np.float32), radii.astype(np.float32), strict=True):
        near = [
            slice(*np.searchsorted(axis.ravel(), (a - radius - margin_px, a + radius + margin_px)))
            for axis, a in zip((z, y, x), at, strict=True)
        ]
        dz, dy, dx = z[near[0]] - at[0], y[:, near[1]] - at[1], x[near[2]] - at[2]
        part = depth[near[0], near[1], near[2]]
        np.maximum(part, radius - np.sqrt(dz * dz + (dy * dy + dx * dx)), out=part)
    return box, depth
