"""Rigid registration of two scans of a patient: how the later scan lies on the earlier one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from mois.intensities import normalise
from mois.records import Volume

COARSE_MM = 4.0
"""Edge of the voxels at which scans are compared."""
_LEVELS = ((4, 2.0), (2, 1.0), (1, 0.0))
"""Shrinking and smoothing (voxels) of the steps from coarse to fine."""
_SAMPLED = 0.25
LEAST_ALIKE = 0.1
"""Mutual information (nats) that registered scans must have. Phantoms of one patient have 0.51 or more, noise 0.03."""
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MOST_VOXELS = 4_000_000


def register(fixed: Volume, moving: Volume) -> NDArray[np.float64]:
    """Return the rigid motion from places in one scan to the same places of the body in another scan.

    The search begins where the scanner says that both lie, and at the centres of mass; the better end is taken.
    Mutual information is compared, so intensities may have other units and another gain.

    Args:
        fixed: The scan from which the motion leads.
        moving: The scan into which the motion leads.

    Returns:
        (4, 4), from RAS mm of `fixed` to RAS mm of `moving`.

    Raises:
        ValueError: If the scans do not overlap anywhere, or look alike nowhere.
    """
    import SimpleITK as sitk  # noqa: N813 - its name everywhere

    pictures = [_as_itk(*_on_straight_grid(volume)) for volume in (fixed, moving)]
    ends = []
    for first in (lambda *_: sitk.Euler3DTransform(), _centred):
        try:
            ends.append(_search(pictures[0], pictures[1], first(*pictures)))
        except RuntimeError:  # ITK: no voxel of one lies in the other, or a picture is empty
            continue
    if not ends:
        raise ValueError(
            "the scans cannot be registered: they show no common part of the body, or one is empty or has too few "
            "slices; give two scans of one patient and one region."
        )
    value, transform = min(ends, key=lambda end: end[0])
    if value > -LEAST_ALIKE:
        raise ValueError(
            "the scans look alike nowhere, so they cannot be registered; give two scans of one patient and one region."
        )
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    moved: NDArray[np.float64] = _TO_LPS @ matrix @ _TO_LPS
    return moved


def _centred(fixed: Any, moving: Any) -> Any:
    """Return the motion that brings the centres of mass together."""
    import SimpleITK as sitk  # noqa: N813

    centres = sitk.CenteredTransformInitializerFilter.MOMENTS
    start = sitk.CenteredTransformInitializer(fixed, moving, sitk.Euler3DTransform(), centres)
    return sitk.Euler3DTransform(start)


def _search(fixed: Any, moving: Any, start: Any) -> tuple[float, Any]:
    """Return the value at the best motion (lower is better), and the motion."""
    import SimpleITK as sitk  # noqa: N813

    size = np.array(fixed.GetSize()) - 1
    transform = sitk.Euler3DTransform(start)
    if not any(transform.GetCenter()):
        middle = fixed.TransformContinuousIndexToPhysicalPoint((size / 2).tolist())
        transform.SetCenter(middle)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(_SAMPLED, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(4.0, 0.01, 100, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([shrink for shrink, _ in _LEVELS])
    method.SetSmoothingSigmasPerLevel([sigma for _, sigma in _LEVELS])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)
    return float(method.GetMetricValue()), transform


def _on_straight_grid(volume: Volume) -> tuple[NDArray[np.float32], NDArray[np.float64], float]:
    """Return a scan with axes along x, y and z (LPS), the place of its first voxel, and its edge in mm.

    ITK knows no slices that lean, so every scan is brought onto such a grid.
    """
    corners = volume.grid.corners_mm() @ _TO_LPS[:3, :3]
    low, high = corners.min(0), corners.max(0)
    edge = max(COARSE_MM, float((np.prod(high - low) / _MOST_VOXELS) ** (1 / 3)))
    shape = np.maximum(1, np.ceil((high - low) / edge)).astype(int)
    first = low + edge / 2
    to_voxels = np.linalg.inv(_TO_LPS @ volume.affine.double().cpu().numpy())
    shown = normalise(volume.image, channel=volume.channel, known=volume.levels).cpu().numpy()
    blur = np.maximum(0.0, edge / np.array(volume.grid.spacing_mm) - 1) / 2
    smooth = ndimage.gaussian_filter(shown, blur)
    steps = to_voxels[:3, :3] * edge
    placed = ndimage.affine_transform(
        smooth, steps, to_voxels[:3, :3] @ first + to_voxels[:3, 3], output_shape=tuple(shape), order=1
    )
    return placed.astype(np.float32), first, edge


def _as_itk(voxels: NDArray[np.float32], first: NDArray[np.float64], edge: float) -> Any:
    import SimpleITK as sitk  # noqa: N813

    picture = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    picture.SetSpacing([edge] * 3)
    picture.SetOrigin(first.tolist())
    return picture


def same_place(first: Volume, second: Volume) -> bool:
    """Return whether two scans lie on one grid, whatever the order of their voxels."""
    from mois.grid import match_grids

    return match_grids(first.grid, second.grid).same


def moved_mm(motion: NDArray[np.float64], volume: Volume) -> float:
    """Return how far a motion moves the middle of a scan, in mm."""
    middle = np.append(volume.grid.corners_mm().mean(0), 1.0)
    return float(np.linalg.norm((motion @ middle - middle)[:3]))


def voxel_places(labels: Tensor, affine: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the label and the place (RAS mm) of each voxel that is not 0: (N,) and (N, 3)."""
    where = torch.nonzero(labels)
    matrix = affine.double()
    places = where.double() @ matrix[:3, :3].T + matrix[:3, 3]
    return labels[tuple(where.T)].long().numpy(), places.numpy()
