"""A scan and its lesions as the page shows them: voxel axes towards right, front and head, whatever the file's are.

The page speaks of places in voxels (i, j, k) of this view. Whole numbers are voxel centres.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from nibabel.orientations import inv_ornt_aff, io_orientation

from mois.geometry import SliceGrid
from mois.records import Volume
from mois.session.masks import BoxMask
from mois.session.state import Preview

Triple = tuple[float, float, float]
BRIGHTEST_SHARE, DARKEST_SHARE = 0.998, 0.01
"""Shares of the voxels that are darker than white, and than black, at first."""


class ShownMask(NamedTuple):
    """A mask for the page.

    Attributes:
        corner: First voxel (i, j, k) of its box.
        shape: Voxels of its box along i, j and k.
        bits: Voxels of the box, one bit each, k fastest; base64.
    """

    corner: tuple[int, int, int]
    shape: tuple[int, int, int]
    bits: str


class NumberedMask(NamedTuple):
    """What the list of lesions says of a mask.

    Attributes:
        number: Its number.
        at: Voxel to show it at.
        voxels: Number of its voxels.
    """

    number: int
    at: tuple[int, int, int]
    voxels: int


class PageView:
    """Conversion between the page's voxels and a session's places and masks.

    Args:
        volume: The scan.
        grid: Its grid, as the session has it.

    Attributes:
        shape: Voxels (I, J, K) of the view.
        spacing_mm: Edges of a voxel along I, J and K.
        slice_axis: Axis of the view across the slices, on which lines and outlines are drawn.
        to_lps_mm: From voxels of the view to LPS mm, (4, 4) float64.
    """

    def __init__(self, volume: Volume, grid: SliceGrid) -> None:
        affine = volume.affine.to(torch.float64).numpy()
        facing = io_orientation(affine)  # per voxel axis of the file: its axis in the view, and whether it is flipped
        self._volume = volume
        self._view_axis = [int(axis) for axis, _ in facing]
        self._file_flip = [sign < 0 for _, sign in facing]
        self._file_axis = [self._view_axis.index(axis) for axis in range(3)]
        self._stack_axis = [grid.order.index(axis) for axis in self._file_axis]
        self._stack_flip = [
            self._file_flip[axis] != grid.flipped[stack]
            for axis, stack in zip(self._file_axis, self._stack_axis, strict=True)
        ]
        self._stack_shape = grid.stack_shape
        self.shape = _triple([volume.shape[axis] for axis in self._file_axis])
        self.slice_axis = self._stack_axis.index(0)
        ras = affine @ inv_ornt_aff(facing, volume.shape)
        self.to_lps_mm: npt.NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0]) @ ras
        self.spacing_mm: Triple = tuple(np.linalg.norm(ras[:3, :3], axis=0).tolist())

    def lps_mm(self, voxel: Sequence[float]) -> Triple:
        """Return where a voxel (i, j, k) of the view lies, LPS mm."""
        x, y, z = (self.to_lps_mm @ [*voxel, 1.0])[:3].tolist()
        return x, y, z

    def voxel(self, point_lps_mm: Sequence[float]) -> tuple[int, int, int]:
        """Return the voxel of the view that is nearest to a point in LPS mm."""
        place = np.linalg.solve(self.to_lps_mm, [*point_lps_mm, 1.0])[:3]
        return _triple([int(v) for v in np.clip(np.rint(place), 0, np.array(self.shape) - 1)])

    def image(self) -> bytes:
        """Return the scan as an uncompressed NIfTI file: straight axes, and the grey values to show as its window."""
        array = self._volume.image.numpy()
        array = self._flipped(array, self._file_flip).transpose(self._file_axis)
        if np.array_equal(array, np.rint(array)) and array.min() >= -(2**15) and array.max() < 2**15:
            array = array.astype(np.int16)
        picture = nib.Nifti1Image(array, np.diag([*self.spacing_mm, 1.0]))
        some = array.reshape(-1)[:: max(1, array.size // 10**6)]
        low, high = np.quantile(some, (DARKEST_SHARE, BRIGHTEST_SHARE)).tolist()
        picture.header["cal_min"], picture.header["cal_max"] = low, max(high, low + 1e-6)
        return bytes(picture.to_bytes())

    def mask(self, mask: BoxMask) -> ShownMask:
        """Return a mask of the session for the page."""
        inside = mask.inside.transpose(self._stack_axis)
        corner = [
            self._stack_shape[stack] - mask.corner[stack] - mask.inside.shape[stack] if flip else mask.corner[stack]
            for stack, flip in zip(self._stack_axis, self._stack_flip, strict=True)
        ]
        return _packed(self._flipped(inside, self._stack_flip), corner)

    def preview(self, shown: Preview) -> ShownMask:
        """Return a preview for the page."""
        plane = np.expand_dims(shown.mask.numpy(), shown.axis)
        first = [0, 0, 0]
        first[shown.axis] = shown.index
        if self._file_flip[shown.axis]:
            first[shown.axis] = self._volume.shape[shown.axis] - 1 - shown.index
        plane = self._flipped(plane, self._file_flip).transpose(self._file_axis)
        cut = BoxMask.of(plane, _triple([first[axis] for axis in self._file_axis]))
        return _packed(cut.inside, cut.corner)

    def middle(self, mask: BoxMask) -> tuple[int, int, int]:
        """Return the voxel to show a lesion at: on its largest slice, inside it, nearest to the slice's centre."""
        if not mask.voxels:
            return _triple([edge // 2 for edge in self.shape])
        index = mask.largest_slice() - mask.corner[0]
        inside = np.argwhere(mask.inside[index])
        row, column = inside[np.argmin(((inside - inside.mean(0)) ** 2).sum(1))]
        place = np.array([index, row, column]) + mask.corner
        return _triple(
            [
                int(self._stack_shape[stack] - 1 - place[stack] if flip else place[stack])
                for stack, flip in zip(self._stack_axis, self._stack_flip, strict=True)
            ]
        )

    @staticmethod
    def _flipped(array: npt.NDArray[Any], flips: Sequence[bool]) -> npt.NDArray[Any]:
        return array[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


class ShownMasks:
    """The masks that the page asks for, each under a number. The number of a mask never changes.

    Args:
        view: The view of the scan.
    """

    def __init__(self, view: PageView) -> None:
        self._view = view
        self._numbers = count(1)
        self._known: WeakKeyDictionary[BoxMask, NumberedMask] = WeakKeyDictionary()

    def number(self, mask: BoxMask) -> NumberedMask:
        """Return the number of a mask, and the voxel to show it at."""
        known = self._known.get(mask)
        if known is None:
            known = self._known[mask] = NumberedMask(next(self._numbers), self._view.middle(mask), mask.voxels)
        return known


def _packed(inside: npt.NDArray[np.bool_], corner: Sequence[int]) -> ShownMask:
    bits = base64.b64encode(np.packbits(inside, axis=None).tobytes()).decode("ascii")
    return ShownMask(_triple(list(corner)), _triple(list(inside.shape)), bits)


def _triple(values: Sequence[int]) -> tuple[int, int, int]:
    first, second, third = values
    return int(first), int(second), int(third)
