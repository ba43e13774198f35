"""The rules by which arXiv 2509.19277 scored a scan, for comparison with its table; see docs/metrics.md."""

from __future__ import annotations

import numpy as np

from mois.components import components
from mois.evaluation.reports import PaperFigures, measured
from mois.metrics import Mask, any_overlap, dice

PAPER_LESIONS = 20
PAPER_CLICKS = 3
PAPER_MIN_ML = 2.0


def score_by_paper(truth: Mask, found: Mask, prompted: Mask, voxel_ml: float) -> PaperFigures:
    """Score all that was prompted or propagated by the paper's rules.

    Args:
        truth: (S, H, W) bool, all lesions of a class.
        found: What was propagated.
        prompted: The prompted lesions as clicked and tracked.
        voxel_ml: Volume of a voxel in millilitres.
    """
    all_of_it, few = found | prompted, int(components(truth).max(initial=0)) < PAPER_LESIONS
    scan_dice, f1, precision, recall = _score(truth, all_of_it, voxel_ml)
    gated_scan_dice, gated_f1, _, _ = _score(truth, prompted if few else all_of_it, voxel_ml)
    return PaperFigures(scan_dice, f1, precision, recall, gated_scan_dice, gated_f1)


def _score(truth: Mask, found: Mask, voxel_ml: float) -> tuple[float | None, float | None, float | None, float | None]:
    least = int(np.ceil(PAPER_MIN_ML / voxel_ml - 1e-6))  # 2 ml itself is kept
    true_parts, found_parts = components(truth, least), components(found, least)
    if not true_parts.any() and not found_parts.any():
        return 1.0, 1.0, 1.0, 1.0
    matches = any_overlap(found_parts, true_parts)
    overall = dice(found_parts > 0, true_parts > 0) if true_parts.any() else 0.0
    return overall, measured(matches.f1), measured(matches.precision), measured(matches.recall)
