"""What a backbone answers to an example, to compare it before and after an adapter is attached."""

from __future__ import annotations

import torch
from torch import Tensor

from mois.interfaces import Backbone, Prompts

EDGE_PX = 64
"""Edge of the example image. Small, because each adapter of peft that is attached looks at it twice."""

IDENTITY = 1e-5
"""Largest change of an answer, relative to its largest value, that counts as rounding."""


def answers(backbone: Backbone) -> list[Tensor]:
    """Return what a backbone answers to an example: features, a click's mask, its correction, and a second slice.

    Every part of the backbone that an adapter may train takes part.
    """
    device = next(backbone.parameters()).device
    line = torch.linspace(-1, 1, EDGE_PX, device=device)
    images = ((line[:, None] ** 2 + line**2) < 0.2).float().unsqueeze(0) + 0.1 * line  # a disc on a slope, (1, P, P)
    inside, outside = EDGE_PX / 2, EDGE_PX / 8
    points = torch.tensor([[[inside, inside], [outside, outside]]], device=device)  # (1, 2, 2)
    labels = torch.tensor([[1, 0]], dtype=torch.int32, device=device)
    features = backbone.encode(images)
    clicked = backbone.decode(features, Prompts(points[:, :1], labels[:, :1]))
    corrected = backbone.decode(features, Prompts(points, labels, clicked.logits.unsqueeze(1)))
    seen = backbone.attend(features, backbone.remember(features, corrected.logits, corrected.pointer))
    followed = backbone.decode(seen, None)
    maps = [*features.levels, seen.levels[-1]]
    for answer in (clicked, corrected, followed):
        maps += [answer.candidates, answer.iou, answer.pointer, answer.presence]
    return maps


def largest_change(before: list[Tensor], after: list[Tensor]) -> float:
    """Return the largest difference between answers, each relative to the largest value of its tensor (or to 1)."""
    return max(
        float((one - other).abs().max() / one.abs().max().clamp(min=1))
        for one, other in zip(before, after, strict=True)
    )


def without_gradient(backbone: Backbone) -> list[str]:
    """Give the trained tensors of a backbone gradients from its answers; return the names of those that get none."""
    trained = {name: tensor for name, tensor in backbone.named_parameters() if tensor.requires_grad}
    for tensor in trained.values():
        tensor.grad = None
    with torch.enable_grad():
        total = torch.stack([each.float().square().mean() for each in answers(backbone)]).sum()
        total.backward()  # type: ignore[no-untyped-call]
    return [name for name, tensor in trained.items() if tensor.grad is None]
