"""Exemplars that are no lesions of the scan: lesions painted or cut from other scans, and normal anatomy.

They become the second group of an episode. So the exemplars matter even if the data have one lesion class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from datamodules.phantoms.lesion_types import draw_lesion_type
from datamodules.phantoms.painting import paint_lesion
from datamodules.subjects import BODY, Patch, PatchWindow, PreparedSubject

_TRIES = 4
_SMALLEST_PX = 4


class ForeignLesion(Protocol):
    """One kind of foreign lesion. Every call draws another lesion of this kind."""

    def __call__(
        self,
        image: NDArray[np.float32],
        centre: tuple[float, float, float],
        volume_ml: float,
        spacing_mm: tuple[float, float, float],
        rng: np.random.Generator,
    ) -> NDArray[np.bool_]:
        """Draw a lesion into `image` (S, H, W), outside of its zeros; the image is changed.

        Args:
            image: Intensities (S, H, W); 0 where no lesion may lie.
            centre: Slice, row and column of the lesion's centre.
            volume_ml: Wanted volume in millilitres.
            spacing_mm: Spacing of slices, rows and columns.
            rng: Source of random numbers.

        Returns:
            The mask of the lesion, (S, H, W) bool; empty if it did not fit.
        """
        ...


Painter = Callable[[np.random.Generator], ForeignLesion]


def paint_random_types(rng: np.random.Generator) -> ForeignLesion:
    """Draw a lesion type of the phantoms, but no held-back type. Return the function that paints its lesions."""
    kind = draw_lesion_type(rng)

    def paint(
        image: NDArray[np.float32],
        centre: tuple[float, float, float],
        volume_ml: float,
        spacing_mm: tuple[float, float, float],
        rng: np.random.Generator,
    ) -> NDArray[np.bool_]:
        return paint_lesion(image, centre, kind, volume_ml, spacing_mm, rng)

    return paint


def cut_from(donor: PreparedSubject, kind: int) -> ForeignLesion:
    """Return the function that transplants lesions of a class of another scan, slice by slice.

    A lesion keeps its brightness relative to the tissue around it.
    """
    rows = np.flatnonzero(donor.table.kind == kind)

    def transplant(
        image: NDArray[np.float32],
        centre: tuple[float, float, float],
        volume_ml: float,
        spacing_mm: tuple[float, float, float],  # noqa: ARG001 - lesions have this spacing already
        rng: np.random.Generator,
    ) -> NDArray[np.bool_]:
        size, mask = image.shape[-1], np.zeros(image.shape, bool)
        nearest = np.abs(np.log(donor.table.volume_ml[rows] / max(volume_ml, 1e-6)))
        row = int(rows[rng.choice(np.argsort(nearest)[:5])])
        pixels = donor.table.pixels[donor.table.first[row] : donor.table.first[row + 1]]
        middle = pixels.mean(0)
        patch = donor.cut(donor.window(int(donor.table.slice[row]), float(middle[0]), float(middle[1]), size))
        lesion = patch.lesions.numpy() == donor.table.lesion[row]
        shift = [round(centre[1 + axis] - float(np.argwhere(lesion).mean(0)[axis])) for axis in (0, 1)]
        moved = _shift(lesion, shift) & (image[0] > 0)
        if not moved.any():
            return mask
        shown = patch.first.numpy()
        near = ndimage.binary_dilation(lesion, iterations=3)
        ring = near & (patch.lesions.numpy() == 0)
        level = float(shown[ring].mean()) if ring.any() else 0.0
        around = image[0][ndimage.binary_dilation(moved, iterations=3) & ~moved & (image[0] > 0)]
        here = float(around.mean()) if around.size else level
        alpha = _shift(ndimage.gaussian_filter(lesion.astype(np.float32), 0.7), shift) * (image[0] > 0)
        look = _shift(shown, shift) - level + here
        image[0] += alpha * (np.maximum(look, 0.02) - image[0])
        mask[0] = moved
        return mask

    return transplant


def _shift(picture: NDArray, by: Sequence[int]) -> NDArray:  # type: ignore[type-arg]
    """Move a picture (H, W) by whole pixels. New pixels are 0."""
    moved = np.zeros_like(picture)
    to = tuple(slice(max(0, n), picture.shape[axis] + min(0, n)) for axis, n in enumerate(by))
    out = tuple(slice(max(0, -n), picture.shape[axis] + min(0, -n)) for axis, n in enumerate(by))
    moved[to] = picture[out]
    return moved


def plant(
    patch: Patch,
    lesion: ForeignLesion,
    area_mm2: float,
    subject: PreparedSubject,
    rng: np.random.Generator,
    contrasts: Sequence[float] = (),
) -> Tensor:
    """Draw a foreign lesion into a patch, anywhere on tissue outside of lesions; the patch is changed.

    Args:
        patch: The patch.
        lesion: The kind of lesion.
        area_mm2: Wanted area in mm2.
        subject: The scan of the patch.
        rng: Source of random numbers.
        contrasts: For each further channel, its contrast as a multiple of the contrast in the first channel.

    Returns:
        The mask of the lesion, (P, P) bool; empty if there was no room.
    """
    image = patch.first.numpy()
    free = (image > BODY) & (patch.lesions.numpy() == 0)
    places = np.argwhere(free)
    spacing_mm = (subject.gap_mm, subject.pixel_mm, subject.pixel_mm)
    for attempt in range(_TRIES if len(places) else 0):
        row, column = places[rng.integers(len(places))]
        work = np.where(free, image, np.float32(0))[None].astype(np.float32)
        volume_ml = area_mm2 * 0.7**attempt * subject.gap_mm / 1000
        mask = lesion(work, (0.0, float(row), float(column)), volume_ml, spacing_mm, rng)[0] & free
        if mask.sum() >= _SMALLEST_PX:
            change = work[0][free] / image[free] - 1  # where it is free, the image is above BODY
            image[free] = work[0][free]
            for further, contrast in zip(patch.image[1:].numpy() if contrasts else (), contrasts, strict=True):
                further[free] *= np.clip(1 + contrast * change, 0.02, None)
            return torch.from_numpy(mask)
    return torch.zeros(patch.lesions.shape, dtype=torch.bool)


def anatomy(
    subject: PreparedSubject, count: int, area_px: float, avoid_slice: int, patch_px: int, rng: np.random.Generator
) -> list[tuple[Patch, Tensor]]:
    """Return patches, each with the mask (P, P) of a piece of normal tissue. The pieces are about equally bright.

    A piece is the connected tissue near a random pixel, with about the brightness of this pixel.
    """
    away = subject.body[subject.body[:, 0] != avoid_slice]
    patches: list[tuple[Patch, Tensor]] = []
    wanted: float | None = None
    for _ in range(_TRIES * count if len(away) else 0):
        at = away[rng.integers(len(away), size=8)]
        levels = subject.brightness(at)
        pick = int(np.abs(levels - wanted).argmin()) if wanted is not None else int(rng.integers(8))
        slice_, row, column = (int(i) for i in at[pick])
        reach = patch_px // 4
        shift = rng.integers(-reach, reach + 1, size=2)
        window = subject.window(slice_, row + shift[0], column + shift[1], patch_px)
        patch = subject.cut(window)
        seed = (row - window.row, column - window.column)
        if not (0 <= seed[0] < patch_px and 0 <= seed[1] < patch_px):
            continue
        mask = _piece(patch, seed, area_px)
        if mask.sum() >= _SMALLEST_PX:
            wanted = float(levels[pick]) if wanted is None else wanted
            patches.append((patch, torch.from_numpy(mask)))
        if len(patches) == count:
            break
    return patches


def _piece(patch: Patch, seed: tuple[int, int], area_px: float) -> NDArray[np.bool_]:
    image = patch.first.numpy()
    reach = max(2, round(1.3 * float(np.sqrt(area_px / np.pi))))
    low = [max(0, at - reach) for at in seed]
    box = tuple(slice(start, at + reach + 1) for start, at in zip(low, seed, strict=True))
    smooth = ndimage.uniform_filter(image[box], 3)
    middle = (seed[0] - low[0], seed[1] - low[1])
    rows, columns = np.ogrid[: smooth.shape[0], : smooth.shape[1]]
    near = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 <= reach**2
    alike = near & (np.abs(smooth - smooth[middle]) < 0.12) & (patch.lesions.numpy()[box] == 0)
    parts, _ = ndimage.label(alike)
    mask = np.zeros(image.shape, bool)
    if parts[middle]:
        mask[box] = parts == parts[middle]
    return mask


def window_on_body(
    subject: PreparedSubject,
    patch_px: int,
    rng: np.random.Generator,
    avoid_slices: Sequence[int] | NDArray[np.int64] = (),
) -> PatchWindow:
    """Return a window around a random pixel of tissue, if possible on other slices than `avoid_slices`."""
    body = subject.body[~np.isin(subject.body[:, 0], avoid_slices)] if len(avoid_slices) else subject.body
    body = body if len(body) else subject.body
    slice_, row, column = (int(i) for i in body[rng.integers(len(body))])
    return subject.window(slice_, row, column, patch_px)
