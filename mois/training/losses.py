"""Losses on logits. Each returns one value per picture; the caller weighs and averages."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Return the mean focal loss of each picture.

    Args:
        logits: (..., H, W).
        target: (..., H, W) float, 0 to 1.
        alpha: Weight of the positive class; the negative class has 1 - alpha.
        gamma: How strongly well-classified pixels lose weight.

    Returns:
        (...,).

    Source: Lin et al., Focal loss for dense object detection, arXiv 1708.02002, equation 5.
    """
    logits = logits.float()
    cross = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = logits.sigmoid()
    miss = probability * (1 - target) + (1 - probability) * target
    weight = alpha * target + (1 - alpha) * (1 - target)
    return (weight * miss**gamma * cross).mean((-2, -1))


def dice_loss(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """Return 1 - soft Dice of each picture. An empty answer to an empty picture has the loss 0.

    Args:
        logits: (..., H, W).
        target: (..., H, W) float, 0 to 1.
        smooth: Pixels that are added to numerator and denominator.

    Returns:
        (...,).
    """
    probability = logits.float().sigmoid()
    overlap = (probability * target).sum((-2, -1))
    total = probability.sum((-2, -1)) + target.sum((-2, -1))
    return 1 - (2 * overlap + smooth) / (total + smooth)


def mask_loss(logits: Tensor, target: Tensor, focal_weight: float = 20.0) -> Tensor:
    """Return focal_weight x focal loss + Dice loss of each picture, as in SAM2. Shapes as in `focal_loss`."""
    return focal_weight * focal_loss(logits, target) + dice_loss(logits, target)


def soft_iou(logits: Tensor, target: Tensor) -> Tensor:
    """Return the intersection over union of each picture, 1 if both masks are empty.

    Args:
        logits: (..., H, W); above 0 belongs to the mask.
        target: (..., H, W) float, 0 to 1.
    """
    predicted = (logits > 0).to(target.dtype)
    overlap = (predicted * target).sum((-2, -1))
    union = (predicted + target).sum((-2, -1)) - overlap
    return torch.where(union == 0, 1.0, overlap / union.clamp(min=1e-6))


def masked_average(values: Tensor, keep: Tensor) -> Tensor:
    """Return the mean of values, a scalar. Values that are not kept count as 0.

    The divisor is the number of all values. So the mean over the ranks is the mean over the whole batch, and several
    processes train exactly like one process.
    """
    return (values * keep.to(values.dtype)).mean()
