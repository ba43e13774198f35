"""Masks that a reader gives: read, checked on the scan's grid, and packed for the journal."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mois.files.json_records import as_record
from mois.grid import Grid, put_on
from mois.records import Volume
from mois.scans.labels import array_of, one_mask
from mois.scans.volumes import read_on_grid
from mois.session.box_mask import BoxMask
from mois.session.journal import PackedMask


def checked_mask(mask: Any, volume: Volume, affine: Any = None) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return a lesion's mask (I, J, K) as bool, in the scan's order of voxels.

    Args:
        mask: (I, J, K), or an image file, which lies where its header says.
        volume: The scan.
        affine: (4, 4), voxel indices of the array to RAS mm; None where it is stored as the scan is.

    Raises:
        ValueError: If it is not on the scan's grid, saying by how much; is empty; or is no such mask (several labels,
            logits).
    """
    scan = f"scan {volume.subject}"
    if isinstance(mask, Path | str):
        return _some(one_mask(read_on_grid(Path(mask), volume.grid, scan), mask), str(mask))
    given = array_of(mask)
    try:
        given = put_on(given, Grid.of(given.shape, volume.affine if affine is None else affine), volume.grid, scan)
    except ValueError as error:
        raise ValueError(f"mask: {error}") from error
    return _some(one_mask(given, "mask"), "mask")


def _some(mask: np.ndarray[Any, np.dtype[np.bool_]], name: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if not mask.any():
        raise ValueError(f"{name}: it is empty; give one with a voxel or more.")
    return mask


def pack_mask(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
    """Return a mask on the scanner's grid (I, J, K) as JSON holds it: the box that holds it, its bits compressed."""
    box = BoxMask.of(mask)
    bits = zlib.compress(np.packbits(box.inside.ravel()).tobytes(), 6)
    return {
        "corner": list(box.corner),
        "shape": list(box.inside.shape),
        "bits": base64.b64encode(bits).decode("ascii"),
    }


def same_masks(one: Any, other: Any) -> bool:
    """Tell whether two packed masks hold the same voxels, however each was compressed; what is no mask is no other."""
    try:
        places = [[packed["corner"], packed["shape"]] for packed in (one, other)]
        bits = [zlib.decompress(base64.b64decode(packed["bits"])) for packed in (one, other)]
    except (KeyError, TypeError, ValueError, zlib.error):
        return False
    return places[0] == places[1] and bits[0] == bits[1]


def unpack_mask(packed: Mapping[str, Any], shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return what `pack_mask` was given, in a scan of this shape."""
    given = as_record(dict(packed), PackedMask, "the mask")
    ends = [start + count for start, count in zip(given.corner, given.shape, strict=True)]
    if min(*given.corner, *given.shape) < 0 or any(end > most for end, most in zip(ends, shape, strict=True)):
        raise ValueError(f"mask: its box ends at {ends}, the scan has {list(shape)} voxels; give a mask of this scan.")
    voxels = math.prod(given.shape)
    try:
        content = zlib.decompressobj().decompress(base64.b64decode(given.bits, validate=True), -(-voxels // 8) + 1)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"mask: its bits are damaged ({error}); take a copy of the journal.") from error
    if len(content) != -(-voxels // 8):
        raise ValueError("mask: it has other bits than its shape; take a copy of the journal.")
    inside = np.unpackbits(np.frombuffer(content, dtype=np.uint8), count=voxels).astype(bool).reshape(given.shape)
    full = np.zeros(shape, dtype=bool)
    BoxMask(given.corner, inside).paint(full, True)
    return full
