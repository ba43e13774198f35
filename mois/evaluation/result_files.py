"""Writes the result files: metrics.json and its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mois.evaluation.figures import SubjectReport
from mois.evaluation.result_records import read_rows
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.statistics import summarise
from mois.files.atomic import write_text
from mois.files.csv_tables import csv_text
from mois.metrics.surface import SURFACE_MM
from mois.sharing.calibration import Calibration


def write_result_files(
    out: Path,
    reports: Sequence[SubjectReport],
    provenance: Mapping[str, Any] | None = None,
    *,
    protocol: ProtocolSettings | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write `metrics.json`, `subjects.csv`, `lesions.csv`, `candidates.csv` and `curve.csv`, each whole or not at all.

    Args:
        out: Folder of the results; it is made if missing.
        reports: One per scan.
        provenance: Record of what made the result, for metrics.json.
        protocol: How the scans were prompted and scored, for metrics.json.
        seed: Seed of the bootstrap.

    Returns:
        The content of metrics.json.
    """
    settings = {} if protocol is None else asdict(protocol)
    text = json.dumps(
        summarise(reports, protocol=settings, provenance=provenance, seed=seed), indent=2, allow_nan=False
    )
    write_text(out / "metrics.json", text + "\n")
    write_text(out / "subjects.csv", _table([report.row(settings.get("surface_mm", SURFACE_MM)) for report in reports]))
    class_reports = [(report.subject, one) for report in reports for one in report.classes]
    write_text(
        out / "lesions.csv",
        _table(
            [
                {"subject": s, "target_class": one.target_class, **asdict(row)}
                for s, one in class_reports
                for row in one.lesions
            ]
        ),
    )
    write_text(
        out / "curve.csv",
        _table(
            [
                {"subject": s, "target_class": one.target_class, **asdict(point)}
                for s, one in class_reports
                for point in one.curve
            ]
        ),
    )
    write_text(
        out / "candidates.csv",
        _table([{"subject": report.subject, **asdict(row)} for report in reports for row in report.candidates]),
    )
    result: dict[str, Any] = json.loads(text)
    return result


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV, with the columns of all rows. A cell is empty if its value was not measured."""
    return csv_text(list(dict.fromkeys(name for row in rows for name in row)), rows)


Row = dict[str, str]
"""A line of a CSV; an empty cell was not measured."""


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write one or more lines as CSV, whole or not at all."""
    write_text(path, csv_text(list(rows[0]), rows))


def add_confidence(path: Path, calibration: Calibration) -> None:
    """Add the calibrated confidence to candidates.csv."""
    rows = read_rows(path, ["peak"], shares=["peak"])
    if rows:
        confidences = calibration.confidence([float(row["peak"]) for row in rows])
        write_rows(path, [{**row, "confidence": f"{value:.6f}"} for row, value in zip(rows, confidences, strict=True)])
