"""Packing: where objects lie. They are sparse, in clusters, or packed like the cells of a tissue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.phantoms.painting import Bool, Triple
from datamodules.pictures.grids import Grid
from datamodules.pictures.objects import Build

MOST_OBJECTS = 180
_CENTRES = 24  # centres that are tried for each object


class Place(NamedTuple):
    """Place of an object.

    Attributes:
        kind: Number of its build.
        centre_px: Its centre along the three axes.
        radius_px: Its radius.
    """

    kind: int
    centre_px: Triple
    radius_px: float


class Crowding(NamedTuple):
    """How objects lie to each other.

    Attributes:
        counts: Number of objects of each kind that are wanted.
        squeeze: Smallest distance of two centres, as a share of the sum of the radii; below 1 objects touch.
        touching: Share of objects that are placed in touch with the last object of their kind.
    """

    counts: list[int]
    squeeze: float
    touching: float


def draw_crowding(
    rng: np.random.Generator, grid: Grid, builds: Sequence[Build], lesions: int, crowded: bool
) -> Crowding:
    """Draw the numbers of objects. The first `lesions` kinds share the room evenly; distractors take less of it."""
    depth, height, width = grid.extent_px
    if crowded:
        share, squeeze, touching = rng.uniform(0.7, 1.8), rng.uniform(0.72, 0.95), rng.uniform(0.2, 0.7)
    elif rng.random() < 0.6:  # sparse
        share, squeeze, touching = rng.uniform(0.03, 0.15), rng.uniform(1.05, 1.5), 0.0
    else:  # sparse, in clusters
        share, squeeze, touching = rng.uniform(0.06, 0.3), rng.uniform(0.78, 0.95), rng.uniform(0.2, 0.6)
    counts = []
    for kind, build in enumerate(builds):
        room = (height + build.radius_px) * (width + build.radius_px) / (math.pi * build.radius_px**2)
        room *= max(1.0, (depth + build.radius_px) / (2 * build.radius_px))
        lesion = kind < lesions
        part = share / lesions if lesion else float(rng.uniform(0.01, 0.06))
        counts.append(int(np.clip(round(part * room), *((5, MOST_OBJECTS // lesions) if lesion else (2, 20)))))
    return Crowding(counts, float(squeeze), float(touching))


def pack(
    rng: np.random.Generator,
    grid: Grid,
    builds: Sequence[Build],
    spreads: Sequence[float],
    crowding: Crowding,
    hosts: Sequence[Bool | None],
) -> list[Place]:
    """Find places for objects of several kinds; fewer where there is no room.

    Args:
        rng: Generator of the places.
        grid: Grid of the stack.
        builds: Build of each kind.
        spreads: Standard deviation of the logarithm of the radius, for each kind.
        crowding: Numbers and distances of objects.
        hosts: Voxels (S, H, W) that may hold a centre, for each kind; None for all voxels.
    """
    sizes = np.array([build.radius_px for build in builds])
    wanted = np.repeat(np.arange(len(builds)), crowding.counts)
    rng.shuffle(wanted)
    if rng.random() < 0.5:  # the large ones first
        wanted = wanted[np.argsort(-sizes[wanted], kind="stable")]
    radii = sizes[wanted] * np.exp(np.clip(rng.standard_normal(len(wanted)), -2, 2) * np.array(spreads)[wanted])
    taken = np.zeros((len(wanted), 4))
    places: list[Place] = []
    last: dict[int, Place] = {}
    for kind, radius in zip(wanted.tolist(), radii.tolist(), strict=True):
        near = last.get(kind) if rng.random() < crowding.touching else None
        centres = _near(rng, near, radius) if near is not None else _anywhere(rng, grid, radius)
        gaps = centres[:, None] - taken[None, : len(places), :3]
        apart = np.sqrt((gaps**2).sum(-1)) >= crowding.squeeze * (radius + taken[None, : len(places), 3]) - 1e-6
        free = np.flatnonzero(apart.all(1) & _inside(grid, hosts[kind], centres))
        if not len(free):
            continue
        z, y, x = (float(at) for at in centres[free[0]])
        place = Place(kind, (z, y, x), radius)
        taken[len(places)] = (z, y, x, radius)
        places.append(place)
        last[kind] = place
    return places


def _anywhere(rng: np.random.Generator, grid: Grid, radius: float) -> NDArray[np.float64]:
    """Draw centres (N, 3); some lie outside of the stack, so that it cuts objects."""
    ends = np.array(grid.extent_px)
    beyond = np.array([0.6, 0.4, 0.4]) * radius
    return rng.uniform(-beyond, ends + beyond, (_CENTRES, 3))


def _near(rng: np.random.Generator, partner: Place, radius: float) -> NDArray[np.float64]:
    """Draw centres (N, 3) at which an object touches another one."""
    ways = rng.standard_normal((_CENTRES, 3)) * (0.5, 1, 1)
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    return np.array(partner.centre_px) + ways * rng.uniform(0.8, 0.98, (_CENTRES, 1)) * (radius + partner.radius_px)


def _inside(grid: Grid, host: Bool | None, centres: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which centres (N, 3) lie in the host."""
    if host is None:
        return np.ones(len(centres), bool)
    at = np.floor(centres / grid.spacing_px).astype(np.intp)
    slices = np.clip(at[:, 0], 0, grid.shape[0] - 1)
    rows, columns = (np.clip(at[:, k], 0, grid.shape[k] - 1) for k in (1, 2))
    inside: NDArray[np.bool_] = host[slices, rows, columns]
    return inside
