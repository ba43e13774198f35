"""Means over scans with their intervals, and differences between two results with their tests."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from math import inf
from typing import Any

import numpy as np

from mois.evaluation.figures import (
    FIGURES,
    ClassReport,
    CountPoint,
    PaperFigures,
    SubjectReport,
    TrueLesionRow,
    mean_of,
    nested,
)
from mois.evaluation.settings import BINS_ML, size_bins
from mois.metrics.surface import SURFACE_MM

SCHEMA = 1
"""Number of the layout of metrics.json, which docs/metrics.md describes."""

Bins = Mapping[str, tuple[float, float]]
CONTRASTS: Bins = {"<0.1": (0, 0.1), "0.1-0.3": (0.1, 0.3), ">0.3": (0.3, inf)}
THIRDS = ("lower", "middle", "upper")
# figures of a point of the curve: name in metrics.json to that of `CountPoint`
POINT = {
    "used": "used",
    "right": "right",
    "wrong": "wrong",
    "swapped": "swapped",
    "f1": "lesion_f1",
    "precision": "lesion_precision",
    "recall": "lesion_recall",
    "fp_per_scan": "false_lesions",
}

Value = tuple[str, float | None]
"""Patient and value of a scan; the value is None if it was not measured."""


def summarise(
    reports: Sequence[SubjectReport],
    *,
    protocol: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the content of metrics.json, which docs/metrics.md describes.

    Args:
        reports: One per scan.
        protocol: How the scans were prompted and scored.
        provenance: Record of what made the result.
        seed: Seed of the bootstrap.
    """
    given = dict(protocol or {})
    surface_mm, sizes = given.get("surface_mm", SURFACE_MM), size_bins(given.get("bins_ml", BINS_ML))
    return {
        "schema": SCHEMA,
        "protocol": given,
        "summary": _summary(reports, seed, surface_mm, sizes),
        "curve": {"points": _points(reports, seed), "slope": _slopes(reports, seed)},
        "subjects": [report.entry(surface_mm) for report in reports],
        "provenance": dict(provenance or {}),
    }


def means(reports: Sequence[SubjectReport]) -> dict[str, float | None]:
    """Return the mean of each figure over the scans; None if no scan has it."""
    return {name: mean_of([getattr(report.figures, name) for report in reports]) for name in FIGURES}


def estimate(values: Sequence[Value], *, seed: int = 0) -> dict[str, Any]:
    """Return the mean of one value per scan.

    Args:
        values: Patient and value of each scan.
        seed: Seed of the bootstrap.

    Returns:
        `mean` (None for no scans) and `n` over the scans that have the value, and `ci95`: the 95 % percentile interval
        of a bootstrap over patients, None for fewer than two patients.
    """
    kept = [(patient, value) for patient, value in values if value is not None]
    numbers, patients = [value for _, value in kept], [patient for patient, _ in kept]
    interval = bootstrap_interval(numbers, patients, seed=seed)
    return {"mean": mean_of(numbers), "ci95": None if interval is None else list(interval), "n": len(kept)}


def slope_per_doubling(points: Sequence[tuple[float, float | None]]) -> float | None:
    """Return how much a figure rises whenever the number of exemplars doubles, by least squares.

    Zero exemplars are left out: the gain of the first exemplar is another question than the gain of further ones.

    Args:
        points: Pairs of a number of exemplars and its figure. If a number occurs twice, only its last figure counts.
    """
    known = {used: value for used, value in points if used >= 1 and value is not None}
    if len(known) < 2:
        return None
    doublings, values = np.log2(list(known)), np.array(list(known.values()))
    away = doublings - doublings.mean()
    return float((away * values).sum() / (away**2).sum())


def paired_gain(pairs: Sequence[tuple[str, float | None, float | None]], *, seed: int = 0) -> dict[str, Any]:
    """Return the mean rise of a figure over scans.

    Args:
        pairs: Patient, figure before and figure after, of each scan; None where it was not measured.
        seed: Seed of the bootstrap.

    Returns:
        `estimate` of the differences, over the scans in which both values were measured.
    """
    return estimate(_differences(pairs), seed=seed)


def paired_test(pairs: Sequence[tuple[str, float | None, float | None]], *, seed: int = 0) -> dict[str, Any]:
    """Return the difference of a figure between two results on the same scans, with a test.

    Args:
        pairs: Patient, first and second figure of each scan; None where it was not measured.
        seed: Seed of the bootstrap.

    Returns:
        `estimate` of second minus first, `patients`, and `p`. `p` is the two-sided Wilcoxon signed-rank test on
        the mean difference of each patient, because scans of one patient are not independent. `p` is None for fewer
        than two patients, and 1 if nothing differs. With n patients it is at least 2 / 2^n.
    """
    differences = _differences(pairs)
    owners = dict.fromkeys(patient for patient, difference in differences if difference is not None)
    per_patient = [mean_of([d for patient, d in differences if patient == owner]) or 0.0 for owner in owners]
    if len(per_patient) < 2:
        p = None
    elif not any(per_patient):
        p = 1.0
    else:
        from scipy import stats  # takes most of a second, and only comparisons need it

        p = float(stats.wilcoxon(per_patient).pvalue)
    return {**estimate(differences, seed=seed), "patients": len(per_patient), "p": p}


