"""A propagation that compares every cell with the mean feature of the exemplars."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mois.interfaces import Backbone, Exemplars, Features, Propagation, SemanticPrediction


class MeanToken(Propagation):
    """Compares every cell of the coarsest level with the exemplars' mean feature.

    Args:
        gain: Logits per unit of likeness, above 0.
    """

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        if gain <= 0:
            raise ValueError(f"model.propagation.init_args.gain={gain} must be above 0.")
        self.gain = gain

    def build(self, backbone: Backbone) -> None:
        """See `Propagation.build`."""
        self.bytes_per_exemplar = 4 * backbone.width
        self.key = nn.Linear(backbone.width, backbone.width)
        self.nothing = nn.Parameter(torch.zeros(backbone.width))

    def describe(self, features: Features, masks: Tensor, backbone: Backbone) -> Exemplars:
        """See `Propagation.describe`."""
        coarse = features.levels[-1]
        share = functional.adaptive_avg_pool2d(masks.unsqueeze(1), coarse.shape[-2:])
        mean = (coarse * share).sum((2, 3)) / share.sum((2, 3)).clamp(min=1e-6)
        there = masks.flatten(1).any(1, keepdim=True)
        return Exemplars({"mean": mean.unsqueeze(1)}, there, torch.zeros_like(there))

    def forward(self, features: Features, exemplars: Exemplars, backbone: Backbone) -> SemanticPrediction:
        """See `Propagation.forward`."""
        times = exemplars.valid.shape[0] // features.image.shape[0]
        coarse = features.levels[-1].repeat_interleave(times, 0)
        sign = exemplars.valid * exemplars.weight * (1 - 2 * exemplars.negative.float())
        wanted = (exemplars.tokens["mean"] * sign.unsqueeze(2)).sum(1) / sign.abs().sum(1, keepdim=True).clamp(min=1e-6)
        wanted = torch.where(exemplars.present.any(1, keepdim=True), wanted, self.nothing)
        score = self.gain * torch.einsum("bchw,bc->bhw", coarse, self.key(wanted))
        logits = functional.interpolate(score.unsqueeze(1), features.image.shape[-2:], mode="bilinear").squeeze(1)
        return SemanticPrediction(logits, logits.amax((1, 2)))
