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

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from mois.grid import Edges, Spacing, edges_of

SURFACE_MM = 2.0
_Floats = npt.NDArray[np.float64]
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
    if not true_mask.any():
        return nan
    found_mm, found_area = surface_cells(found_mask, spacing_mm)
    true_mm, true_area = surface_cells(true_mask, spacing_mm)
    if not len(found_mm):
        return 0.0
    near = 0.0
    for points, area, others in ((found_mm, found_area, true_mm), (true_mm, true_area, found_mm)):
        # the bound is exclusive, and distances are rounded
        distance, _ = KDTree(others).query(points, distance_upper_bound=tolerance_mm * (1 + 1e-6) + 1e-9)
        near += float(area[np.isfinite(distance)].sum())
    return near / float(found_area.sum() + true_area.sum())


def surface_cells(mask: npt.NDArray[np.bool_], spacing_mm: Spacing | Edges) -> tuple[_Floats, _Floats]:
    """Return the cells of a mask's surface and their areas.

    Args:
        mask: (S, H, W) bool; voxels outside of the scan are not in the mask.
        spacing_mm: As for `surface_dice`.

    Returns:
        Middles of the cells that the surface goes through, (N, 3) in mm, and its area in each, (N,) in mm2.
    """
    box = [np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    if not len(box[0]):
        return np.zeros((0, 3)), np.zeros(0)
    start = np.array([places[0] for places in box])
    inside = np.pad(mask[tuple(slice(places[0], places[-1] + 1) for places in box)], 1).view(np.uint8)
    size = tuple(edge - 1 for edge in inside.shape)
    code = np.zeros(size, np.uint8)
    for bit, corner in enumerate(_CORNERS):
        code |= inside[tuple(slice(at, at + edge) for at, edge in zip(corner, size, strict=True))] << np.uint8(bit)
    cells = np.argwhere((code != 0) & (code != _FULL))
    edges = edges_of(spacing_mm)
    area = np.asarray(_areas(tuple(edges.ravel().tolist())))[code[tuple(cells.T)]]
    return (cells + start - 0.5) @ edges, area


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
