"""Pooling under a lesion's mask: what every description of an exemplar begins with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Zones(NamedTuple):
    """Soft regions of a lesion on the grid of a feature level, each (N, h, w), 0 to 1.

    Attributes:
        core: Inside, away from the border.
        rim: Inside, along the border.
        outside: A ring of surroundings.
    """

    core: Tensor
    rim: Tensor
    outside: Tensor


def zones(masks: Tensor, stride: int) -> Zones:
    """Split lesion masks (N, P, P), 0 to 1, into core, rim and surroundings at 1 / stride of their resolution."""
    area = functional.avg_pool2d(masks.unsqueeze(1), stride)
    inner = -functional.max_pool2d(-area, 3, stride=1, padding=1)
    outer = functional.max_pool2d(area, 5, stride=1, padding=2)
    return Zones(inner.squeeze(1), (area - inner).squeeze(1), (outer - area).squeeze(1))


def masked_mean(maps: Tensor, weights: Tensor) -> Tensor:
    """Average feature maps (N, C, h, w), or the same (1, C, h, w), under weights (N, h, w); zero where these are zero.

    Returns:
        (N, C).
    """
    total = weights.flatten(1).sum(1, keepdim=True)
    form = "chw,nhw->nc" if len(maps) == 1 else "nchw,nhw->nc"  # one product instead of N
    mean = torch.einsum(form, maps[0] if len(maps) == 1 else maps, weights.to(maps.dtype))
    return mean / total.clamp(min=1e-4)


def is_present(masks: Tensor) -> Tensor:
    """Return (N, 1) bool: whether a mask (N, P, P), 0 to 1, holds at least half a pixel of lesion."""
    return masks.flatten(1).sum(1, keepdim=True) >= 0.5
