"""Writes report.html from a folder of results: key figures, alarms, and the order of the sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mois.errors import counted
from mois.evaluation.evaluate_scans import Evaluation
from mois.report.action_sections import TEXT_ON_ACTIONS, actions
from mois.report.html_page import KeyFigure, Page, Section, interval_of, text_of, write_page
from mois.report.lesion_pictures import draw_worst_lesions
from mois.report.results import Results
from mois.report.sections import (
    bins,
    conditioning,
    confidence,
    curves,
    figures,
    overlays,
    provenance,
    robustness,
    scans,
    timing,
    worst_lesions,
)
from mois.scans.datasets import SubjectFiles
from mois.sharing.remarks import COMPARED, exemplars_harm, remarks, stored_made_worse, trained_on_remarks

KEY_FIGURES = (
    (("unprompted", "dice"), "Unprompted Dice"),
    (("unprompted", "f1"), "Unprompted F1"),
    (("unprompted", "fp_per_scan"), "False lesions per scan"),
    (("prompted", "dice"), "Prompted Dice"),
    (("scan_dice",), "Whole-scan Dice"),
)
TEXT_ON_EXEMPLARS = (
    "Dice on one set of lesions that is never prompted. If right is no better than wrong, the model ignores what it is "
    "shown."
)
TEXT_WITHOUT_EXEMPLARS = (
    "Dice on one set of lesions that is never prompted. This system takes no exemplars, so that right and no_exemplars "
    "are one number."
)
_IGNORED_SHARE = 0.8
"""If `wrong` is more than this share of `right`, the page shows an alarm."""


def write_report(folder: Path, title: str = "") -> Path:
    """Write `report.html` from metrics.json, the tables and `overlays` in a folder of results.

    Args:
        folder: Folder that `mois evaluate` or `mois test` wrote.
        title: Title of the page; by default the folder's name.

    Returns:
        Path of the page.

    Raises:
        ValueError: If the folder holds no results.
    """
    results = Results.read(folder)
    sections = [
        Section(
            "Figures",
            figures(results),
            "Means over scans, in brackets 95 % bootstrap intervals over patients. Unprompted lesions, which the "
            "reader has not touched, are scored apart: the prompted ones are taken out of truth and answer. A dash is "
            "what could not be measured.",
        ),
        Section("What the exemplars decide", conditioning(results), _on_exemplars(results)),
        Section(
            "Prompted lesions and clicks",
            curves(results),
            "Every point is scored on the same lesions, which are never prompted; 0 is without exemplars. Bands: 95 % "
            "intervals over patients.",
        ),
        Section("What helps a reader", actions(results), TEXT_ON_ACTIONS),
        Section("By kind of lesion", bins(results), "Unprompted lesions only."),
        Section("Best, median and worst scan", overlays(results)),
        Section("Worst lesions", worst_lesions(results)),
        Section("Confidence", confidence(results)),
        Section(
            "Other scanners",
            robustness(results),
            "The same scans, changed as another scanner might change them, read with the same clicks. A difference is "
            "drawn in colour where its interval leaves out 0.",
        ),
        Section("Time", timing(results)),
        Section("Scans", scans(results)),
        Section("How this was made", provenance(results)),
    ]
    page = Page(
        title or f"Evaluation: {folder.resolve().name}",
        _lead(results),
        [section for section in sections if section.parts],
        _key_figures(results),
        _alarms(results),
    )
    return write_page(folder / "report.html", page)


def write_evaluation_report(evaluation: Evaluation, scans: Sequence[SubjectFiles], out: Path) -> None:
    """Draw the worst lesions of an evaluation and write its report.html.

    Args:
        evaluation: The evaluation; it reads the scans again for the pictures.
        scans: The scans that were scored.
        out: Folder of the results, with metrics.json and its tables.
    """
    by_subject = {scan.subject: scan for scan in scans}
    draw_worst_lesions(out, lambda subject: evaluation.read(by_subject[subject]))
    write_report(out, evaluation.title)


def compared(results: Results) -> list[float | None]:
    """Return the means of right, wrong and no_exemplars; None if not measured."""
    estimates = [results.estimate("conditioning", word) for word in COMPARED]
    return [None if estimate is None else estimate.mean for estimate in estimates]


def _on_exemplars(results: Results) -> str:
    if other_system(results.metrics):
        return TEXT_WITHOUT_EXEMPLARS
    return " ".join((TEXT_ON_EXEMPLARS, *remarks(*compared(results))))


def other_system(metrics: Mapping[str, Any]) -> str:
    """Return the folder of the other system's predictions; "" if a model of ours was scored."""
    return str((metrics.get("provenance") or {}).get("predictions") or "")


def _lead(results: Results) -> str:
    protocol = results.metrics["protocol"]
    prompted, clicks = protocol.get("prompted"), protocol.get("clicks")
    other = other_system(results.metrics)
    words = [f"{counted(results.scan_count, 'scan')} of {counted(results.patient_count, 'patient')}."]
    if other:
        words.append(f"Predictions of another system ({other}), scored by the same code as ours.")
    elif prompted is not None and clicks is not None:
        strategy = (protocol.get("reader") or {}).get("strategy", "")
        words.append(
            f"A simulated reader ({strategy}) prompts up to {counted(prompted, 'lesion')} of each class with "
            f"{counted(clicks, 'click')} each; then all that is like them is found in the whole scan."
        )
    if protocol.get("rules") == "paper":
        words.append("The paper's rules are applied beside ours, never instead.")
    return " ".join(words)


def _key_figures(results: Results) -> list[KeyFigure]:
    key_figures = []
    for path, name in KEY_FIGURES:
        estimate = results.estimate(*path)
        if estimate is not None and estimate.mean is not None:
            digits = 1 if path[-1] == "fp_per_scan" else 2
            interval = "no interval" if estimate.low is None else interval_of(estimate, digits)
            key_figures.append(KeyFigure(name, text_of(estimate.mean, digits), interval, counted(estimate.n, "scan")))
    return key_figures


def _alarms(results: Results) -> list[str]:
    right, wrong = (results.estimate("conditioning", word) for word in ("right", "wrong"))
    alarms = []
    if right and wrong and right.mean and wrong.mean is not None and wrong.mean > _IGNORED_SHARE * right.mean:
        alarms.append(
            f"The exemplars hardly decide: with those of the right type Dice is {right.mean:.2f}, with those of "
            f"another type {wrong.mean:.2f}. What is found, the model finds by itself."
        )
    with_them, _, without = compared(results)
    if exemplars_harm(with_them, without):
        alarms.append(
            f"The exemplars do harm: with them (right) Dice is {with_them:.3f}, without (no_exemplars) {without:.3f}."
        )
    provenance = results.metrics.get("provenance") or {}
    alarms += [f"The model's own validation: {sentence}" for sentence in stored_made_worse(provenance)]
    alarms += trained_on_remarks(provenance.get("trained_on") or [])
    if results.patient_count == 1:
        alarms.append("One patient: there are no intervals, and nothing here carries over to others.")
    return alarms
