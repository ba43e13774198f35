"""Tiles of bright discs on a dark ground, as cells, for tests of matched masks."""

import numpy as np
import torch
from torch import Tensor

from mois.filters import filter_bank
from mois.inference.matched_masks import Picture

CELLS = 32
SHOWN = np.ones((CELLS, CELLS), dtype=bool)


def disc(radius: float, row: float = 16, column: float = 16) -> np.ndarray:
    """Return a disc (32, 32) bool, in cells."""
    rows, columns = np.mgrid[:CELLS, :CELLS]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def picture(*bright: np.ndarray, level: float = 0.8) -> Picture:
    """Return a tile of 64 pixels with bright places on ground of 0.2, and a little noise."""
    image = torch.full((CELLS, CELLS), 0.2)
    for place in bright:
        image[torch.from_numpy(place)] = level
    image = image + 0.02 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    pixels = image.repeat_interleave(2, 0).repeat_interleave(2, 1)
    return Picture(filter_bank(pixels.view(1, 1, 64, 64))[0], SHOWN)


def logits(mask: np.ndarray) -> Tensor:
    return torch.where(torch.from_numpy(mask), 3.0, -3.0)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))
