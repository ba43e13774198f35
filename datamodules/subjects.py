"""Prepared scans, from which episodes are drawn: a stack at the pixel size of the training, and a table of lesions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torchio as tio
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mois.errors import DataError
from mois.geometry import LARGEST_TILE, SliceAxis, SliceGrid, resample_stack
from mois.intensities import Normalisation
from mois.records import Volume
from mois.scans.channels import normalised_stack

BODY = 0.1
"""Normalised intensity above which a pixel is tissue."""
REJECTED_KIND = -1
"""Class of places that a reader rejected: no lesions."""
_BODY_PIXELS = 20_000
_ID_TYPES = (torch.uint8, torch.int16, torch.int32)


class LesionSlices(NamedTuple):
    """Table with one row for each slice of each lesion. Row r has the pixels `first[r]:first[r + 1]`.

    Attributes:
        lesion: (R,) int64, lesion id.
        kind: (R,) int64, class of the lesion; `REJECTED_KIND` for a place that a reader rejected.
        slice: (R,) int64, number of the slice.
        area_px: (R,) int64, pixels of the lesion on this slice.
        volume_ml: (R,) float64, volume of the whole lesion in millilitres.
        first: (R + 1,) int64, first pixel of the row in `pixels`.
        pixels: (N, 2) int16, row and column.
    """

    lesion: NDArray[np.int64]
    kind: NDArray[np.int64]
    slice: NDArray[np.int64]
    area_px: NDArray[np.int64]
    volume_ml: NDArray[np.float64]
    first: NDArray[np.int64]
    pixels: NDArray[np.int16]


class PatchWindow(NamedTuple):
    """Place of a patch: its slice, and row and column of its top left pixel."""

    slice: int
    row: int
    column: int


class Patch(NamedTuple):
    """Content of a window: image (P, P) float32, with C channels (C, P, P); and lesion ids (P, P) int32."""

    image: Tensor
    lesions: Tensor

    @property
    def first(self) -> Tensor:
        """The first or only channel, (P, P); a view."""
        return self.image if self.image.dim() == 2 else self.image[0]


class LesionSampler(tio.WeightedSampler):  # type: ignore[misc]
    """Draws patches around lesions. Small lesions are drawn as often as large lesions.

    It is the sampler of TorchIO with a probability map. The weight of a lesion is 1 / number of the subject's lesions
    with about the same volume (up to a factor of 4), spread evenly over its pixels. Most of the map is 0, so it is kept
    as one value for each slice of each lesion, and computed once for a subject.

    Attributes:
        rows: (R,) float64, weight of each row of the table.
    """

    def __init__(self, table: LesionSlices, patch_px: int) -> None:
        super().__init__((patch_px, patch_px, 1), None)
        lesions, start = np.unique(table.lesion, return_index=True)
        size = np.floor(np.log(np.maximum(table.volume_ml[start], 1e-6)) / np.log(4.0))
        crowd = (size[:, None] == size[None, :]).sum(1)
        place = np.searchsorted(lesions, table.lesion)
        area = np.bincount(place, table.area_px, len(lesions))
        self.rows: NDArray[np.float64] = (table.area_px / area[place]) / crowd[place] if len(lesions) else np.zeros(0)

    def draw(self, allowed: NDArray[np.bool_]) -> int:
        """Draw one of the allowed rows of the table, with torch's generator. At least one row must be allowed."""
        chances = np.where(allowed, self.rows, 0.0)
        return int(self.sample_probability_map(chances, np.cumsum(chances))[0])


