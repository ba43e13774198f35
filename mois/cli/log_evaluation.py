"""`mois evaluate --log`: the results of an evaluation for W&B, as those of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mois.evaluation.evaluate_scans import Evaluation, stored_reports
from mois.evaluation.figures import keys
from mois.report.lesion_table import COLUMNS, DrawnScan, lesion_rows
from mois.scans.datasets import SubjectFiles
from mois.tracking.loggers import make_loggers
from mois.tracking.settings import TrackingSettings
from mois.tracking.tracker import Tracker


def log_evaluation(
    evaluation: Evaluation,
    scans: Sequence[SubjectFiles],
    metrics: Mapping[str, Any],
    out: Path,
    tracking: TrackingSettings,
    paths: Sequence[Path],
) -> None:
    """Record figures, a table of scans, a table of lesions, and pictures of the first scans with masks by class.

    Args:
        evaluation: What was evaluated.
        scans: The scans.
        metrics: Content of metrics.json.
        out: Folder of the results.
        tracking: What loggers record.
        paths: Paths of data and model, which hashed names hide.
    """
    tracker = Tracker(out, make_loggers(out, tracking, job="evaluate"))
    tracker.know([name for scan in scans for name in (scan.subject, scan.patient)], paths)
    experiment = tracking.experiment or out.resolve().name
    tracker.settings({"experiment": experiment, "protocol": metrics["protocol"], **metrics["provenance"]})
    surface_mm = evaluation.protocol.surface_mm
    means = {name: _at(metrics["summary"], path)["mean"] for name, path in keys(surface_mm).items()}
    tracker.scalars({f"test/{name}": value for name, value in means.items() if value is not None}, 0)
    reports = stored_reports(evaluation, scans, out)
    rows = [report.row(surface_mm) for report in reports]
    tracker.table("test/scans", list(rows[0]), [[row.get(name) for name in rows[0]] for row in rows], 0)
    classes = {number: name for scan in scans for number, name in scan.classes.items()}
    drawn: dict[str, DrawnScan] = {}
    for number, (scan, report) in enumerate(zip(scans[: tracking.scans], reports, strict=False), start=1):
        drawn[scan.subject] = DrawnScan.of(evaluation.read(scan), report, out)
        tracker.masks(f"test/scan{number}", drawn[scan.subject].masked(classes), 0, scan.subject)
    if lesions := lesion_rows(reports, drawn, classes):
        tracker.table("test/lesions", COLUMNS, lesions, 0)
    tracker.finish()


def _at(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
    for part in path:
        tree = tree[part]
    return tree
