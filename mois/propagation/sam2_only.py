"""SAM2 without propagation: only prompted lesions and their tracking."""

from __future__ import annotations

import torch
from torch import Tensor

from mois.interfaces import Backbone, Propagation
from mois.propagation.pooling import is_present
from mois.records import Exemplars, Features, SemanticPrediction

ABSENT_LOGIT = -10.0  # a probability of 4.5e-5


class Sam2Only(Propagation):
    """Finds no lesion beyond the prompted lesions. It is the baseline that every other propagation has to beat."""

    bytes_per_exemplar = 0

    def build(self, backbone: Backbone) -> None:
        """Do nothing: there are no layers."""

    def describe(self, features: Features, masks: Tensor, backbone: Backbone) -> Exemplars:
        """Keep only whether the mask holds a lesion."""
        present = is_present(masks)
        return Exemplars({}, present, torch.zeros_like(present))

    def forward(self, features: Features, exemplars: Exemplars, backbone: Backbone) -> SemanticPrediction:
        """Return logits and presence that stand for an empty result."""
        image, rows = features.image, exemplars.valid.shape[0]
        return SemanticPrediction(
            image.new_full((rows, *image.shape[2:]), ABSENT_LOGIT), image.new_full((rows,), ABSENT_LOGIT)
        )
