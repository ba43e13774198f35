"""Slabs: consecutive slices of a scan that do not train but validate, for datasets with few scans."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mois.errors import DataError
from mois.geometry import SliceAxis, SliceGrid
from mois.intensities import Normalisation, levels
from mois.records import Channel, Volume


def slab_slices(volume: Volume, fraction: float, slice_axis: SliceAxis = "auto") -> range:
    """Return the slab of a scan: a share of its slices, with about the same share of its lesions.

    Args:
        volume: The scan.
        fraction: Share of its slices, above 0 and below 1.
        slice_axis: Direction across the slices.

    Raises:
        DataError: If the scan has only one slice.
    """
    stack = _grid(volume, slice_axis).to_stack(volume.lesions).numpy()
    slices = len(stack)
    if slices < 2:
        raise DataError(
            f"data.init_args.split.val_slab={fraction:g}: subject {volume.subject} has one slice, which cannot be "
            "trained and validated on; set val_slab to 0 and name val_subjects."
        )
    count = min(max(1, round(fraction * slices)), slices - 1)
    places = np.flatnonzero(stack)
    lesions, index = np.unique(stack.reshape(-1)[places], return_inverse=True)
    voxels = np.bincount(index, minlength=len(lesions)).astype(float)
    where = np.bincount(index, weights=places // stack[0].size, minlength=len(lesions))
    middle = np.rint(where / voxels).astype(int)
    held = [int(((middle >= start) & (middle < start + count)).sum()) for start in range(slices - count + 1)]
    start = int(np.abs(np.array(held) - fraction * len(lesions)).argmin())
    return range(start, start + count)


def usable_slices(volume: Volume, slab: range, slice_axis: SliceAxis = "auto") -> Tensor:
    """Return which slices are outside of the slab, (S,) bool: these slices may train."""
    usable = torch.ones(_grid(volume, slice_axis).stack_shape[0], dtype=torch.bool)
    usable[slab.start : slab.stop] = False
    return usable


def cut_slab(
    volume: Volume, slab: range, slice_axis: SliceAxis = "auto", normalisation: Normalisation | None = None
) -> Volume:
    """Return the slab as a scan, at its place in the whole scan.

    Args:
        volume: The whole scan.
        slab: The slices of the slab.
        slice_axis: Direction across the slices.
        normalisation: Rule of the intensities. The slab keeps the levels of the whole scan.
    """
    grid = _grid(volume, slice_axis)
    axis = grid.order[0]
    start = grid.stack_shape[0] - slab.stop if grid.flipped[0] else slab.start
    image, lesions = (array.narrow(axis, start, len(slab)).contiguous() for array in (volume.image, volume.lesions))
    whole = levels(volume.image, normalisation, volume.channel, volume.levels)
    affine = volume.affine.clone()
    affine[:3, 3] += start * affine[:3, axis]
    left = set(torch.unique(lesions).tolist())
    classes = {lesion: kind for lesion, kind in volume.classes.items() if lesion in left}
    part = whole.narrow(axis, start, len(slab))
    further = tuple(_cut_channel(channel, axis, start, len(slab), normalisation) for channel in volume.further)
    return volume._replace(image=image, lesions=lesions, affine=affine, classes=classes, levels=part, further=further)


def _cut_channel(channel: Channel, axis: int, start: int, length: int, normalisation: Normalisation | None) -> Channel:
    whole = levels(channel.image, normalisation, channel.name, channel.levels)
    image = channel.image.narrow(axis, start, length).contiguous()
    return channel._replace(image=image, levels=whole.narrow(axis, start, length))


def _grid(volume: Volume, slice_axis: SliceAxis) -> SliceGrid:
    return SliceGrid.of(volume.shape, volume.affine, slice_axis)
