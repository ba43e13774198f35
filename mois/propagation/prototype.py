"""Propagation without training: cosine similarity to the mean features of the exemplars."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mois.interfaces import Backbone, Propagation
from mois.propagation.pooling import is_present, masked_mean, zones
from mois.propagation.sam2_only import ABSENT_LOGIT
from mois.records import Exemplars, Features, SemanticPrediction


class Prototype(Propagation):
    """Marks pixels that are more like the lesion of an exemplar than like the surroundings of that lesion.

    - Each feature level is normalised per channel over the picture.
    - Its cosines to the mean vectors of the lesion and of the surroundings are subtracted.
    - The differences are averaged over the levels.
    - The most alike exemplar decides. So the weight of an exemplar matters only if it is zero.

    Args:
        margin: Difference of the two cosines above which a pixel is marked.
        sharpness: Logits per unit of that difference.

    Source: Wang et al., PANet: Few-shot image semantic segmentation with prototype alignment, arXiv 1908.06391. Only
        the prototypes are used, not its training.
    """

    def __init__(self, margin: float = 0.3, sharpness: float = 10.0) -> None:
        super().__init__()
        self.margin = margin
        self.sharpness = sharpness

    def build(self, backbone: Backbone) -> None:
        """Declare the size of an exemplar. There are no layers."""
        self.bytes_per_exemplar = 8 * sum(backbone.channels)

    def describe(self, features: Features, masks: Tensor, backbone: Backbone) -> Exemplars:
        """Keep the mean features of the lesion and of its surroundings for each level."""
        tokens = {}
        for index, (level, stride) in enumerate(zip(features.levels, backbone.strides, strict=True)):
            zone = zones(masks, stride)
            flat = _standardise(level)
            tokens[f"lesion_{index}"] = masked_mean(flat, zone.core + zone.rim).unsqueeze(1)
            tokens[f"outside_{index}"] = masked_mean(flat, zone.outside).unsqueeze(1)
        present = is_present(masks)
        return Exemplars(tokens, present, torch.zeros_like(present))

    def forward(self, features: Features, exemplars: Exemplars, backbone: Backbone) -> SemanticPrediction:
        """Find the pixels that are like a positive exemplar, and less like every negative exemplar."""
        features = features.repeat(exemplars.valid.shape[0] // features.image.shape[0])
        patch_px = features.image.shape[-1]
        batch, count = exemplars.valid.shape
        if count == 0:
            logits = features.image.new_full((batch, patch_px, patch_px), ABSENT_LOGIT)
            return SemanticPrediction(logits, logits.amax((1, 2)))
        total = features.image.new_zeros(batch, count, patch_px, patch_px)
        for index, level in enumerate(features.levels):
            flat = functional.normalize(_standardise(level), dim=1)
            lesion, outside = (
                functional.normalize(exemplars.tokens[f"{zone}_{index}"], dim=2) for zone in ("lesion", "outside")
            )
            likeness = torch.einsum("bchw,bkc->bkhw", flat, lesion - outside)
            total = total + functional.interpolate(likeness, (patch_px, patch_px), mode="bilinear")
        total = total / len(features.levels)
        positive = exemplars.positive[:, :, None, None]
        negative = exemplars.present_negative[:, :, None, None]
        alike = total.masked_fill(~positive, -2.0).amax(1)
        unlike = total.masked_fill(~negative, -2.0).amax(1)
        score = torch.where(unlike > alike, alike - unlike, alike) - self.margin
        logits = (self.sharpness * score).clamp(min=ABSENT_LOGIT)
        return SemanticPrediction(logits, logits.amax((1, 2)))


def _standardise(level: Tensor) -> Tensor:
    """Return a level (N, C, h, w) with mean 0 and standard deviation 1 per channel and picture."""
    centre = level.mean((2, 3), keepdim=True)
    return (level - centre) / level.std((2, 3), keepdim=True).clamp(min=1e-4)
