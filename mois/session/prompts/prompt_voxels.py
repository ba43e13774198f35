"""What the prompts on a slice say about its voxels, whatever the model answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mois.lesions import Mask
from mois.session.prompts.drawing import grown
from mois.session.state import Prompt

PixelMm = tuple[float, float]
"""Height and width of a pixel."""


def footprint(prompt: Prompt, index: int, shape: tuple[int, int], pixel_mm: PixelMm, radius_mm: float = 0.0) -> Mask:
    """Return the voxels of a prompt on a slice.

    Args:
        prompt: The prompt.
        index: The slice.
        shape: Shape (H, W) of a slice.
        pixel_mm: Height and width of a pixel.
        radius_mm: Distance from a click within which the centres of voxels belong to the click.

    Returns:
        (H, W) bool: the voxels around a click, in a box, of a mask, on a scribble, or inside a lasso.
    """
    if prompt.mask is not None:
        return prompt.mask.on_slice(index, shape)
    plane = np.zeros(shape, dtype=bool)
    if prompt.kind == "box":
        (top, left), (bottom, right) = prompt.points
        plane[round(top) : round(bottom) + 1, round(left) : round(right) + 1] = True
        return plane
    row, column = prompt.points[0]
    rows = (np.arange(shape[0]) - row) * pixel_mm[0]
    columns = (np.arange(shape[1]) - column) * pixel_mm[1]
    plane[rows[:, None] ** 2 + columns[None] ** 2 <= radius_mm**2] = True
    plane[round(row), round(column)] = True
    return plane


def ruled_out(
    prompts: Sequence[Prompt], index: int, shape: tuple[int, int], pixel_mm: PixelMm, radius_mm: float
) -> Mask | None:
    """Return the voxels that areas on a slice take out of the lesion, (H, W) bool; None if there are none.

    - A negative box, mask or lasso takes its area out, until a later positive prompt covers a voxel of it.
    - A positive lasso takes out all but its area, grown by one pixel, until a later positive prompt follows.

    Args:
        prompts: The prompts on the slice, in order.
        index: The slice.
        shape: Shape (H, W) of a slice.
        pixel_mm: Height and width of a pixel.
        radius_mm: See `footprint`.
    """
    if not any(prompt.erases or prompt.kind == "lasso" for prompt in prompts):
        return None
    out = np.zeros(shape, dtype=bool)
    beyond: Mask | None = None
    for prompt in prompts:
        if prompt.erases:
            out |= footprint(prompt, index, shape, pixel_mm)
        elif prompt.positive:
            here = footprint(prompt, index, shape, pixel_mm, radius_mm)
            out &= ~here
            beyond = ~grown(here) if prompt.kind == "lasso" else None
    return out if beyond is None else out | beyond


def corrected(plane: Mask, prompts: Sequence[Prompt], index: int, pixel_mm: PixelMm, radius_mm: float) -> Mask:
    """Return a lesion on a slice as the prompts there want it.

    Args:
        plane: The lesion, (H, W) bool, as the model answers it. It may be changed.
        prompts: The prompts on the slice, in order. Where two contradict each other, the later holds.
        index: The slice.
        pixel_mm: Height and width of a pixel.
        radius_mm: See `footprint`.
    """
    shape = plane.shape[0], plane.shape[1]
    for number, prompt in enumerate(prompts):
        if prompt.gives_mask and not prompt.is_whole and all(later.erases for later in prompts[number + 1 :]):
            plane = footprint(prompt, index, shape, pixel_mm)
        elif prompt.kind in ("click", "scribble"):
            plane[footprint(prompt, index, shape, pixel_mm, radius_mm)] = prompt.positive
    out = ruled_out(prompts, index, shape, pixel_mm, radius_mm)
    return plane if out is None else plane & ~out
