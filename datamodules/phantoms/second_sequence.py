"""A second sequence of a phantom. Lesion types that look alike in the first sequence differ in this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from datamodules.phantoms.lesion_types import LesionType
from datamodules.phantoms.painting import Float

SEQUENCES = ("T2", "T1")
"""Names of the first and the second sequence."""

CONTRASTS = (-0.3, 0.5)
"""Contrast to the tissue around in the second sequence: of the first class, and of the last. The others lie between."""

_EDGE_VOXELS = 0.5
_TISSUE = 0.11  # signal of the first sequence from which the body begins


def sequence_names(count: int) -> dict[str, str]:
    """Return number and name of the first sequences, as in dataset.json."""
    return {str(number): name for number, name in enumerate(SEQUENCES[:count])}


def alike(types: Sequence[LesionType]) -> list[LesionType]:
    """Return types with the look of the first type, each under its own name."""
    return [replace(types[0], name=kind.name) for kind in types]


def second_signal(anatomy: Float, instances: NDArray[np.int32], classes: Mapping[int, int], types: int) -> Float:
    """Return the signal of the second sequence, without noise and bias.

    What is bright in the first sequence is darker here. A lesion differs from the tissue around it by its class alone.

    Args:
        anatomy: (S, H, W) float32, the first sequence's signal of the body without lesions.
        instances: (S, H, W) int32, lesion ids.
        classes: Class of each lesion id, from 1.
        types: Number of classes.
    """
    signal = np.where(anatomy > _TISSUE, 0.35 + 0.35 * np.exp(-2 * anatomy), anatomy).astype(np.float32)
    contrast_of = np.linspace(*CONTRASTS, types) if types > 1 else np.array(CONTRASTS[:1])
    contrast = np.zeros(max(classes, default=0) + 1, np.float32)
    for lesion, kind in classes.items():
        contrast[lesion] = contrast_of[kind - 1]
    blurred = ndimage.gaussian_filter(contrast[instances], (0, _EDGE_VOXELS, _EDGE_VOXELS))
    shown: Float = np.maximum(signal + blurred, 0)
    return shown
