"""From scans to one figure with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mois.evaluation.reports import FIGURES, SubjectReport
from mois.metrics import bootstrap_interval, mean_of


def summarise(reports: Sequence[SubjectReport], *, seed: int = 0) -> dict[str, Any]:
    """Return what a set of scans says, ready for JSON.

    Args:
        reports: One per scan.
        seed: Of the bootstrap.

    Returns:
        `subjects`, `patients`: how many. `figures`: each of `Figures`, the mean over the scans in which it was measured
        (`mean`, `n`) with the 95 % bootstrap interval over patients (`ci95`, None for fewer than two). `curve`: the
        same for each number of exemplars. `per_subject`: one flat row per scan. What was measured nowhere is None.
    """
    counts = sorted({point.count for report in reports for point in report.curve()})
    return {
        "subjects": len(reports),
        "patients": len({report.patient for report in reports}),
        "figures": {
            name: _summary([(report.patient, getattr(report.figures, name)) for report in reports], seed)
            for name in FIGURES
        },
        "false_without_exemplars": mean_of([float(report.false_without_exemplars) for report in reports]),
        "curve": {str(count): _curve_summary(reports, count, seed) for count in counts},
        "per_subject": [report.row() for report in reports],
    }


def means(reports: Sequence[SubjectReport]) -> dict[str, float | None]:
    """Return the mean over the scans of each of `Figures`, None where it was measured in none."""
    return {name: mean_of([getattr(report.figures, name) for report in reports]) for name in FIGURES}


def paired_gain(pairs: Sequence[tuple[str, float | None, float | None]], *, seed: int = 0) -> dict[str, Any]:
    """Return how much a figure rose, scan by scan.

    Args:
        pairs: Patient, figure before and figure after, of each scan; None where it was not measured.
        seed: Of the bootstrap.

    Returns:
        `mean`, `n` and `ci95` (95 % bootstrap interval over patients) of the differences, over the scans in which both
        were measured.
    """
    rises = [(patient, None if old is None or new is None else new - old) for patient, old, new in pairs]
    return _summary(rises, seed)


def _summary(values: Sequence[tuple[str, float | None]], seed: int) -> dict[str, Any]:
    """Summarise one value per scan, given with its patient."""
    kept = [(patient, value) for patient, value in values if value is not None]
    numbers, patients = [value for _, value in kept], [patient for patient, _ in kept]
    interval = bootstrap_interval(numbers, patients, seed=seed)
    return {"mean": mean_of(numbers), "ci95": None if interval is None else list(interval), "n": len(kept)}


def _curve_summary(reports: Sequence[SubjectReport], count: int, seed: int) -> dict[str, Any]:
    points = [(report.patient, point) for report in reports for point in report.curve() if point.count == count]
    return {
        name: _summary([(patient, getattr(point, name)) for patient, point in points], seed)
        for name in ("used", "right", "wrong", "swapped", "lesion_f1")
    }
