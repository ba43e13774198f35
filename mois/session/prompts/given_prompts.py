"""What a reader gives, in LPS millimetres or as a mask of the scan, as prompts on the scan's stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mois.geometry import SliceGrid
from mois.session.journal import MOST_POINTS
from mois.session.masks import BoxMask, unpack_mask
from mois.session.points import StackPoint, stack_point
from mois.session.prompts.drawing import Position, along_line, line_pixels, outline_pixels
from mois.session.prompts.prompt_voxels import footprint
from mois.session.state import MOST_SCRIBBLE_POINTS, Prompt

PointsMm = Sequence[Sequence[float]]


def click_prompt(grid: SliceGrid, point_lps_mm: Sequence[float], positive: bool) -> Prompt:
    """Return a click at a point.

    Raises:
        ValueError: If the point lies outside the scan.
    """
    point = stack_point(grid, point_lps_mm)
    return Prompt("click", point.slice_index, ((point.row, point.column),), positive)


def box_prompt(grid: SliceGrid, corners_lps_mm: PointsMm, positive: bool) -> Prompt:
    """Return a box on one slice, from two opposite corners.

    Raises:
        ValueError: If there are not two corners, one lies outside the scan, or they lie on two slices.
    """
    if len(corners_lps_mm) != 2:
        raise ValueError(f"corners_lps_mm: {len(corners_lps_mm)} points; a box has two opposite corners.")
    first, second = (stack_point(grid, corner) for corner in corners_lps_mm)
    if abs(first.slice_index - second.slice_index) > 1:
        raise ValueError(
            f"corners_lps_mm={[list(corner) for corner in corners_lps_mm]} lie on slices {first.slice_index} and "
            f"{second.slice_index}; a box is drawn on one slice."
        )
    return Prompt("box", first.slice_index, _around([(each.row, each.column) for each in (first, second)]), positive)


def mask_prompt(grid: SliceGrid, mask: Mapping[str, Any], positive: bool) -> Prompt:
    """Return a packed mask on the scan's grid as a prompt.

    Raises:
        ValueError: If it is damaged, empty, or does not fit into the scan.
    """
    given = unpack_mask(mask, grid.shape)
    box = BoxMask.of(grid.to_stack(torch.from_numpy(given)).numpy())
    if not box.voxels:
        raise ValueError("mask: it is empty; give a mask with at least one voxel.")
    return Prompt("mask", box.corner[0], positive=positive, mask=box)


def scribble_prompt(grid: SliceGrid, points_lps_mm: PointsMm, positive: bool) -> Prompt:
    """Return a line that is drawn through points on one slice.

    Raises:
        ValueError: If there are fewer than two points or too many, one lies outside the scan, or they lie on two
            slices.
    """
    index, line = _on_one_slice(grid, points_lps_mm, "a scribble", 2)
    plane = line_pixels(line, grid.stack_shape[1:])
    count = min(MOST_SCRIBBLE_POINTS, int(plane.sum()))
    places = tuple(along_line(line, count, (grid.row_mm, grid.column_mm)))
    return Prompt("scribble", index, places, positive, BoxMask.of(plane[None], (index, 0, 0)))


def lasso_prompt(grid: SliceGrid, points_lps_mm: PointsMm, positive: bool) -> Prompt:
    """Return an outline on one slice. Its last point is joined to the first; where it crosses itself, even-odd holds.

    Raises:
        ValueError: If there are fewer than three points or too many, one lies outside the scan, they lie on two slices,
            or the outline holds no centre of a voxel.
    """
    index, outline = _on_one_slice(grid, points_lps_mm, "a lasso", 3)
    inside = BoxMask.of(outline_pixels(outline, grid.stack_shape[1:])[None], (index, 0, 0))
    if not inside.voxels:
        raise ValueError("points_lps_mm: the lasso holds no centre of a voxel; draw it larger, or click.")
    return Prompt("lasso", index, _around(outline), positive, inside)


def drawn_voxels(grid: SliceGrid, prompt: Prompt) -> BoxMask:
    """Return the voxels of a prompt: of its area, its line, or its point."""
    if prompt.mask is not None:
        return prompt.mask
    plane = footprint(prompt, prompt.slice_index, grid.stack_shape[1:], (grid.row_mm, grid.column_mm))
    return BoxMask.of(plane[None], (prompt.slice_index, 0, 0))


def _on_one_slice(grid: SliceGrid, points: PointsMm, kind: str, least: int) -> tuple[int, list[Position]]:
    """Return the slice of the first point, and all points as (row, column).

    Raises:
        ValueError: If there are too few or too many points, one lies outside the scan, or they lie on two slices.
    """
    if not least <= len(points) <= MOST_POINTS:
        raise ValueError(f"points_lps_mm: {len(points)} points; {kind} has {least} to {MOST_POINTS} points.")
    placed: list[StackPoint] = [stack_point(grid, point) for point in points]
    index = placed[0].slice_index
    for point, given in zip(placed, points, strict=True):
        if abs(point.slice_index - index) > 1:
            raise ValueError(
                f"points_lps_mm: {list(points[0])} lies on slice {index} and {list(given)} on slice "
                f"{point.slice_index}; {kind} is drawn on one slice."
            )
    return index, [(point.row, point.column) for point in placed]


def _around(places: Sequence[Position]) -> tuple[Position, Position]:
    """Return two opposite corners of the box around some places."""
    rows, columns = [row for row, _ in places], [column for _, column in places]
    return (min(rows), min(columns)), (max(rows), max(columns))
