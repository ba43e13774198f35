"""The layout of result files: metrics.json, robustness.json, captions.json and tables; read here with checks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from mois.errors import DataError
from mois.files.atomic import read_regular
from mois.files.csv_tables import plain
from mois.files.json_records import as_record, read_json
from mois.files.text import read_table

EVALUATE_AGAIN = "evaluate again"


@dataclass(frozen=True)
class EstimateRecord:
    """A figure over scans; see `mois.evaluation.statistics.estimate`."""

    mean: float | None
    ci95: tuple[float, float] | None
    n: int


Estimates = dict[str, EstimateRecord]
Numbers = dict[str, float | None]


@dataclass(frozen=True)
class BinRecord:
    """Lesions of one bin."""

    lesions: int
    recall: EstimateRecord
    dice: EstimateRecord
    fp_per_scan: EstimateRecord | None = None


@dataclass(frozen=True)
class SummaryRecord:
    """Figures over all scans."""

    n_subjects: int
    n_patients: int
    scan_dice: EstimateRecord
    conditioning: Estimates
    unprompted: Estimates
    prompted: Estimates
    scan: Estimates
    false_without_exemplars: EstimateRecord
    false_in_empty_scans: EstimateRecord
    by_size: dict[str, BinRecord]
    by_location: dict[str, BinRecord]
    by_absolute_contrast: dict[str, BinRecord]
    seconds: Estimates
    paper: Estimates = field(default_factory=dict)


@dataclass(frozen=True)
class PointRecord:
    """One point of the curves."""

    clicks: int
    count: int
    used: EstimateRecord
    right: EstimateRecord
    wrong: EstimateRecord
    swapped: EstimateRecord
    f1: EstimateRecord
    precision: EstimateRecord | None = None
    recall: EstimateRecord | None = None
    fp_per_scan: EstimateRecord | None = None


@dataclass(frozen=True)
class CurveRecord:
    """The curves and their slopes, by number of clicks."""

    points: list[PointRecord]
    slope: dict[str, Estimates]


@dataclass(frozen=True)
class ActionPointRecord:
    """One point of the curves over actions."""

    strategy: str
    actions: int
    used: EstimateRecord
    lesions: EstimateRecord
    accepted: EstimateRecord
    rejected: EstimateRecord
    right: EstimateRecord
    f1: EstimateRecord
    precision: EstimateRecord
    recall: EstimateRecord
    fp_per_scan: EstimateRecord
    shown_dice: EstimateRecord
    shown_f1: EstimateRecord


@dataclass(frozen=True)
class NegativePointRecord:
    """What one negative exemplar changes."""

    exemplars: int
    right: EstimateRecord
    right_after: EstimateRecord
    change_right: EstimateRecord
    fp_per_scan: EstimateRecord
    fp_after: EstimateRecord
    change_fp: EstimateRecord


@dataclass(frozen=True)
class ActionsRecord:
    """The curves over actions, and the effect of negative exemplars."""

    points: list[ActionPointRecord]
    negatives: list[NegativePointRecord]


@dataclass(frozen=True)
class SubjectRecord:
    """One scan."""

    subject: str
    patient: str
    classes: list[int]
    lesions: int
    scan_dice: float | None
    conditioning: Numbers
    unprompted: Numbers
    prompted: Numbers
    scan: Numbers
    false_without_exemplars: int
    seconds: dict[str, float]
    paper: Numbers = field(default_factory=dict)


@dataclass(frozen=True)
class ReaderRecord:
    """The simulated reader."""

    strategy: str = ""
    seed: int = 0
    noise_mm: float = 0.0
    miss: float = 0.0
    slices: str = "largest"


@dataclass(frozen=True)
class ProtocolRecord:
    """Settings of the protocol that comparisons and reports read; {} if unknown."""

    prompted: int | None = None
    clicks: int | None = None
    masks: str | None = None
    reader: ReaderRecord | None = None
    counts: list[int] | None = None
    curve_clicks: list[int] | None = None
    target_class: int | None = None
    margin_px: int | None = None
    surface_mm: float | None = None
    bins_ml: list[float] | None = None
    actions: list[int] | None = None
    rules: str | None = None


@dataclass(frozen=True)
class MetricsRecord:
    """metrics.json."""

    schema: int
    protocol: ProtocolRecord
    summary: SummaryRecord
    curve: CurveRecord
    subjects: list[SubjectRecord]
    provenance: dict[str, Any]
    actions: ActionsRecord | None = None

    def __post_init__(self) -> None:
        names = [one.subject for one in self.subjects]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"scan {twice[:40]} stands there twice")
        predictions, trained_on = (self.provenance.get(key) for key in ("predictions", "trained_on"))
        if not isinstance(predictions, str | None) or not isinstance(trained_on, list | None):
            raise ValueError("provenance.predictions is a name, provenance.trained_on a list of scans")
        if not all(isinstance(name, str) for name in trained_on or ()):
            raise ValueError("provenance.trained_on holds names of scans")


@dataclass(frozen=True)
class ChangesRecord:
    """robustness.json."""

    unchanged: Estimates
    changes: dict[str, Estimates]

    def __post_init__(self) -> None:
        for estimates in self.changes.values():
            if missing := {"dice", "f1", "change_dice", "change_f1"} - estimates.keys():
                raise ValueError(f"a change lacks {min(missing)}")
        if missing := {"dice", "f1"} - self.unchanged.keys():
            raise ValueError(f"unchanged lacks {min(missing)}")


@dataclass(frozen=True)
class CaptionRecord:
    """Caption of a picture beside captions.json."""

    file: str
    caption: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^/\\\0]+", self.file) or self.file in (".", ".."):
            raise ValueError(f"{self.file[:40]!r} is no name of a file in this folder")


def read_metrics(path: Path, schema: int) -> dict[str, Any]:
    """Return metrics.json after checking its layout.

    Raises:
        DataError: If the file is damaged, or has another layout.
    """
    content = read_json(path, EVALUATE_AGAIN)
    given = content.get("schema") if isinstance(content, dict) else None
    if given != schema or type(given) is not int:
        raise DataError(f"{path}: schema {given} is not the one that is read here ({schema}); {EVALUATE_AGAIN}.")
    as_record(content, MetricsRecord, str(path), EVALUATE_AGAIN, complete=False)
    metrics: dict[str, Any] = content
    return metrics


def read_rows(
    path: Path, needed: Sequence[str] = (), numbers: Sequence[str] = (), shares: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Return the lines of a table; [] if the file is missing or empty.

    Args:
        path: A CSV file.
        needed: Columns that a table with lines must have.
        numbers: Columns that must hold finite numbers.
        shares: Columns that must hold numbers from 0 to 1.

    Raises:
        DataError: If a column is missing or holds something else.
    """
    if not path.exists() or not read_regular(path).strip():
        return []
    if not (table := read_table(path)).rows:
        return []
    if missing := [name for name in needed if name not in table.columns]:
        raise DataError(f"{path}: lacks the column {missing[0]}; {EVALUATE_AGAIN}.")
    for row, line in zip(table.rows, table.lines, strict=True):
        for name in (*numbers, *shares):
            value = _number(row[name])
            if value is None or (name in shares and not 0 <= value <= 1):
                kind = "a number from 0 to 1" if name in shares else "a number"
                raise DataError(f"{path}: line {line}: {name} is {row[name][:40]!r}, not {kind}; {EVALUATE_AGAIN}.")
    return [{name: plain(value) for name, value in row.items()} for row in table.rows]


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if isfinite(value) else None