def bin_of(value: float | None, bins: Bins) -> str | None:
    """Return the name of the bin that holds a value (lower end included); None for None."""
    if value is None:
        return None
    return next(name for name, (low, high) in bins.items() if low <= value < high)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values corrected for their number, in the same order; None stays None and does not count.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.
    """
    order = sorted((p, position) for position, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, position) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        corrected[position] = highest
    return corrected


def _differences(pairs: Sequence[tuple[str, float | None, float | None]]) -> list[Value]:
    return [(patient, None if old is None or new is None else new - old) for patient, old, new in pairs]


def _summary(reports: Sequence[SubjectReport], seed: int, surface_mm: float, sizes: Bins) -> dict[str, Any]:
    def estimate_of(value: Callable[[SubjectReport], float | None]) -> dict[str, Any]:
        return estimate([(report.patient, value(report)) for report in reports], seed=seed)

    empty = [report for report in reports if not report.classes]
    per_subject = [(report.patient, report.figures) for report in reports]
    steps = dict.fromkeys(step for report in reports for step in report.seconds)
    figures = {
        name: estimate([(patient, getattr(one, name)) for patient, one in per_subject], seed=seed) for name in FIGURES
    }
    summary: dict[str, Any] = {
        "n_subjects": len(reports),
        "n_patients": len({report.patient for report in reports}),
        **nested(figures, surface_mm),
        "false_without_exemplars": estimate_of(lambda report: float(report.false_without_exemplars)),
        "false_in_empty_scans": estimate([(r.patient, float(r.false_without_exemplars)) for r in empty], seed=seed),
        "by_size": _bins(reports, sizes, lambda row: bin_of(row.volume_ml, sizes), seed),
        "by_location": _bins(reports, THIRDS, lambda row: row.third, seed),
        "by_absolute_contrast": _bins(reports, CONTRASTS, lambda row: bin_of(_absolute(row.contrast), CONTRASTS), seed),
        "seconds": {step: estimate_of(lambda report, step=step: report.seconds.get(step)) for step in steps},  # type: ignore[misc]
    }
    for name, entry in summary["by_size"].items():
        entry["fp_per_scan"] = estimate_of(lambda report, name=name: _false_of_size(report, name, sizes))  # type: ignore[misc]
    papers = [(report.patient, report.paper) for report in reports if report.paper is not None]
    if papers:
        summary["paper"] = {
            field.name: estimate([(patient, asdict(one)[field.name]) for patient, one in papers], seed=seed)
            for field in fields(PaperFigures)
        }
    return summary


def _bins(
    reports: Sequence[SubjectReport], names: Iterable[str], bin_of_row: Callable[[TrueLesionRow], str | None], seed: int
) -> dict[str, dict[str, Any]]:
    """Return number, recall and Dice of the unprompted lesions in each bin, as means over scans."""
    entries = {}
    for name in names:
        chosen = [
            (report.patient, [row for row in report.lesions if row.role != "prompted" and bin_of_row(row) == name])
            for report in reports
        ]
        entries[name] = {
            "lesions": sum(len(rows) for _, rows in chosen),
            "recall": estimate(
                [(patient, mean_of([float(row.found) for row in rows])) for patient, rows in chosen], seed=seed
            ),
            "dice": estimate([(patient, mean_of([row.dice for row in rows])) for patient, rows in chosen], seed=seed),
        }
    return entries


def _absolute(contrast: float | None) -> float | None:
    return None if contrast is None else abs(contrast)


def _false_of_size(report: SubjectReport, name: str, sizes: Bins) -> float | None:
    """Return the number of false lesions in a size bin, as the mean over classes."""
    return mean_of([float(sum(bin_of(ml, sizes) == name for ml in one.false_volumes_ml)) for one in report.classes])


def _points(reports: Sequence[SubjectReport], seed: int) -> list[dict[str, Any]]:
    points: dict[tuple[int, int], list[tuple[str, CountPoint]]] = {}
    for report in reports:
        for point in report.curve():
            points.setdefault((point.clicks, point.count), []).append((report.patient, point))
    return [
        {
            "clicks": clicks,
            "count": count,
            **{
                name: estimate([(patient, getattr(one, field)) for patient, one in points[clicks, count]], seed=seed)
                for name, field in POINT.items()
            },
        }
        for clicks, count in sorted(points)
    ]


def _slopes(reports: Sequence[SubjectReport], seed: int) -> dict[str, Any]:
    every = sorted({point.clicks for report in reports for one in report.classes for point in one.curve})
    return {
        str(clicks): {
            name: estimate(
                [(r.patient, mean_of([_slope(one, clicks, POINT[name]) for one in r.classes])) for r in reports],
                seed=seed,
            )
            for name in ("right", "f1")
        }
        for clicks in every
    }


def _slope(report: ClassReport, clicks: int, field: str) -> float | None:
    return slope_per_doubling([(p.used, getattr(p, field)) for p in report.curve if p.clicks == clicks])


def bootstrap_interval(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of a mean.

    Args:
        values: One per subject.
        groups: Patient of each value; values of one patient are drawn together. None draws each value by itself.
        confidence: Share of the resampled means that the interval holds.
        resamples: Number of resamplings.
        seed: Seed of the resampling.

    Returns:
        Lower and upper end; None for fewer than two groups.
    """
    owners = list(range(len(values))) if groups is None else list(groups)
    order = {owner: index for index, owner in enumerate(dict.fromkeys(owners))}
    if len(order) < 2:
        return None
    index = np.array([order[owner] for owner in owners])
    sums, counts = np.bincount(index, weights=np.asarray(values, dtype=np.float64)), np.bincount(index)
    drawn = np.random.default_rng(seed).integers(len(order), size=(resamples, len(order)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)
