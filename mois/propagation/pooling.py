"""Pooling of features under the mask of a lesion. Every description of an exemplar starts here."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Zones(NamedTuple):
    """Soft regions of a lesion on the grid of a feature level, each (N, h, w), 0 to 1.

    Attributes:
        core: The inside, away from the border.
        rim: The inside, along the border.
        outside: A ring around the lesion.
    """

    core: Tensor
    rim: Tensor
    outside: Tensor


def zones(masks: Tensor, stride: int) -> Zones:
    """Split lesion masks into core, rim and surroundings.

    Args:
        masks: (N, P, P), 0 to 1.
        stride: Pixels per cell of the result.

    Returns:
        Zones (N, P / stride, P / stride).
    """
    area = functional.avg_pool2d(masks.unsqueeze(1), stride)
    inner = -functional.max_pool2d(-area, 3, stride=1, padding=1)
    outer = functional.max_pool2d(area, 5, stride=1, padding=2)
    return Zones(inner.squeeze(1), (area - inner).squeeze(1), (outer - area).squeeze(1))


def masked_mean(maps: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of each feature map.

    Args:
        maps: (N, C, h, w), or (1, C, h, w) to use one map with all weights.
        weights: (N, h, w), 0 or more.

    Returns:
        (N, C); zero if all weights of a map are zero.
    """
    total = weights.flatten(1).sum(1, keepdim=True)
    form = "chw,nhw->nc" if len(maps) == 1 else "nchw,nhw->nc"  # one matrix product instead of N
    mean = torch.einsum(form, maps[0] if len(maps) == 1 else maps, weights.to(maps.dtype))
    return mean / total.clamp(min=1e-4)


def log_area(masks: Tensor) -> Tensor:
    """Return the logarithm of the areas of masks (N, P, P), 0 to 1, as (N, 1): -1 is one pixel, and 0 is 148 pixels."""
    pixels = masks.flatten(1).sum(1, keepdim=True)
    return 0.2 * pixels.clamp(min=1).log() - 1


def is_present(masks: Tensor) -> Tensor:
    """Return whether each mask (N, P, P), 0 to 1, holds at least half a pixel of lesion, (N, 1) bool."""
    return masks.flatten(1).sum(1, keepdim=True) >= 0.5
