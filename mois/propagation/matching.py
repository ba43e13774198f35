"""Matching without training: every pixel is compared with single pixels inside and around the exemplars."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mois.filters import FILTERS, filter_bank
from mois.interfaces import Backbone, Propagation
from mois.propagation.exemplar_tokens import TOKENS, TokenSet, kernel_log_odds, take_tokens
from mois.propagation.sam2_only import ABSENT_LOGIT
from mois.records import Exemplars, Features, SemanticPrediction

FEATURES = 64
"""Most numbers of a token."""

MOST_TOKENS = 256
"""Tokens of a question. Five exemplars with 600, 300 or 200 tokens give the same Dice within 0.03."""


class Matching(Propagation):
    """A pixel is what the pixels of the exemplars that look like it are: inside of a lesion, or not.

    An exemplar is a set of single pixels (tokens) from its core, its border, its surroundings and further tissue, each
    with its features and the share of it that is inside. The answer at a pixel is the mean share of all tokens,
    weighted by a Gaussian kernel of the distance between features. All tokens of a negative exemplar are outside.

    The features are a bank of filters of each channel of the image and the levels of the backbone, which a fixed
    projection reduces to what is left of 64. The tokens of a question standardise them.

    Args:
        temperature: Width of the kernel, as a squared distance a feature.

    Source: Nadaraya, On estimating regression, 1964; as attention with masks for values: Oh et al., Video object
        segmentation using space-time memory networks, arXiv 1904.00607.
    """

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"propagation.temperature={temperature} must be above 0.")
        self.temperature = temperature

    def build(self, backbone: Backbone) -> None:
        """Draw the projection of the backbone's levels: always the same for the same sizes."""
        channels, kept = sum(backbone.channels), FEATURES - FILTERS
        projection = torch.eye(channels)
        if channels > kept:
            generator = torch.Generator().manual_seed(0)
            projection = torch.linalg.qr(torch.randn(channels, kept, generator=generator)).Q
        self.register_buffer("projection", projection, persistent=False)
        self.bytes_per_exemplar = 2 * TOKENS * (FILTERS + projection.shape[1] + 2)

    def describe(self, features: Features, masks: Tensor, backbone: Backbone) -> Exemplars:
        """Keep T pixels of each image, in and around its lesion."""
        return self.describe_on(features, torch.arange(len(masks), device=masks.device), masks, backbone)

    def describe_on(self, features: Features, image: Tensor, masks: Tensor, backbone: Backbone) -> Exemplars:
        """Filter each image once, whatever the number of lesions on it."""
        return take_tokens(self._cells(features), features.image, image, masks)

    def forward(self, features: Features, exemplars: Exemplars, backbone: Backbone) -> SemanticPrediction:
        """Find the pixels that look like the inside of exemplars, and not like what lies around them."""
        rows, patch = exemplars.valid.shape[0], features.image.shape[-2:]
        absent = features.image.new_full((rows, *patch), ABSENT_LOGIT)
        if exemplars.count == 0:
            return SemanticPrediction(absent, absent.amax((1, 2)))
        tokens = TokenSet.of(exemplars, most=MOST_TOKENS)
        cells = self._cells(features)
        with torch.autocast(cells.device.type, enabled=False):
            odds = kernel_log_odds(cells.flatten(2).transpose(1, 2), tokens, self.temperature)
            odds = odds.view(rows, 1, *cells.shape[-2:])
        logits = functional.interpolate(odds, patch, mode="bilinear").squeeze(1).to(absent.dtype)
        some = exemplars.positive.any(1)[:, None, None]
        logits = torch.where(some, logits, absent)
        return SemanticPrediction(logits, logits.amax((1, 2)))

    def _cells(self, features: Features) -> Tensor:
        """Return the features of each cell, (N, F, P / 2, P / 2)."""
        filters = filter_bank(features.image, every=True)
        levels = torch.cat(
            [
                functional.interpolate(level.float(), filters.shape[-2:], mode="bilinear", align_corners=False)
                for level in features.levels
            ],
            dim=1,
        )
        reduced = torch.einsum("nchw,cf->nfhw", levels, self.projection)
        return torch.cat([filters, reduced[:, : FEATURES - filters.shape[1]]], dim=1)
