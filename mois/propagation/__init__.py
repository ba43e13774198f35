"""From exemplars to all lesions that look like them: one module for each method."""

from mois.propagation.attention import Attention
from mois.propagation.learned_matching import LearnedMatching
from mois.propagation.matching import Matching
from mois.propagation.prototype import Prototype
from mois.propagation.sam2_only import Sam2Only
from mois.propagation.similarity import Similarity

__all__ = ["Attention", "LearnedMatching", "Matching", "Prototype", "Sam2Only", "Similarity"]
