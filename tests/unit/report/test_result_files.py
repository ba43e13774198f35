"""Results from elsewhere: what is no result ends in one line, and a page embeds nothing from outside their folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mois.evaluation.figures import SubjectReport
from mois.evaluation.result_records import read_rows
from mois.files.csv_tables import cell, csv_text, plain
from mois.report.evaluation_page import write_report
from mois.report.results import Results
from tests.support.paths import FIXTURES

FIRST = FIXTURES / "format_1" / "evaluated"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIRST, tmp_path / "evaluated"))


def change(path: Path, edit: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


WRONG: list[tuple[Callable[[Any], object], str]] = [
    (lambda c: c.update(schema=True), "schema True is not the one"),
    (lambda c: c.update(schema="1"), "schema 1 is not the one"),
    (lambda c: c.update(summary=[]), "summary"),
    (lambda c: c.update(protocol=None), "protocol"),
    (lambda c: c["protocol"].update(prompted="many"), "protocol.prompted is 'many'"),
    (lambda c: c["protocol"].update(reader=3), "protocol.reader is 3"),
    (lambda c: c.pop("curve"), "lacks curve"),
    (lambda c: c["curve"].update(points={}), "curve.points"),
    (lambda c: c["curve"]["points"][0].update(right=0.5), "curve.points.0.right is 0.5"),
    (lambda c: c["curve"]["points"][0].update(count="1"), "curve.points.0.count is '1'"),
    (lambda c: c["summary"]["scan_dice"].update(mean="good"), "summary.scan_dice.mean is 'good'"),
    (lambda c: c["summary"]["scan_dice"].update(ci95=[1]), "summary.scan_dice.ci95"),
    (lambda c: c["summary"]["by_size"].update(huge=1), "summary.by_size.huge is 1"),
    (lambda c: c["summary"]["by_size"]["<0.5"].pop("recall"), "lacks summary.by_size.<0.5.recall"),
    (lambda c: c["summary"].update(unprompted=0), "summary.unprompted is 0"),
    (lambda c: c.update(subjects={}), "subjects"),
    (lambda c: c["subjects"].append(c["subjects"][0]), "scan p0 stands there twice"),
    (lambda c: c["subjects"][0].update(patient=7), "subjects.0.patient is 7"),
    (lambda c: c["subjects"][0]["unprompted"].update(dice="1"), "subjects.0.unprompted.dice is '1'"),
    (lambda c: c.update(provenance=[]), "provenance"),
    (lambda c: c["provenance"].update(trained_on="p0"), "trained_on a list of scans"),
    (lambda c: c["provenance"].update(predictions=[1]), "provenance.predictions is a name"),
]


def test_metrics_of_another_form_are_refused_with_the_place(folder: Path) -> None:
    whole = (folder / "metrics.json").read_text(encoding="utf-8")
    Results.read(folder)
    for edit, message in WRONG:
        change(folder / "metrics.json", edit)
        with pytest.raises(ValueError, match="evaluate again") as error:
            Results.read(folder)
        assert message in str(error.value)
        (folder / "metrics.json").write_text(whole, encoding="utf-8")


def test_a_scan_s_report_of_another_form_is_refused() -> None:
    stored = json.loads((FIRST / "finished" / "p0.json").read_text(encoding="utf-8"))["report"]
    assert SubjectReport.from_json(stored).to_json()["subject"] == "p0"
    for wrong in ({}, [], {**stored, "classes": 1}, {**stored, "patient": None}, {**stored, "more": 1}):
        with pytest.raises(ValueError, match="score the scan again"):
            SubjectReport.from_json(wrong)
    stored["classes"][0]["lesions"][0]["found"] = "yes"
    with pytest.raises(ValueError, match=r"classes.0.lesions.0.found is 'yes'"):
        SubjectReport.from_json(stored)


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("lesions.csv", "volume_ml", "volume", "lacks the column volume_ml"),
        ("candidates.csv", "peak", "peaks", "lacks the column peak"),
        ("candidates.csv", ",True,", ",True,,", "cells, its header"),
        ("subjects.csv", "subject", "scan", "lacks the column subject"),
    ],
)
def test_a_table_of_another_form_is_refused(folder: Path, table: str, old: str, new: str, message: str) -> None:
    file = folder / table
    file.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Results.read(folder)


def test_numbers_of_a_table_are_finite_and_shares_are_shares(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("a,b\n1,0.5\n-2,1\n")
    assert read_rows(file, ["a", "b"], ["a"], ["b"]) == [{"a": "1", "b": "0.5"}, {"a": "-2", "b": "1"}]
    for text in ("a,b\n1,0.5\nnan,1\n", "a,b\n1,0.5\n1,1.5\n", "a,b\n1,0.5\n,1\n", "a,b\n1,0.5\n1,\n"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"table\.csv: line 3: [ab] is"):
            read_rows(file, ["a", "b"], ["a"], ["b"])


@pytest.mark.parametrize("name", ["../../../secret.png", "..", "/etc/secret.png", "a/b.png", "", "a\\b.png", "a\0.png"])
def test_a_caption_names_a_file_beside_it_or_none(folder: Path, tmp_path: Path, name: str) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "secret.png")
    worst = folder / "overlays" / "worst"
    worst.mkdir(parents=True, exist_ok=True)
    (worst / "captions.json").write_text(json.dumps([{"file": name, "caption": "x"}]))
    with pytest.raises(ValueError, match="is no name of a file in this folder"):
        write_report(folder)


def test_a_picture_that_is_a_link_to_elsewhere_is_not_embedded(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "secret.png")
    for place in ("overlays/p0.png", "overlays/worst/00_p0_lesion1.png"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).unlink(missing_ok=True)
        (folder / place).symlink_to(tmp_path / "secret.png")
        with pytest.raises(ValueError, match=r"is a link that leads out of"):
            write_report(folder)
        (folder / place).unlink()


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1+1", "-x", "@sum(1)", "\t=1", "  =1", "'=1", "''@x"])
def test_a_name_is_no_formula_in_a_spreadsheet_and_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    assert str(cell(name)).startswith("'")
    assert plain(cell(name)) == name
    text = csv_text(["subject", "dice"], [{"subject": name, "dice": -0.5}])
    assert text.splitlines()[1].lstrip('"').startswith("'")
    assert text.endswith(",-0.5\n")
    (tmp_path / "table.csv").write_text(text)
    if name == name.strip():  # blanks around a cell are taken off when it is read
        assert read_rows(tmp_path / "table.csv")[0]["subject"] == name


@pytest.mark.parametrize("name", ["p0", "-0.5", "+3", "1e-3", "a=b", "", "it's"])
def test_other_cells_are_written_as_they_are(name: str) -> None:
    assert cell(name) == name == plain(name)
