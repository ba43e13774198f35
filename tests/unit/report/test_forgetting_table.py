"""The table of forgetting, computed by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mois.evaluation.figures import ClassReport, Figures, SubjectReport
from mois.report.forgetting import TypeOf, forgetting_cells, table_rows, write_forgetting

BRIGHT, DARK = TypeOf("mine", "bright", 1), TypeOf("mine", "dark", 2)


def report(subject: str, **dice: float) -> SubjectReport:
    """Return a report on one scan with the unprompted Dice of its classes."""
    numbers = {"bright": 1, "dark": 2}
    classes = tuple(ClassReport(numbers[name], Figures(unprompted_dice=value), (), ()) for name, value in dice.items())
    return SubjectReport(subject, f"patient of {subject}", classes, 0, {})


REPORTS = {
    ("old", "mine"): [report("a", bright=0.8, dark=0.6), report("b", bright=0.6)],
    ("new", "mine"): [report("a", bright=0.9, dark=0.2), report("b", bright=0.9)],
}


def test_each_type_is_compared_with_the_first_bundle_scan_by_scan(tmp_path: Path) -> None:
    cells = forgetting_cells(REPORTS, ["old", "new"], [BRIGHT, DARK])
    rows = {(cell.kind.name, cell.bundle): cell for cell in cells if cell.figure == "unprompted_dice"}
    assert rows["bright", "old"].value.mean == pytest.approx(0.7)
    assert rows["bright", "old"].change.mean is None
    assert rows["bright", "new"].change.mean == pytest.approx(0.2)  # .1 on scan a, .3 on scan b
    assert rows["bright", "new"].change.low == pytest.approx(0.1)
    assert (rows["dark", "new"].value.n, rows["dark", "new"].value.mean) == (1, 0.2)
    assert rows["dark", "new"].change.mean == pytest.approx(-0.4)
    assert table_rows(cells, "unprompted_dice") == [
        ["bright (mine)", "0.70", "0.90 (+0.20)"],
        ["dark (mine)", "0.60", "0.20 (-0.40)"],
    ]
    page = write_forgetting(tmp_path, cells, ["new was trained on 1 of the 2 scans of mine."])
    assert "0.20; -0.400" in page.read_text(encoding="utf-8").replace(" (\N{EN DASH})", "")
    with (tmp_path / "forgetting.csv").open(encoding="utf-8") as file:
        line = next(row for row in csv.DictReader(file) if row["bundle"] == "new" and row["type"] == "dark")
    assert (line["mean"], line["change"], line["low"]) == ("0.2", "-0.4", "")


def test_a_bundle_that_was_not_measured_has_empty_cells() -> None:
    cells = forgetting_cells({("old", "mine"): REPORTS["old", "mine"]}, ["old", "new"], [BRIGHT])
    assert table_rows(cells, "unprompted_dice") == [["bright (mine)", "0.70", "\N{EN DASH}"]]