@dataclass(frozen=True, eq=False)
class PreparedSubject:
    """A prepared scan, from which episodes are drawn.

    Attributes:
        name: Name of the scan.
        patient: Name of the patient.
        scan: The stack as a TorchIO subject: `image` (C, W, H, S) float32, and `lesions` (1, W, H, S) in the smallest
            type that holds the ids. It is at least as wide and high as a patch. One slice of a channel is one block of
            memory.
        table: Lesions of the scan, slice by slice.
        sampler: Draws rows of the table.
        body: (N, 3) int32, slice, row and column of some pixels of tissue outside of lesions.
        pixel_mm: Edge of a pixel in millimetres.
        gap_mm: Distance between slices in millimetres.
    """

    name: str
    patient: str
    scan: tio.Subject
    table: LesionSlices
    sampler: LesionSampler
    body: NDArray[np.int32]
    pixel_mm: float
    gap_mm: float

    @property
    def stack_shape(self) -> tuple[int, int, int]:
        """Shape (S, H, W) of the stack, with padding."""
        width, height, slices = self.scan.spatial_shape
        return int(slices), int(height), int(width)

    @cached_property
    def kinds(self) -> list[int]:
        """Classes of its lesions."""
        return [int(kind) for kind in np.unique(self.table.kind) if kind != REJECTED_KIND]

    @property
    def has_lesions(self) -> bool:
        """Whether there is a lesion; places that a reader rejected are none."""
        return bool(self.kinds)

    @cached_property
    def has_rejected(self) -> bool:
        """Whether a reader rejected a place."""
        return bool((self.table.kind == REJECTED_KIND).any())

    def window(self, slice_: int, row: float, column: float, patch_px: int) -> PatchWindow:
        """Return the window around a pixel, moved into the picture if necessary."""
        _, height, width = self.stack_shape
        top, left = round(row) - patch_px // 2, round(column) - patch_px // 2
        return PatchWindow(slice_, min(max(top, 0), height - patch_px), min(max(left, 0), width - patch_px))

    def cut(self, window: PatchWindow) -> Patch:
        """Return a copy of a window's content; zeros before the first and after the last slice."""
        width, height, _ = (int(edge) for edge in self.sampler.patch_size)
        if not 0 <= window.slice < self.stack_shape[0]:
            empty = torch.zeros(self.channels, height, width)
            return Patch(_alone(empty), torch.zeros(height, width, dtype=torch.int32))
        patch: Any = self.sampler.extract_patch(self.scan, (window.column, window.row, window.slice))
        image, lesions = patch["image"].data[..., 0].mT, patch["lesions"].data[0, :, :, 0].T
        return Patch(_alone(image.contiguous()), lesions.to(torch.int32).contiguous())

    @property
    def channels(self) -> int:
        """Number C of channels."""
        image: Any = self.scan["image"]
        return int(image.data.shape[0])

    def brightness(self, at: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the intensities (N,) of the first channel at slice, row, column (N, 3)."""
        image: Any = self.scan["image"]
        values: NDArray[np.float32] = image.data[0, at[:, 2], at[:, 1], at[:, 0]].numpy()
        return values


def _alone(image: Tensor) -> Tensor:
    """Return a single channel (1, P, P) as (P, P); several stay (C, P, P)."""
    return image[0] if len(image) == 1 else image


def prepare_volume(
    volume: Volume,
    *,
    pixel_mm: float,
    patch_px: int,
    slice_axis: SliceAxis = "auto",
    usable: Tensor | None = None,
    normalisation: Normalisation | None = None,
    channels: Sequence[str] = (),
    rejected_class: int = 0,
) -> PreparedSubject:
    """Prepare a scan.

    Args:
        volume: The scan, with raw intensities.
        pixel_mm: Edge of the pixels in the training, in millimetres.
        patch_px: Edge of the patches in pixels.
        slice_axis: Direction across the slices.
        usable: (S,) bool. All other slices become blank, image and lesions, so that nothing is learned from them.
        normalisation: Rule of the intensities; None is `auto`.
        channels: Names of the channels to prepare; none for the only image.
        rejected_class: Class of places that a reader rejected; 0 for none.

    Raises:
        DataError: If the patch is more than 4 times as large as the scan's slices.
    """
    grid = SliceGrid.of(volume.shape, volume.affine, slice_axis)
    if patch_px * pixel_mm > LARGEST_TILE * grid.extent_mm:
        raise DataError(
            f"data.init_args.patch_px={patch_px} at pixel_mm={pixel_mm} is {patch_px * pixel_mm:.0f} mm, more than 4 "
            f"times subject {volume.subject} ({grid.extent_mm:.0f} mm); choose a smaller patch_px or pixel_mm."
        )
    image = normalised_stack(volume, grid, pixel_mm, normalisation, channels)
    lesions = resample_stack(grid.to_stack(volume.lesions), grid, pixel_mm, nearest=True)
    if usable is not None:
        image[..., ~usable, :, :], lesions[~usable] = 0, 0
    ids, counts = torch.unique(volume.lesions, return_counts=True)
    voxel_ml = volume.voxel_ml
    volumes_ml = {int(i): int(n) * voxel_ml for i, n in zip(ids, counts, strict=True) if i}
    names = (volume.subject, volume.patient)
    kinds = {lesion: REJECTED_KIND if kind == rejected_class else kind for lesion, kind in volume.classes.items()}
    return prepare_stack(image, lesions, kinds, volumes_ml, names, (pixel_mm, grid.gap_mm), patch_px)


def prepare_stack(
    image: Tensor,
    lesions: Tensor,
    classes: dict[int, int],
    volumes_ml: dict[int, float] | None,
    names: tuple[str, str],
    spacing_mm: tuple[float, float],
    patch_px: int,
) -> PreparedSubject:
    """Prepare a stack with square pixels.

    Args:
        image: (S, H, W) float32, normalised; with C channels (C, S, H, W).
        lesions: (S, H, W) int32, lesion ids.
        classes: Class of each lesion id.
        volumes_ml: Volume of each lesion id in millilitres; None counts the voxels of the stack.
        names: Names of the scan and of the patient.
        spacing_mm: Edge of a pixel, and distance between slices.
        patch_px: Edge of the patches in pixels.
    """
    pixel_mm, gap_mm = spacing_mm
    below, right = max(0, patch_px - image.shape[-2]), max(0, patch_px - image.shape[-1])
    if below or right:
        image, lesions = (functional.pad(array, (0, right, 0, below)) for array in (image, lesions))
    table = _table(lesions.numpy(), classes, volumes_ml, pixel_mm**2 * gap_mm / 1000)
    scan = as_scan(image, _narrow(lesions), pixel_mm, gap_mm)
    return PreparedSubject(*names, scan, table, LesionSampler(table, patch_px), _body(image, lesions), pixel_mm, gap_mm)


def as_scan(image: Tensor, lesions: Tensor, pixel_mm: float, gap_mm: float) -> tio.Subject:
    """Return stacks, an image (S, H, W) or (C, S, H, W) and lesions, as `PreparedSubject.scan`, without a copy."""
    affine = np.diag([pixel_mm, pixel_mm, gap_mm, 1.0])
    channels = image if image.dim() == 4 else image.unsqueeze(0)
    return tio.Subject(
        image=tio.ScalarImage(tensor=channels.permute(0, 3, 2, 1), affine=affine),
        lesions=tio.LabelMap(tensor=lesions.permute(2, 1, 0).unsqueeze(0), affine=affine),
    )


def _narrow(lesions: Tensor) -> Tensor:
    """Return the ids in the smallest type that holds all of them."""
    largest = int(lesions.max())
    return lesions.to(next(kind for kind in _ID_TYPES if largest <= torch.iinfo(kind).max))


def _table(
    lesions: NDArray[np.int32], classes: dict[int, int], volumes_ml: dict[int, float] | None, voxel_ml: float
) -> LesionSlices:
    at = np.stack(np.nonzero(lesions), axis=1)
    ids = lesions[tuple(at.T)].astype(np.int64)
    order = np.lexsort((at[:, 0], ids))
    at, ids = at[order], ids[order]
    starts = (
        np.flatnonzero(np.r_[True, (np.diff(ids) != 0) | (np.diff(at[:, 0]) != 0)]) if len(ids) else np.zeros(0, int)
    )
    first = np.r_[starts, len(ids)].astype(np.int64)
    lesion = ids[starts]
    volume = (
        {int(i): int(n) * voxel_ml for i, n in zip(*np.unique(ids, return_counts=True), strict=True)}
        if volumes_ml is None
        else volumes_ml
    )
    return LesionSlices(
        lesion,
        np.array([classes[int(i)] for i in lesion], np.int64),
        at[starts, 0].astype(np.int64),
        np.diff(first),
        np.array([volume[int(i)] for i in lesion], np.float64),
        first,
        at[:, 1:].astype(np.int16),
    )


def _body(image: Tensor, lesions: Tensor) -> NDArray[np.int32]:
    """Return evenly spread pixels of tissue in the first channel, (N, 3) int32; any pixels if there is no tissue."""
    image = image if image.dim() == 3 else image[0]
    tissue = torch.nonzero(((image > BODY) & (lesions == 0)).flatten()).flatten().numpy()
    if not len(tissue):
        tissue = np.arange(image.numel())
    chosen = tissue[:: max(1, len(tissue) // _BODY_PIXELS)]
    return np.stack(np.unravel_index(chosen, tuple(image.shape)), axis=1).astype(np.int32)
