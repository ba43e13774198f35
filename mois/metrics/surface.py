"""The surface Dice, on marching-cubes surfaces through the voxel centres, as published.

    cells       between 2 x 2 x 2 voxel centres; a cell whose corners differ holds a piece of the surface
    code        one bit for each corner that lies in the mask, 0 to 255
    piece       polygons through the middles of the edges whose ends differ

A face may have its mask corners on one diagonal and the other corners on the other diagonal. Then the corners of the
kind that is rarer in the cell are kept apart. With four of each kind, the corners in the mask are kept apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import product
from math import nan
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from mois.grid import Edges, Spacing, edges_of

SURFACE_MM = 2.0
_Floats = npt.NDArray[np.float64]
_Places = npt.NDArray[np.int64]
_Corner = tuple[int, int, int]
_Edge = frozenset[_Corner]
_CORNERS: tuple[_Corner, ...] = tuple(product((0, 1), repeat=3))  # type: ignore[arg-type]  # of length 3
_AROUND = ((0, 0), (0, 1), (1, 1), (1, 0))  # the corners of a face, one beside the next
_FULL = 255


def surface_dice(
    found_mask: npt.NDArray[np.bool_],
    true_mask: npt.NDArray[np.bool_],
    spacing_mm: Spacing | Edges,
    tolerance_mm: float = SURFACE_MM,
) -> float:
    """Return the share of both surfaces, by area, that lies within a tolerance of the other surface.

    Distances are measured between the middles of cells.

    Args:
        found_mask: (S, H, W) bool.
        true_mask: (S, H, W) bool.
        spacing_mm: Lengths of a voxel's edges along S, H and W if they are at right angles; otherwise `Edges`.
        tolerance_mm: Distance up to which surfaces agree.

    Returns:
        0 to 1; NaN if the true mask is empty.

    Source: Nikolov et al., J Med Internet Res 23(7), 2021, e26151; the result equals that of their package
    surface-distance.
    """
    found, true = np.flatnonzero(found_mask), np.flatnonzero(true_mask)
    return surface_dice_of_voxels(found, true, true_mask.shape, spacing_mm, tolerance_mm)


def surface_dice_of_voxels(
    found: _Places,
    true: _Places,
    shape: tuple[int, ...],
    spacing_mm: Spacing | Edges,
    tolerance_mm: float = SURFACE_MM,
) -> float:
    """Return the surface Dice of two masks, each given by its voxels; see `surface_dice`.

    Args:
        found: (N,) int64, ascending: places of the mask's voxels in a flat scan.
        true: (M,) int64, those of the true mask.
        shape: (S, H, W) of the scan.
        spacing_mm: As for `surface_dice`.
        tolerance_mm: As for `surface_dice`.
    """
    if not len(true):
        return nan
    edges = edges_of(spacing_mm)
    found_cells, true_cells = _Cells.of(found, shape), _Cells.of(true, shape)
    if not len(found_cells.at):
        return 0.0
    found_area, true_area = found_cells.area(edges), true_cells.area(edges)
    near = 0.0
    for cells, area, others in ((found_cells, found_area, true_cells), (true_cells, true_area, found_cells)):
        near += float(area[cells.near(others, edges, tolerance_mm)].sum())
    return near / float(found_area.sum() + true_area.sum())


def surface_cells(mask: npt.NDArray[np.bool_], spacing_mm: Spacing | Edges) -> tuple[_Floats, _Floats]:
    """Return the cells of a mask's surface and their areas.

    Args:
        mask: (S, H, W) bool; voxels outside of the scan are not in the mask.
        spacing_mm: As for `surface_dice`.

    Returns:
        Middles of the cells that the surface goes through, (N, 3) in mm, and its area in each, (N,) in mm2.
    """
    edges = edges_of(spacing_mm)
    cells = _Cells.of(np.flatnonzero(mask), mask.shape)
    return cells.middles(edges), cells.area(edges)


class _Cells(NamedTuple):
    """The N cells that a surface goes through.

    Attributes:
        at: (N, 3) int64, in ascending order. Cell (0, 0, 0) has voxel (0, 0, 0) as its last corner.
        code: (N,) uint8, their codes.
        size: (S + 1, H + 1, W + 1), how many cells the scan has along each axis.
    """

    at: npt.NDArray[np.int64]
    code: npt.NDArray[np.uint8]
    size: tuple[int, ...]

    @classmethod
    def of(cls, voxels: _Places, shape: tuple[int, ...]) -> _Cells:
        """Return the cells of a mask that is given by its voxels."""
        size = tuple(edge + 1 for edge in shape)
        flat = np.zeros(int(np.prod(size)), np.uint8)
        steps = np.array([size[1] * size[2], size[2], 1])
        last = np.stack(np.unravel_index(voxels, shape), axis=-1) @ steps
        for bit, corner in enumerate(_CORNERS):
            flat[last + int((1 - np.array(corner)) @ steps)] |= np.uint8(1 << bit)
        touched = np.flatnonzero(flat)
        touched = touched[flat[touched] != _FULL]
        return cls(np.stack(np.unravel_index(touched, size), axis=-1), flat[touched], size)

    def middles(self, edges: _Floats) -> _Floats:
        """Return the middles of the cells, (N, 3) in mm."""
        return np.asarray((self.at - 0.5) @ edges)

    def area(self, edges: _Floats) -> _Floats:
        """Return the area of the surface in each cell, (N,) in mm2."""
        return np.asarray(_areas(tuple(edges.ravel().tolist())))[self.code]

    def near(self, others: _Cells, edges: _Floats, tolerance_mm: float) -> npt.NDArray[np.bool_]:
        """Return whether a cell of another surface of the same scan lies within a tolerance of each cell, (N,)."""
        reach_mm = tolerance_mm * (1 + 1e-6) + 1e-9  # the bound is exclusive, and distances are rounded
        steps = _steps_within(reach_mm, edges)
        if steps is None:
            distance, _ = KDTree(others.middles(edges)).query(self.middles(edges), distance_upper_bound=reach_mm)
            return np.isfinite(distance)
        # a table with a margin, in which every step from a cell ends
        reach = np.abs(steps).max(0)
        size = np.array(others.size) + 2 * reach
        strides = np.array([size[1] * size[2], size[2], 1])
        table = np.zeros(int(size.prod()), bool)
        table[(others.at + reach) @ strides] = True
        start = (self.at + reach) @ strides
        near: npt.NDArray[np.bool_] = table[start]
        far = np.flatnonzero(~near)
        for step in (steps[1:] @ strides).tolist():
            met = table[start[far] + step]
            near[far[met]] = True
            far = far[~met]
        return near


MOST_STEPS = 150
"""Steps from a cell to its neighbours that are looked up one after another; with more, a search tree is quicker."""


def _steps_within(reach_mm: float, edges: _Floats) -> npt.NDArray[np.int64] | None:
    """Return the steps between cells that are shorter than a distance, (N, 3), the shortest first.

    Returns:
        None if there are too many, or if rounding could decide whether a step is shorter.
    """
    most = np.floor(reach_mm * np.linalg.norm(np.linalg.inv(edges), axis=0) + 1e-6).astype(np.int64)
    if np.prod(2 * most + 1) > 8 * MOST_STEPS:
        return None
    steps = np.array(list(product(*(range(-n, n + 1) for n in most.tolist()))))
    length = np.linalg.norm(steps @ edges, axis=1)
    near = length < reach_mm
    if near.sum() > MOST_STEPS or (np.abs(length - reach_mm) < 1e-10).any():
        return None
    return np.asarray(steps[near][np.argsort(length[near], kind="stable")], dtype=np.int64)


@lru_cache(maxsize=8)
def _areas(edges_mm: tuple[float, ...]) -> tuple[float, ...]:
    """Return the area of the surface in a cell of each code, in mm2.

    Args:
        edges_mm: The nine numbers of `Edges`.
    """
    edges = np.reshape(edges_mm, (3, 3))
    return tuple(sum(_area(part @ edges) for part in _pieces(code)) for code in range(_FULL + 1))


@cache
def _pieces(code: int) -> tuple[_Floats, ...]:
    """Return the polygons of a code, (M, 3) each on a cell of edge 1, as fans: all triangles share the first point.

    A polygon that does not lie in a plane can be cut in several ways. As in the published table, the fan with the
    largest area on a cube is taken, for every spacing.
    """
    pieces = []
    for polygon in _polygons(code):
        fans = [np.roll(polygon, -first, axis=0) for first in range(len(polygon))]
        pieces.append(max(fans, key=lambda fan: round(_area(fan), 9)))
    return tuple(pieces)


def _area(fan: _Floats) -> float:
    sides = fan[1:] - fan[0]
    return float(np.linalg.norm(np.cross(sides[:-1], sides[1:]), axis=1).sum()) / 2


def _polygons(code: int) -> Iterator[_Floats]:
    """Yield the polygons of a code, (M, 3) each, with the points in order around the polygon."""
    inside = {corner for bit, corner in enumerate(_CORNERS) if code >> bit & 1}
    inside = inside if len(inside) <= 4 else set(_CORNERS) - inside
    beside: dict[_Edge, list[_Edge]] = {}
    for one, other in (line for axis in range(3) for side in (0, 1) for line in _lines(inside, axis, side)):
        beside.setdefault(one, []).append(other)
        beside.setdefault(other, []).append(one)
    left = list(beside)
    while left:
        at: _Edge | None = left[0]
        points = []
        while at is not None:
            left.remove(at)
            points.append(np.mean([list(corner) for corner in at], axis=0))
            at = next((edge for edge in beside[at] if edge in left), None)
        yield np.array(points)


def _lines(inside: set[_Corner], axis: int, side: int) -> Iterator[tuple[_Edge, _Edge]]:
    """Yield the lines of the surface on a face of the cell, each as the two edges of the face that it joins."""
    face = [_corner(axis, side, place) for place in _AROUND]
    edges = [frozenset((face[n - 1], face[n])) for n in range(4)]  # edge n leads to corner n
    cut = [edge for edge in edges if len(edge & inside) == 1]
    if len(cut) == 2:
        yield cut[0], cut[1]
    elif len(cut) == 4:  # two corners across the diagonal: a line cuts off each corner
        for n in range(4):
            if face[n] in inside:
                yield edges[n], edges[(n + 1) % 4]


def _corner(axis: int, side: int, in_face: tuple[int, int]) -> _Corner:
    corner = list(in_face)
    corner.insert(axis, side)
    return corner[0], corner[1], corner[2]
