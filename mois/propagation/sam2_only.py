"""SAM2 as it is: prompted lesions and their tracking, nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from mois.interfaces import Backbone, Propagation
from mois.propagation.pooling import is_present
from mois.records import Exemplars, Features, SemanticPrediction

ABSENT_LOGIT = -10.0  # a probability of 4.5e-5


class Sam2Only(Propagation):
    """Finds nothing beyond what was prompted; the baseline that every other propagation has to beat."""

    bytes_per_exemplar = 0

    def build(self, backbone: Backbone) -> None:
        """Need no layers."""

    def describe(self, features: Features, masks: Tensor, backbone: Backbone) -> Exemplars:
        """Keep only whether a lesion is there."""
        present = is_present(masks)
        return Exemplars({}, present, torch.zeros_like(present))

    def forward(self, features: Features, exemplars: Exemplars, backbone: Backbone) -> SemanticPrediction:
        """Find nothing."""
        image, rows = features.image, exemplars.valid.shape[0]
        return SemanticPrediction(
            image.new_full((rows, *image.shape[2:]), ABSENT_LOGIT), image.new_full((rows,), ABSENT_LOGIT)
        )
