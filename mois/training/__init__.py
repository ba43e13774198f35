"""Training with Lightning: the module, its command line, callbacks and checkpoints."""

from mois.training.export import ExportWeights
from mois.training.module import ExemplarSegmenter

__all__ = ["ExemplarSegmenter", "ExportWeights"]
