"""Curves over the actions of simulated readers, and the effect of negative exemplars, as means over scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mois.evaluation.actions.points import ActionPoint, NegativePoint
from mois.evaluation.figures import ClassReport, SubjectReport, mean_of
from mois.evaluation.statistics import estimate, paired_gain

Point = TypeVar("Point", ActionPoint, NegativePoint)
ACTION_FIGURES = {
    "used": "used",
    "lesions": "lesions",
    "accepted": "accepted",
    "rejected": "rejected",
    "right": "right",
    "f1": "lesion_f1",
    "precision": "lesion_precision",
    "recall": "lesion_recall",
    "fp_per_scan": "false_lesions",
    "shown_dice": "shown_dice",
    "shown_f1": "shown_f1",
}
"""Figures of a point over actions: name in metrics.json to that of `ActionPoint`."""
NEGATIVE_PAIRS = {"right": ("right", "right_after"), "fp": ("false_lesions", "false_after")}
"""Figures that a negative exemplar changes: name in metrics.json to those of `NegativePoint`, before and after."""


def summarise_actions(reports: Sequence[SubjectReport], *, seed: int = 0) -> dict[str, Any]:
    """Return the key `actions` of metrics.json, which docs/metrics.md describes; {} without curves over actions.

    Args:
        reports: One per scan.
        seed: Seed of the bootstrap.
    """
    classes = [one for report in reports for one in report.classes]
    keys = dict.fromkeys((point.strategy, point.actions) for one in classes for point in one.actions)
    if not keys:
        return {}
    points = [
        {
            "strategy": strategy,
            "actions": actions,
            **{
                name: estimate(
                    [(report.patient, _mean(report, _points_at(strategy, actions), figure)) for report in reports],
                    seed=seed,
                )
                for name, figure in ACTION_FIGURES.items()
            },
        }
        for strategy, actions in keys
    ]
    exemplars = sorted({point.exemplars for one in classes for point in one.negatives})
    return {"actions": {"points": points, "negatives": [_negative(reports, count, seed) for count in exemplars]}}


def _negative(reports: Sequence[SubjectReport], exemplars: int, seed: int) -> dict[str, Any]:
    """Return the figures before and after a negative exemplar, and their paired differences."""

    def chosen(report: ClassReport) -> list[NegativePoint]:
        return [point for point in report.negatives if point.exemplars == exemplars]

    entry: dict[str, Any] = {"exemplars": exemplars}
    for name, (before, after) in NEGATIVE_PAIRS.items():
        pairs = [(r.patient, _mean(r, chosen, before), _mean(r, chosen, after)) for r in reports]
        entry["fp_per_scan" if name == "fp" else name] = estimate([(p, one) for p, one, _ in pairs], seed=seed)
        entry[f"{name}_after"] = estimate([(p, other) for p, _, other in pairs], seed=seed)
        entry[f"change_{name}"] = paired_gain(pairs, seed=seed)
    return entry


def _points_at(strategy: str, actions: int) -> Callable[[ClassReport], list[ActionPoint]]:
    """Return a function that picks the point of a strategy at a number of actions."""
    return lambda report: [p for p in report.actions if (p.strategy, p.actions) == (strategy, actions)]


def _mean(report: SubjectReport, points: Callable[[ClassReport], list[Point]], figure: str) -> float | None:
    """Return a figure of a scan: the mean over its classes."""
    return mean_of([getattr(point, figure) for one in report.classes for point in points(one)])
