"""Grids of pictures, measured in pixels of the finished picture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from datamodules.phantoms.painting import Float, Triple


class Grid(NamedTuple):
    """Grid of a stack that a picture is drawn on. It may be coarser than the finished picture.

    Attributes:
        shape: Number of slices, rows and columns.
        spacing_px: Distance between slices, rows and columns, in pixels of the finished picture.
    """

    shape: tuple[int, int, int]
    spacing_px: Triple

    @property
    def extent_px(self) -> Triple:
        """Depth, height and width."""
        depth, height, width = (n * px for n, px in zip(self.shape, self.spacing_px, strict=True))
        return depth, height, width

    def voxel(self, at_px: Triple) -> tuple[int, int, int]:
        """Return the voxel at a place, or the one nearest to it."""
        s, h, w = (
            min(max(int(at / px), 0), n - 1) for at, px, n in zip(at_px, self.spacing_px, self.shape, strict=True)
        )
        return s, h, w

    def axes(self) -> tuple[Float, Float, Float]:
        """Return where slices (S, 1, 1), rows (1, H, 1) and columns (W,) lie, in pixels from the stack's corner."""
        z, y, x = (
            ((np.arange(n) + 0.5) * px).astype(np.float32) for n, px in zip(self.shape, self.spacing_px, strict=True)
        )
        return z[:, None, None], y[None, :, None], x


def log_uniform(rng: np.random.Generator, lowest: float, highest: float) -> float:
    """Draw a number whose logarithm is uniform."""
    return float(lowest * (highest / lowest) ** rng.random())
