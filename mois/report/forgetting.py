"""The table of forgetting: how well each bundle finds each type, and what it lost against the first bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mois.evaluation.figures import SubjectReport
from mois.evaluation.statistics import estimate, paired_gain
from mois.files.atomic import write_text
from mois.files.csv_tables import csv_text
from mois.report import charts
from mois.report.comparison import signed
from mois.report.html_page import Page, PageElement, Picture, Section, Table, interval_of, text_of, write_page
from mois.report.results import Estimate

MEASURED = {
    "unprompted_dice": "Dice of lesions that nobody clicked",
    "prompted_dice": "Dice of clicked lesions",
}
"""Figures in the table of forgetting, in words."""
COLUMNS = ("data", "type", "bundle", "figure", "mean", "low", "high", "scans", "change", "change_low", "change_high")


class TypeOf(NamedTuple):
    """A type of lesions: a class of a dataset.

    Attributes:
        data: Name of the dataset.
        name: Name of the class.
        number: The class.
    """

    data: str
    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name} ({self.data})"


class Cell(NamedTuple):
    """A figure of a bundle on a type.

    Attributes:
        kind: The type.
        bundle: Name of the bundle.
        figure: Name of the figure, of `MEASURED`.
        value: Mean over the scans that hold the type.
        change: Mean difference from the first bundle, on the scans that both measured; without a mean for the first.
    """

    kind: TypeOf
    bundle: str
    figure: str
    value: Estimate
    change: Estimate

    def row(self) -> list[object]:
        """Return the cell as a line of forgetting.csv, by `COLUMNS`."""
        numbers = (*self.value, *self.change[:3])
        first = [self.kind.data, self.kind.name, self.bundle, self.figure]
        return [*first, *(round(number, 4) if isinstance(number, float) else number for number in numbers)]


Reports = Mapping[tuple[str, str], Sequence[SubjectReport]]
"""Reports on the scans of a dataset, by the names of bundle and dataset."""


def forgetting_cells(reports: Reports, bundles: Sequence[str], types: Sequence[TypeOf], seed: int = 0) -> list[Cell]:
    """Return every cell of the table: figure by figure, type by type, bundle by bundle.

    Args:
        reports: Reports by bundle and dataset. A bundle that could not be measured on a dataset has none.
        bundles: Names of the bundles. The others are compared with the first.
        types: The types.
        seed: Seed of the bootstrap over patients.
    """
    cells = []
    for figure in MEASURED:
        for kind in types:
            values = {bundle: _values(reports.get((bundle, kind.data), ()), kind.number, figure) for bundle in bundles}
            first = values[bundles[0]]
            for bundle in bundles:
                pairs = [
                    (patient, first[scan][1], value)
                    for scan, (patient, value) in values[bundle].items()
                    if scan in first and bundle != bundles[0]
                ]
                mean = Estimate.of(estimate(list(values[bundle].values()), seed=seed))
                cells.append(Cell(kind, bundle, figure, mean, Estimate.of(paired_gain(pairs, seed=seed))))
    return cells


def write_forgetting(out: Path, cells: Sequence[Cell], notes: Sequence[str]) -> Path:
    """Write forgetting.csv, forgetting.json and forgetting.html, and return the page.

    Args:
        out: Folder of the files.
        cells: The table.
        notes: Sentences on what was not measured, and on scans that a bundle was trained on.
    """
    rows = [dict(zip(COLUMNS, cell.row(), strict=True)) for cell in cells]
    write_text(out / "forgetting.csv", csv_text(COLUMNS, rows))
    content = {"cells": rows, "notes": list(notes)}
    write_text(out / "forgetting.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    bundles = list(dict.fromkeys(cell.bundle for cell in cells))
    sections = [
        Section(words.capitalize().replace("dice", "Dice"), _section(cells, figure, bundles))
        for figure, words in MEASURED.items()
    ]
    lead = (
        f"Each bundle on each type of lesions. Differences are from {bundles[0]}, scan by scan, with the 95 % interval "
        "of a bootstrap over patients. Not a medical device: for research only."
    )
    return write_page(out / "forgetting.html", Page("Table of forgetting", lead, sections, (), list(notes)))


def _values(reports: Sequence[SubjectReport], number: int, figure: str) -> dict[str, tuple[str, float | None]]:
    """Return patient and figure of every scan that holds a class, by the name of the scan."""
    return {
        report.subject: (report.patient, getattr(one.figures, figure))
        for report in reports
        for one in report.classes
        if one.target_class == number
    }


def _section(cells: Sequence[Cell], figure: str, bundles: Sequence[str]) -> list[PageElement]:
    chosen = [cell for cell in cells if cell.figure == figure]
    rows = [[str(kind), *(_text(cell) for cell in chosen if cell.kind == kind)] for kind in _types(chosen)]
    drawn = {str(kind): {cell.bundle: cell.value for cell in chosen if cell.kind == kind} for kind in _types(chosen)}
    table = Table(("type", *bundles), rows)
    any_measured = any(cell.value.mean is not None for cell in chosen)
    return [table, Picture(charts.bars(drawn, MEASURED[figure]), "")] if any_measured else [table]


def _types(cells: Sequence[Cell]) -> list[TypeOf]:
    return list(dict.fromkeys(cell.kind for cell in cells))


def _text(cell: Cell) -> str:
    """Return a cell of the page: the figure with its interval, and the difference from the first bundle."""
    if cell.value.mean is None:
        return text_of(None)
    value = f"{cell.value.mean:.2f} ({interval_of(cell.value, 2)})"
    return value if cell.change.mean is None else f"{value}; {signed(cell.change)}"


def table_rows(cells: Sequence[Cell], figure: str) -> list[list[str]]:
    """Return the table of a figure for a terminal: a row for each type, a cell for each bundle."""
    chosen = [cell for cell in cells if cell.figure == figure]
    return [[str(kind), *(_short(cell) for cell in chosen if cell.kind == kind)] for kind in _types(chosen)]


def _short(cell: Cell) -> str:
    if cell.value.mean is None:
        return text_of(None)
    return f"{cell.value.mean:.2f}" + ("" if cell.change.mean is None else f" ({cell.change.mean:+.2f})")
