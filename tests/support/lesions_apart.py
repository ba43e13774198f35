"""Large lesions of a phantom that lie apart: no click on one of them lies in a neighbour's mask, with any weights."""

from __future__ import annotations

import numpy as np

APART = 40
"""Smallest distance between the middles of two lesions, in voxels."""


def largest_apart(ids: np.ndarray, count: int) -> list[int]:
    """Return the ids of the largest lesions that lie apart from each other."""
    sizes = np.bincount(ids.ravel().astype(np.int64))
    sizes[0] = 0
    chosen: dict[int, np.ndarray] = {}
    for number in np.argsort(-sizes)[: np.count_nonzero(sizes)].tolist():
        middle = np.argwhere(ids == number).mean(0)
        if all(np.linalg.norm(middle - other) >= APART for other in chosen.values()):
            chosen[number] = middle
    assert len(chosen) >= count
    return list(chosen)[:count]
