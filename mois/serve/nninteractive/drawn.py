"""What a client draws, as voxels: lines and outlines on the slices of a session."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mois.lesions import Mask
from mois.serve.refusals import Refusal

Voxels = npt.NDArray[np.float64]
"""Positions (N, 3) in voxel indices of the scan."""
MOST_POINTS = 200
"""A drawn line is followed through so many of its voxels."""


def drawn_line(drawn: npt.NDArray[np.bool_], across: int) -> list[Voxels]:
    """Return the lines of a scribble: one for each slice that it lies on, in the order in which a pen would draw it.

    Args:
        drawn: The drawn voxels, (I, J, K) bool.
        across: Voxel axis across the slices of the session.
    """
    places = np.argwhere(drawn)
    _check(len(places))
    slices = [places[places[:, across] == index] for index in np.unique(places[:, across])]
    return [_in_order(each).astype(np.float64) for each in slices]


def _in_order(places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return voxels in the order of a line through them: from the one that is farthest out, always to the nearest."""
    places = places[:: max(1, len(places) // MOST_POINTS)]
    here = int(np.argmax(np.abs(places - places.mean(0)).sum(1)))
    order, left = [], np.ones(len(places), dtype=bool)
    for _ in range(len(places)):
        order.append(here)
        left[here] = False
        distance = np.where(left, ((places - places[here]) ** 2).sum(1), np.iinfo(np.int64).max)
        here = int(np.argmin(distance))
    return places[order]


def drawn_outline(drawn: npt.NDArray[np.bool_], across: int) -> Voxels:
    """Return the outline of a lasso: the border of its largest part, with everything inside it, on its slice.

    Args:
        drawn: The outline or the filled area, (I, J, K) bool.
        across: Voxel axis across the slices of the session.

    Raises:
        Refusal: If nothing is drawn, or the lasso lies on several slices.
    """
    _check(int(drawn.sum()))
    indices = np.flatnonzero(drawn.any(tuple(axis for axis in range(3) if axis != across)))
    if len(indices) > 1:
        raise Refusal(
            400, f"the lasso lies on {len(indices)} slices; draw it on one slice across axis {across} of the array."
        )
    drawn_plane: Mask = np.moveaxis(drawn, across, 0)[int(indices[0])]
    plane = ndimage.binary_fill_holes(drawn_plane)
    parts, count = ndimage.label(plane, np.ones((3, 3)))
    largest = 1 + int(np.argmax(np.bincount(parts.ravel(), minlength=count + 1)[1:]))
    border = _border(parts == largest)
    return np.insert(border, across, float(indices[0]), axis=1)


def _border(plane: npt.NDArray[np.bool_]) -> Voxels:
    """Return the corners of the outer border of an area (H, W) without holes, (N, 2), half way between voxels."""
    padded = np.pad(plane, 1)
    inside = np.argwhere(padded)
    onward: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row, column in inside.tolist():  # the area lies to the right of each edge
        for neighbour, start, end in (
            ((row - 1, column), (row, column), (row, column + 1)),
            ((row, column + 1), (row, column + 1), (row + 1, column + 1)),
            ((row + 1, column), (row + 1, column + 1), (row + 1, column)),
            ((row, column - 1), (row + 1, column), (row, column)),
        ):
            if not padded[neighbour]:
                onward.setdefault(start, []).append(end)
    first = min(onward)
    path = [first]
    while onward.get(path[-1]):
        path.append(onward[path[-1]].pop())
    return np.array(path[:-1], dtype=np.float64) - 1.5


def _check(voxels: int) -> None:
    if not voxels:
        raise Refusal(400, "nothing is drawn; draw at least one voxel.")


def drawn_box(box: list[list[int]], shape: tuple[int, int, int], across: int) -> tuple[list[float], list[float]]:
    """Return two opposite voxels of a box on its slice; a box over several slices counts on its middle slice.

    Args:
        box: First voxel and the voxel after the last, for each axis.
        shape: Shape of the scan.
        across: Voxel axis across the slices of the session.

    Raises:
        Refusal: If the box is empty or lies outside the scan, or is drawn across the slices.
    """
    if len(box) != 3 or not all(0 <= low < high <= size for (low, high), size in zip(box, shape, strict=True)):
        raise Refusal(400, f"bbox_coords={str(box)[:80]} must lie within the scan, [[first, after the last], ...].")
    if any(ends[1] - ends[0] < 2 for axis, ends in enumerate(box) if axis != across):
        raise Refusal(400, f"the box is one voxel wide; draw it on a slice across axis {across} of the array.")
    low, high = ([float(ends[0]) for ends in box], [float(ends[1] - 1) for ends in box])
    low[across] = high[across] = float((box[across][0] + box[across][1] - 1) // 2)
    return low, high
