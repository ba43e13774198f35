"""Checks the values of label maps, maps of lesion ids and masks: whole and declared, or refused in one line."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.errors import DataError, listed

ROUNDING = 1e-3
"""Largest distance of a float from its whole number. Arithmetic and scaled headers leave such differences."""
LARGEST_LABEL = int(np.iinfo(np.int32).max)
MASK_THRESHOLD = 0.5
"""Value from which a voxel of a soft mask lies inside."""
OVERSHOOT = 0.5
"""Largest distance of a soft mask from 0 to 1. Splines and windowed sincs overshoot by up to 0.45."""
USUAL_OVERSHOOT = 0.05
USUAL_SHARE = 0.9
"""At least this share of the voxels lies within `USUAL_OVERSHOOT` of 0 to 1."""


def array_of(values: Any) -> npt.NDArray[Any]:
    """Return an array or a tensor as an array. Bfloat16 becomes float32, because numpy has no bfloat16."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return np.asarray((values.float() if values.dtype == torch.bfloat16 else values).numpy())


def whole_numbers(values: npt.NDArray[Any], name: object) -> npt.NDArray[np.int32]:
    """Return the values of a label map or a map of lesion ids as int32.

    Args:
        values: Any shape; bool, any integers, or floats within 0.001 of whole numbers.
        name: Name of the map for the message, such as its file.

    Returns:
        int32, 0 to 2147483647.

    Raises:
        DataError: If a value is NaN or infinite, no whole number, below 0 or above 2147483647.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise DataError(f"{name}: {values.dtype} values are no labels; write whole numbers.")
    if values.dtype.kind == "f":
        values = _rounded(values, name)
    if values.size and (values.min() < 0 or int(values.max()) > LARGEST_LABEL):  # float32 would round the limit up
        raise DataError(
            f"{name}: label values must lie between 0 and {LARGEST_LABEL}, got {values.min()} to {values.max()}; "
            "number the labels anew."
        )
    return np.ascontiguousarray(values, np.int32)


def check_declared(
    values: npt.NDArray[np.int32],
    declared: Collection[int],
    name: object,
    cure: str = "add it to labels there, or set its voxels to 0",
) -> None:
    """Refuse a class that the dataset does not declare.

    Args:
        values: Classes, any shape; 0 is background, declared or not.
        declared: Label values of dataset.json.
        name: Name of the map for the message.
        cure: End of the message.

    Raises:
        DataError: If a class is not declared; the message names the first.
    """
    classes = {int(value) for value in np.unique(values)}
    undeclared = sorted(classes - set(declared) - {0})
    if undeclared:
        raise DataError(
            f"{name}: holds label {undeclared[0]}, dataset.json declares {sorted(set(declared) - {0})}; {cure}."
        )


def one_mask(values: npt.NDArray[Any], name: object) -> npt.NDArray[np.bool_]:
    """Return the mask of one lesion.

    Args:
        values: Any shape. A mask holds 0 and one other whole number. A soft mask holds 0 to 1, and a voxel is inside
            from 0.5 on. After resampling, 9 of 10 voxels may lie up to 0.05 outside of 0 to 1, and any voxel up to
            0.5.
        name: Name of the mask for the message, such as its file.

    Returns:
        bool, same shape.

    Raises:
        DataError: If the values are no mask, such as NaN, logits or several labels.
    """
    values = np.asarray(values)
    if values.dtype == bool or not values.size:
        return values.astype(bool)
    if values.dtype.kind == "f":
        _check_finite(values, name)
        low, high = float(values.min()), float(values.max())
        if (low >= 0 and high <= 1) or _overshoots(values, low, high):
            return np.asarray(values >= MASK_THRESHOLD)
        if low < 0 or np.abs(values - np.rint(values)).max() > ROUNDING:
            raise DataError(
                f"{name}: values from {low:g} to {high:g} are no mask; give 0 and 1, or probabilities from 0 to 1 "
                f"(inside from {MASK_THRESHOLD} on); threshold logits at 0."
            )
    labels = whole_numbers(values, name)
    lesion_labels = [int(label) for label in np.unique(labels) if label]
    if len(lesion_labels) > 1:
        raise DataError(
            f"{name}: holds {len(lesion_labels)} labels ({listed(lesion_labels)}), a mask is of one lesion; give a "
            "mask for each."
        )
    return np.asarray(labels != 0)


def _overshoots(values: npt.NDArray[Any], low: float, high: float) -> bool:
    """Return whether values lie outside of 0 to 1 only as far as in a resampled mask."""
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        return False
    return bool(((values >= -USUAL_OVERSHOOT) & (values <= 1 + USUAL_OVERSHOOT)).mean() >= USUAL_SHARE)


def _rounded(values: npt.NDArray[Any], name: object) -> npt.NDArray[Any]:
    """Return floats rounded to whole numbers, still as floats.

    Raises:
        DataError: If a value is no whole number.
    """
    _check_finite(values, name)
    whole = np.rint(values, dtype=np.promote_types(values.dtype, np.float32))  # float16 cannot hold the limits
    off = np.abs(values - whole) > ROUNDING
    if off.any():
        raise DataError(
            f"{name}: label values must be whole numbers, got {values[off].flat[0]:g}; threshold it "
            "(probabilities at 0.5), or round it, and save it again."
        )
    return np.asarray(whole)


def _check_finite(values: npt.NDArray[Any], name: object) -> None:
    broken = int(values.size - np.isfinite(values).sum())
    if broken:
        raise DataError(
            f"{name}: {broken} voxels are NaN or infinite; replace them (numpy.nan_to_num) and save it again."
        )
