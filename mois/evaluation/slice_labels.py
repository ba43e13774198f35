"""Labels on the picture of a slice: the numbers of lesions, and a scale bar."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy import ndimage

MAX_NUMBERS = 40
"""Largest number of labels on one slice; more labels would hide the lesions."""

NUMBER_PT = 9
FAR_PT = 14.0
"""Distance in points from a lesion. A label farther away gets a line to its lesion."""

Box = tuple[float, float, float, float]
"""Left, bottom, right and top in points."""


def scale_mm(width_mm: float) -> float:
    """Return the length of a scale bar in mm: 1, 2 or 5 times a power of ten, at most a third of the width."""
    power = 10.0 ** math.floor(math.log10(width_mm / 3))
    return max(step * power for step in (1, 2, 5) if step * power <= width_mm / 3)


def scale_bar(axes: Axes, shape: tuple[int, ...], column_mm: float) -> None:
    """Draw a scale bar with its length at the lower left of a slice.

    Args:
        axes: The axes that show the slice.
        shape: (H, W) of the slice.
        column_mm: Width of a pixel in mm.
    """
    length_mm = scale_mm(shape[1] * column_mm)
    left, row = 0.04 * shape[1], 0.96 * shape[0]
    edge = [withStroke(linewidth=3.5, foreground="black")]
    axes.plot([left, left + length_mm / column_mm], [row, row], color="white", linewidth=2, path_effects=edge)
    text_style: dict[str, Any] = {"textcoords": "offset points", "color": "white", "fontsize": 8, "path_effects": edge}
    axes.annotate(f"{length_mm:g} mm", (left, row), (0, 4), **text_style)


def number_lesions(figure: Figure, axes: Axes, of_slice: npt.NDArray[np.int32]) -> None:
    """Write the number of each lesion beside its largest piece, without overlaps. The figure must be laid out.

    Args:
        figure: The figure; its layout must not change any more.
        axes: The axes that show the slice.
        of_slice: (H, W) int32, ids of the lesions.
    """
    ids = np.unique(of_slice[of_slice > 0])
    if len(ids) > MAX_NUMBERS:
        return
    axes.apply_aspect()
    points = 72 / figure.dpi
    left, bottom, right, top = (float(edge) * points for edge in axes.get_window_extent().extents)
    taken: list[Box] = []
    for lesion in ids.tolist():
        anchor = _corner(of_slice == lesion)
        x, y = (float(value) * points for value in axes.transData.transform(anchor))
        width, height = 0.7 * NUMBER_PT * len(str(lesion)), NUMBER_PT
        places = [(dx, dy, (x + dx, y + dy, x + dx + width, y + dy + height)) for dx, dy in _offsets(width)]
        inside = [
            spot
            for spot in places
            if spot[2][0] >= left and spot[2][1] >= bottom and spot[2][2] <= right and spot[2][3] <= top
        ]
        free = (spot for spot in inside if not any(_overlap(spot[2], box) for box in taken))
        dx, dy, box = next(free, places[0])
        taken.append(box)
        arrow = {"arrowstyle": "-", "color": "white", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(
            str(lesion),
            anchor,
            (dx, dy),
            textcoords="offset points",
            color="white",
            fontsize=NUMBER_PT,
            fontweight="bold",
            path_effects=[withStroke(linewidth=2.5, foreground="black")],
            arrowprops=arrow if math.hypot(max(dx, -dx - width, 0.0), dy) > FAR_PT else None,
        )


def _corner(lesion: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Return the right upper corner (column, row) of a lesion's largest piece."""
    pieces, _ = ndimage.label(lesion)
    rows, columns = np.nonzero(pieces == np.bincount(pieces[pieces > 0]).argmax())
    return int(columns.max()), int(rows.min())


def _offsets(width: float) -> Iterator[tuple[float, float]]:
    """Yield possible offsets of a label of this width from its lesion, in points, nearest first."""
    yield 2, 2
    for ring in range(1, 9):
        away = 0.75 * ring * NUMBER_PT
        for dy in (away, -away, 0.0, away / 2, -away / 2):
            yield 2 + away, dy
            yield -2 - away - width, dy
        yield -width / 2, away
        yield -width / 2, -away - NUMBER_PT


def _overlap(first: Box, second: Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
