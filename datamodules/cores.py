"""Cores of lesions: what a model learns in order to tell lesions apart that touch."""

from __future__ import annotations

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

THIN_PX = 2.0
"""A lesion is core as a whole if no pixel of it is so far from its border."""

LEVELS = (0.5, 0.25)
"""A core is deeper than this share of the largest depth; the second share is for lesions with waists."""


def lesion_cores(lesions: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return the cores of the lesions on a slice.

    The depth of a pixel is its distance to the nearest pixel that is not of its lesion. A touching lesion is border;
    the edge of the picture is none. The core of a lesion is where the depth exceeds half of its largest depth. If that
    is in several parts, a quarter of it; if that is, too, the whole lesion. So each lesion has one core, also a lobed
    one. A thin lesion is core as a whole. A lesion in several pieces on this slice has a core in each piece.

    Args:
        lesions: Lesion ids (H, W), 0 is background.

    Returns:
        (H, W) bool; the cores of touching lesions do not touch, unless one of the lesions is thin.

    Examples:
        Two touching lesions, 3 and 2 pixels wide, at the edge of the picture.

        >>> rows = [[0, 1, 1, 1, 2, 2, 0]] * 5
        >>> lesion_cores(np.array(rows))[2].astype(int)
        array([0, 0, 1, 0, 1, 1, 0])
    """
    cores = np.zeros(lesions.shape, dtype=bool)
    rows, columns = np.flatnonzero(lesions.any(1)), np.flatnonzero(lesions.any(0))
    if not len(rows):
        return cores
    # one pixel of background around them, where the picture has it
    box = tuple(slice(max(0, int(at[0]) - 1), int(at[-1]) + 2) for at in (rows, columns))
    cores[box] = _cores(np.ascontiguousarray(lesions[box]))
    return cores


def _cores(lesions: NDArray[np.integer]) -> NDArray[np.bool_]:
    pieces = cc3d.connected_components(lesions.astype(np.int32), connectivity=8)  # touching lesions stay apart
    rim = _rim(lesions)
    if not rim.any():  # one lesion fills the picture
        return pieces > 0
    # the way from a pixel to another lesion leads over the rim of its own lesion: one distance map serves all lesions
    depth = ndimage.distance_transform_edt(~rim) + 1
    inside = pieces.ravel() > 0
    deepest = np.zeros(int(pieces.max()) + 1)
    np.maximum.at(deepest, pieces.ravel()[inside], depth.ravel()[inside])
    whole = deepest < THIN_PX
    cores = (pieces > 0) & (whole[pieces] | (depth > LEVELS[0] * deepest[pieces]))
    for level in LEVELS[1:]:
        split = _in_parts(cores, pieces)
        if not split.any():
            return cores
        cores |= split[pieces] & (depth > level * deepest[pieces])
    return cores | _in_parts(cores, pieces)[pieces]


def _rim(lesions: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return the pixels beside a pixel of another id."""
    rim = np.zeros(lesions.shape, dtype=bool)
    down, right = lesions[1:] != lesions[:-1], lesions[:, 1:] != lesions[:, :-1]
    rim[1:] |= down
    rim[:-1] |= down
    rim[:, 1:] |= right
    rim[:, :-1] |= right
    return rim


def _in_parts(cores: NDArray[np.bool_], pieces: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return for each piece whether its core is in several parts."""
    parts, count = cc3d.connected_components(np.where(cores, pieces, 0), connectivity=4, return_N=True)
    owner = np.zeros(count + 1, dtype=np.int64)
    owner[parts.ravel()] = np.where(cores, pieces, 0).ravel()
    several = np.bincount(owner, minlength=int(pieces.max()) + 1) > 1
    several[0] = False
    return several
