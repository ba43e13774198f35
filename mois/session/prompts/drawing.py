"""Lines and outlines that a reader draws on a slice, as pixels.

Positions are (row, column) in pixels of a slice; whole numbers are the centres of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy import ndimage

from mois.lesions import Mask

Position = tuple[float, float]
DECIMALS = 6
"""Positions are rounded to so many decimals, so that a line half way between pixels falls on the same side always."""


def line_pixels(line: Sequence[Position], shape: tuple[int, int]) -> Mask:
    """Return the pixels on a line through positions.

    Args:
        line: The positions, in the order drawn; one or more, within the slice.
        shape: Shape (H, W) of the slice.

    Returns:
        (H, W) bool. Neighbouring pixels of the line touch by an edge or a corner.
    """
    plane = np.zeros(shape, dtype=bool)
    corners = np.array(line, dtype=np.float64)
    parts = [corners[:1]]
    for start, end in pairwise(corners):
        steps = max(1, math.ceil(float(np.abs(end - start).max())))  # at most a pixel each
        parts.append(start + np.linspace(0, 1, steps + 1)[1:, None] * (end - start))
    places = np.rint(np.concatenate(parts).round(DECIMALS)).astype(np.int64)
    places = places.clip(0, np.array(shape) - 1)
    plane[places[:, 0], places[:, 1]] = True
    return plane


def along_line(line: Sequence[Position], count: int, pixel_mm: tuple[float, float]) -> list[Position]:
    """Return positions that part a line into pieces of one length, each in the middle of its piece.

    Args:
        line: The positions of the line, in the order drawn.
        count: Number of positions.
        pixel_mm: Height and width of a pixel in mm.
    """
    corners = np.array(line, dtype=np.float64)
    lengths = np.linalg.norm(np.diff(corners, axis=0) * np.array(pixel_mm), axis=1)
    reached = np.concatenate([[0.0], lengths.cumsum()])
    wanted = (np.arange(count) + 0.5) / count * reached[-1]
    rows, columns = (np.interp(wanted, reached, corners[:, axis]) for axis in (0, 1))
    return [(float(row), float(column)) for row, column in zip(rows, columns, strict=True)]


def outline_pixels(outline: Sequence[Position], shape: tuple[int, int]) -> Mask:
    """Return the pixels whose centre lies inside an outline.

    An outline that crosses itself is filled by the even-odd rule: a pixel is inside if a way out of the outline crosses
    it an odd number of times.

    Args:
        outline: Corners of the outline; the last is joined to the first.
        shape: Shape (H, W) of the slice.

    Returns:
        (H, W) bool.
    """
    corners = np.array(outline, dtype=np.float64).round(DECIMALS)
    inside = np.zeros(shape, dtype=bool)
    columns = np.arange(shape[1])
    for (row, column), (next_row, next_column) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        first, stop = (min(max(0, math.ceil(end)), shape[0]) for end in sorted((row, next_row)))
        if first == stop:  # no centre of a row lies between the two corners
            continue
        rows = np.arange(first, stop)
        at = column + (rows - row) / (next_row - row) * (next_column - column)
        inside[first:stop] ^= columns < at.round(DECIMALS)[:, None]
    return inside


def grown(plane: Mask) -> Mask:
    """Return pixels (H, W) bool, and those that touch them by an edge or a corner."""
    larger: Mask = ndimage.binary_dilation(plane, np.ones((3, 3), dtype=bool))
    return larger
