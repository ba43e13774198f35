"""The section of report.html on what helps a reader: curves over actions, and what a negative exemplar changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mois.report import charts
from mois.report.html_page import PageElement, Picture, SideBySide, Table, text_of
from mois.report.results import Estimate, Results

TEXT_ON_ACTIONS = (
    "Simulated readers at work in a session. Random: a click in the middle of one random lesion after the other. "
    "Suggested: a click where the session suggests it, or a rejection if there is no lesion. Corrects: verdicts on the "
    "found lesions, in the order of the list. All begin with the same lesion. Every point is scored on the same "
    "lesions, which no reader ever touches."
)
DRAWN = (
    ("right", "Dice", "Dice of what is found with the exemplars of all actions so far."),
    ("f1", "F1", "Lesion F1 of the same answer, one to one."),
    ("shown_dice", "Dice", "Dice of what the session shows: rejected lesions are gone."),
    ("shown_f1", "F1", "Lesion F1 of what the session shows."),
)


def actions(results: Results) -> list[PageElement]:
    """Return the curves over actions, and tables of the actions and of negative exemplars."""
    content = results.metrics.get("actions") or {}
    points = content.get("points") or []
    if not points:
        return []
    strategies = list(dict.fromkeys(point["strategy"] for point in points))
    pictures: list[PageElement] = []
    for name, label, caption in DRAWN:
        series = {
            strategy: [(p["actions"], Estimate.of(p[name])) for p in points if p["strategy"] == strategy]
            for strategy in strategies
        }
        if any(estimate.mean is not None for curve in series.values() for _, estimate in curve):
            pictures.append(Picture(charts.curves(series, "actions of the reader", label), caption))
    tables: list[PageElement] = [_actions_table(points)]
    negatives = content.get("negatives") or []
    if negatives:
        tables.append(_negatives_table(negatives))
    return [SideBySide(pictures[start : start + 2]) for start in range(0, len(pictures), 2)] + tables


def _actions_table(points: Sequence[Mapping[str, Any]]) -> Table:
    names = ("used", "lesions", "accepted", "rejected")
    rows = [
        [point["strategy"], str(point["actions"]), *(text_of(Estimate.of(point[name]).mean, 1) for name in names),
         *(_with_interval(point[name]) for name, _, _ in DRAWN)]
        for point in points
    ]  # fmt: skip
    columns = ("reader", "actions", "made", "exemplars", "accepted", "rejected", "Dice", "F1", "Dice shown", "F1 shown")
    return Table(columns, rows, title="Actions", note="Means over scans. Made: fewer if nothing was left to do.")


def _negatives_table(points: Sequence[Mapping[str, Any]]) -> Table:
    names = ("right", "right_after", "change_right", "fp_per_scan", "fp_after", "change_fp")
    rows = [
        [f"{point['exemplars']}", *(_with_interval(point[name]) for name in names), str(point["right"]["n"])]
        for point in points
    ]
    columns = ("exemplars", "Dice", "with it", "change", "false lesions", "with it", "change", "scans")
    note = "The largest false lesion is rejected; its own place is left out before and after."
    return Table(columns, rows, title="One negative exemplar", note=note)


def _with_interval(entry: Mapping[str, Any]) -> str:
    estimate = Estimate.of(entry)
    interval = "" if estimate.low is None else f" ({estimate.low:.2f} to {estimate.high:.2f})"
    return text_of(estimate.mean, 2) + interval
