"""Annotation of pictures: the objects that a reader would see, each as one connected instance."""

from __future__ import annotations

from typing import NamedTuple

import cc3d
import numpy as np
from numpy.typing import NDArray

from datamodules.phantoms.painting import Bool, Float
from datamodules.pictures.degradations import resize

LEAST_PX = 10
"""Smallest area of the largest section of an object."""
FAINTEST = 0.07
"""Smallest difference between an object and its surroundings, in normalised units."""
LEAST_EVIDENCE = 5.0
"""Smallest difference between an object and its surroundings, in standard errors of the mean of a section."""
_SHELL_PX = (-4.0, -1.0)  # depths of the surroundings of an object


_Numbers = NDArray[np.float64]


class Drawn(NamedTuple):
    """Objects of a finished picture.

    Attributes:
        owner: (S, H, W) int32, object that each voxel is in or near; 0 is none.
        depth: (S, H, W) float32, depth below its surface in pixels, negative outside.
        home: (S, H, W) bool, voxels whose ground is the one that the object stands out from.
    """

    owner: NDArray[np.int32]
    depth: Float
    home: Bool


def finished(owner: NDArray[np.int32], depth: Float, home: Bool, shape: tuple[int, int, int]) -> Drawn:
    """Bring objects from a coarse grid to the finished one. Outlines are smooth; borders between objects have steps."""
    rows, columns = (
        ((np.arange(n) + 0.5) * m / n).astype(np.intp) for n, m in zip(shape[1:], owner.shape[1:], strict=True)
    )
    lowest = np.float32(_SHELL_PX[0] - 1)
    depth = np.where(owner > 0, np.maximum(depth, lowest), lowest)
    fine = slice(None), rows[:, None], columns
    return Drawn(owner[fine], resize(depth, shape[1], shape[2]), home[fine])


def annotate(drawn: Drawn, kinds: NDArray[np.int64], image: Float) -> tuple[NDArray[np.int32], dict[int, int]]:
    """Return the instance map of a picture and its classes.

    A class with a single lesion is left out: beside the exemplar there would be nothing to find.

    Args:
        drawn: The objects.
        kinds: (N + 1,) class of objects 0 (none) to N; 0 for objects that are never annotated.
        image: (S, H, W) float32, normalised intensities.
    """
    instances = np.where((drawn.depth > 0) & (kinds[drawn.owner] > 0), drawn.owner, 0)
    instances = largest_parts(instances.astype(np.int32))
    slices = np.arange(len(instances), dtype=np.int64)[:, None, None] * len(kinds)
    area = np.bincount((instances + slices).ravel(), minlength=len(instances) * len(kinds))
    area = area.reshape(len(instances), len(kinds))
    seen = (area.max(0) >= LEAST_PX) & (area.sum(0) >= 2 * LEAST_PX) & _visible(drawn, instances, image, area.max(0))
    seen[0] = False
    numbers = np.bincount(kinds[seen], minlength=int(kinds.max()) + 1)
    seen &= numbers[kinds] >= 2
    instances = np.where(seen[instances], instances, 0).astype(np.int32)
    return instances, {int(i): int(kinds[i]) for i in np.flatnonzero(seen)}


def largest_parts(instances: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the largest connected part of each instance, (S, H, W)."""
    parts = cc3d.connected_components(instances, connectivity=26)
    flat = parts.ravel()
    counts = np.bincount(flat)
    owners = np.zeros(len(counts), np.int64)
    owners[flat] = instances.ravel()
    order = np.lexsort((counts, owners))
    last = np.r_[owners[order][1:] != owners[order][:-1], True]
    keep = np.zeros(len(counts), bool)
    keep[order[last]] = True
    kept: NDArray[np.int32] = np.where(keep[parts], instances, 0)
    return kept


def _visible(drawn: Drawn, instances: NDArray[np.int32], image: Float, largest_px: NDArray[np.int64]) -> Bool:
    """Return which objects (N + 1,) differ from their surroundings, in mean or in variance."""
    count = len(largest_px)
    shell = (drawn.depth > _SHELL_PX[0]) & (drawn.depth < _SHELL_PX[1]) & drawn.home
    within = instances > 0
    inner, inner_sd, _ = _moments(instances[within], image[within], count)
    outer, outer_sd, around = _moments(drawn.owner[shell], image[shell], count)
    step = np.maximum(np.abs(inner - outer), np.sqrt(np.maximum(inner_sd**2 - outer_sd**2, 0)))
    visible: Bool = (step >= FAINTEST) & (step * np.sqrt(largest_px) >= LEAST_EVIDENCE * outer_sd)
    return visible | (around < LEAST_PX)  # objects on all sides: nothing to compare with


def _moments(owner: NDArray[np.int32], values: Float, count: int) -> tuple[_Numbers, _Numbers, NDArray[np.intp]]:
    """Return mean, standard deviation and number of the values of each object, (count,) each."""
    number = np.bincount(owner, minlength=count)
    divisor = np.maximum(number, 1)
    mean = np.bincount(owner, values, count) / divisor
    square = np.bincount(owner, values.astype(np.float64) ** 2, count) / divisor
    return mean, np.sqrt(np.maximum(square - mean**2, 0)), number
