"""Curves over the number of exemplars: finished rows are kept, and the summary is computed by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT))  # the bench is run as `python -m tests.bench.exemplar_curves`, and installed nowhere
from tests.bench import exemplar_curves


def row(folder: Path, seed: int, *classes: dict[int, float], used: int = 99) -> Path:
    """Write a row with the Dice of each class by number of exemplars; no class has more than `used` exemplars."""
    points = [
        [{"count": count, "used": min(count, used), "right": right} for count, right in each.items()]
        for each in classes
    ]
    path = folder / f"curve_cells3d_{seed}.json"
    path.write_text(json.dumps({str(n): each for n, each in enumerate(points, start=1)}))
    return path


def test_a_row_that_is_there_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exemplar_curves, "evaluate_volume", lambda *_: pytest.fail("it was measured again"))
    path = row(tmp_path, 0, {1: 0.5})
    before = path.read_text()
    assert exemplar_curves.measure(tmp_path, "cells3d", 0) == path
    assert path.read_text() == before


def test_a_curve_is_the_mean_of_its_classes_and_ends_where_one_has_too_few_lesions(tmp_path: Path) -> None:
    path = row(tmp_path, 0, {1: 0.2, 2: 0.4, 5: 0.6}, {1: 0.4, 2: 0.8, 5: 0.8}, used=2)
    assert exemplar_curves.curve_of(path) == pytest.approx({1: 0.3, 2: 0.6})


def test_the_summary_of_two_readers_by_hand() -> None:
    rises = {0: 0.9, 1: 0.1, 2: 0.2, 4: 0.3}  # ranks 1, 2, 3: correlation 1; slope 0.1 a doubling
    falls_once = {0: 0.9, 1: 0.3, 2: 0.2, 4: 0.4}  # ranks 2, 1, 3: 1 - 6 x 2 / (3 x 8) = 0.5; slope (0.4 - 0.3) / 2
    summary = exemplar_curves.summary_of([rises, falls_once])
    assert summary.right == pytest.approx({0: 0.9, 1: 0.2, 2: 0.2, 4: 0.35})
    assert summary.ranks == pytest.approx(0.75)
    assert summary.slope == pytest.approx(0.075)
    assert summary.interval == pytest.approx(12.706 * 0.025, rel=1e-3)  # t(1) x the standard error of 0.1 and 0.05


def test_the_table_says_how_many_readers_there_are_and_leaves_out_what_was_not_asked(tmp_path: Path) -> None:
    row(tmp_path, 0, {0: 0.1, 1: 0.2, 2: 0.3})
    row(tmp_path, 3, {0: 0.1, 1: 0.3, 2: 0.4})
    last = exemplar_curves.table(tmp_path, ["cells3d", "ovule1135"], 10).splitlines()[-1]
    assert last == "| cells3d | 2 | 0.10 | 0.25 | 0.35 | - | - | - | - | 1.00 | +0.100 ± 0.000 |"
