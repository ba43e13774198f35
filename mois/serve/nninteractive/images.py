"""Images of nnInteractive as scans, and masks of a session as voxels of such an image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mois.geometry import SliceGrid
from mois.records import Channel, Volume
from mois.scans.channels import sequence_names
from mois.serve.refusals import Refusal
from mois.session.masks import BoxMask

Place = tuple[tuple[int, int], ...]
"""A box of voxels: first voxel and voxel after the last, for each axis."""
_SPACING_MM = (1e-3, 1e3)


def scan_of(image: npt.NDArray[Any], properties: dict[str, Any], channels: Sequence[str]) -> Volume:
    """Return an image as a scan. The protocol names no orientation: its axes are taken as left, back and head (LPS).

    Args:
        image: (C, I, J, K), raw intensities.
        properties: `image_properties` of the client; `spacing` is the size of a voxel along the three axes, in mm.
        channels: Names of the model's channels.

    Raises:
        Refusal: If spacing or number of channels is wrong, or voxels are not finite or all equal.
    """
    names = sequence_names(channels) or ("",)
    if len(image) != len(names):
        raise Refusal(400, f"the image has {len(image)} channels; the model sees {', '.join(names) or 'one'}.")
    spacing = properties.get("spacing", (1.0, 1.0, 1.0))
    low, high = _SPACING_MM
    if (
        not isinstance(spacing, list | tuple)
        or len(spacing) != 3
        or not all(isinstance(mm, int | float) and not isinstance(mm, bool) and low <= mm <= high for mm in spacing)
    ):
        raise Refusal(400, f"image_properties.spacing must be three numbers from {low} to {high}, in mm.")
    voxels = np.ascontiguousarray(image, dtype=np.float32)
    if not np.isfinite(voxels).all():
        raise Refusal(400, "the image holds voxels that are NaN or infinite; replace them.")
    if voxels[0].min() == voxels[0].max():
        raise Refusal(400, "every voxel of the image is the same; send another image.")
    # as a NIfTI file keeps it
    affine = torch.diag(torch.tensor([-spacing[0], -spacing[1], spacing[2], 1.0], dtype=torch.float32)).double()
    sequences = [torch.from_numpy(channel) for channel in voxels]
    name = f"scan-{hashlib.sha256(voxels.tobytes()).hexdigest()[:8]}"
    further = tuple(Channel(other, one) for other, one in zip(names[1:], sequences[1:], strict=True))
    nothing = torch.zeros(sequences[0].shape, dtype=torch.int32)
    return Volume(name, name, sequences[0], affine, nothing, {}, channel=names[0], further=further)


def box_of(grid: SliceGrid, mask: BoxMask) -> tuple[Place, npt.NDArray[np.bool_]] | None:
    """Return the voxels of a mask on the axes of the scan: their box, and the voxels in it; None if there are none."""
    if not mask.inside.size:
        return None
    ends = [(0, 0)] * 3
    for stack_axis, axis in enumerate(grid.order):
        first, count, size = mask.corner[stack_axis], mask.inside.shape[stack_axis], grid.stack_shape[stack_axis]
        first = size - first - count if grid.flipped[stack_axis] else first
        ends[axis] = (first, first + count)
    flips = tuple(stack_axis for stack_axis, flip in enumerate(grid.flipped) if flip)
    inside = np.flip(mask.inside, flips).transpose([grid.order.index(axis) for axis in range(3)])
    return (ends[0], ends[1], ends[2]), inside
