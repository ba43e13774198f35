"""What the numbers of label maps, maps of lesion ids and masks may be: whole and declared, or refused in one line."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.errors import DataError

WHOLE = 1e-3
"""How far a float may lie from the whole number that it stands for: what arithmetic and scaled headers leave."""
LARGEST = int(np.iinfo(np.int32).max)
MASK_THRESHOLD = 0.5
"""From which on a voxel of a soft mask belongs to it."""
OVERSHOOT = 0.5
"""How far a few voxels of a soft mask may lie outside of 0 to 1: splines and windowed sincs overshoot by up to .45."""
NEAR = 0.05
"""How far most of its voxels may."""
MOST_SHARE = 0.9
"""Which share of its voxels most are."""


def array_of(values: Any) -> npt.NDArray[Any]:
    """Return an array or a tensor as an array; bfloat16, which numpy lacks, as float32."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return np.asarray((values.float() if values.dtype == torch.bfloat16 else values).numpy())


def whole_numbers(values: npt.NDArray[Any], name: object) -> npt.NDArray[np.int32]:
    """Return the numbers of a label map or a map of lesion ids.

    Args:
        values: Any shape; bool, any integers, or floats within 0.001 of whole numbers.
        name: Of the map, such as its file: what the message begins with.

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
    if values.size and (values.min() < 0 or int(values.max()) > LARGEST):  # float32 would round the limit up
        raise DataError(
            f"{name}: label values must lie between 0 and {LARGEST}, got {values.min()} to {values.max()}; number the "
            "labels anew."
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
        name: Of the map.
        cure: End of the message.

    Raises:
        DataError: Naming the first class that is not declared.
    """
    found = {int(value) for value in np.unique(values)}
    strange = sorted(found - set(declared) - {0})
    if strange:
        raise DataError(
            f"{name}: holds label {strange[0]}, dataset.json declares {sorted(set(declared) - {0})}; {cure}."
        )


def one_mask(values: npt.NDArray[Any], name: object) -> npt.NDArray[np.bool_]:
    """Return the mask of one lesion.

    Args:
        values: Any shape. A mask: 0 and one other whole number. A soft mask: 0 to 1, inside from 0.5 on; resampling
            may overshoot: nine of ten voxels lie within 0.05 of 0 to 1, and all within 0.5.
        name: Of the mask, such as its file: what the message begins with.

    Returns:
        bool, same shape.

    Raises:
        DataError: If it is neither: it holds NaN, logits or several labels.
    """
    values = np.asarray(values)
    if values.dtype == bool or not values.size:
        return values.astype(bool)
    if values.dtype.kind == "f":
        _check_finite(values, name)
        low, high = float(values.min()), float(values.max())
        if (low >= 0 and high <= 1) or _overshoots(values, low, high):
            return np.asarray(values >= MASK_THRESHOLD)
        if low < 0 or np.abs(values - np.rint(values)).max() > WHOLE:
            raise DataError(
                f"{name}: values from {low:g} to {high:g} are no mask; give 0 and 1, or probabilities from 0 to 1 "
                f"(inside from {MASK_THRESHOLD} on); threshold logits at 0."
            )
    labels = whole_numbers(values, name)
    there = [int(label) for label in np.unique(labels) if label]
    if len(there) > 1:
        told = ", ".join(map(str, there[:5])) + (", ..." if len(there) > 5 else "")
        raise DataError(f"{name}: holds {len(there)} labels ({told}), a mask is of one lesion; give a mask for each.")
    return np.asarray(labels != 0)


def _overshoots(values: npt.NDArray[Any], low: float, high: float) -> bool:
    """Return whether values leave 0 to 1 as those of a resampled mask do."""
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        return False
    return bool(((values >= -NEAR) & (values <= 1 + NEAR)).mean() >= MOST_SHARE)


def _rounded(values: npt.NDArray[Any], name: object) -> npt.NDArray[Any]:
    """Return floats as the whole numbers that they stand for, still as floats."""
    _check_finite(values, name)
    whole = np.rint(values, dtype=np.promote_types(values.dtype, np.float32))  # float16 does not hold the limits
    off = np.abs(values - whole) > WHOLE
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
