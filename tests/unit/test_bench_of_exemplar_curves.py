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


def test_a_curve_is_of_a_class_and_ends_at_the_number_of_its_lesions(tmp_path: Path) -> None:
    path = row(tmp_path, 0, {1: 0.2, 2: 0.4, 5: 0.6, 10: 0.6}, {1: 0.4, 2: 0.8}, used=4)
    assert exemplar_curves.curves_of(path) == {"1": {1: 0.2, 2: 0.4, 4: 0.6}, "2": {1: 0.4, 2: 0.8}}


RISES = {0: 0.9, 1: 0.1, 2: 0.2, 4: 0.3}
"""Ranks 1, 2, 3: correlation 1. Slope 0.1 a doubling."""

FALLS_ONCE = {0: 0.9, 1: 0.3, 2: 0.2, 4: 0.4}
"""Ranks 2, 1, 3: correlation 1 - 6 x 2 / (3 x 8) = 0.5. Slope (0.4 - 0.3) / 2."""


def test_the_summary_of_two_readers_by_hand() -> None:
    summary = exemplar_curves.summary_of([[RISES, FALLS_ONCE]])
    assert summary.right == pytest.approx({0: 0.9, 1: 0.2, 2: 0.2, 4: 0.35})
    assert summary.most == pytest.approx(0.35)
    assert summary.ranks == pytest.approx(0.75)
    assert summary.rank_of_mean == pytest.approx(0.866, abs=1e-3)  # ranks 1.5, 1.5, 3: (1.5 / 2) / (sqrt(3) / 2)
    assert summary.slope == pytest.approx(0.075)
    assert summary.interval == pytest.approx(12.706 * 0.025, rel=1e-3)  # t(1) x the standard error of 0.1 and 0.05


def test_the_slope_of_each_type_is_over_the_numbers_of_its_own() -> None:
    """Types with slopes of (0.1 + 0.05) / 2 and -0.2, of which the second has two exemplars alone."""
    summary = exemplar_curves.summary_of([[RISES, FALLS_ONCE], [{0: 0.1, 1: 0.6, 2: 0.4}]])
    assert summary.right == pytest.approx({0: 0.5, 1: 0.4, 2: 0.3})
    assert summary.most == pytest.approx((0.35 + 0.4) / 2)
    assert summary.ranks == pytest.approx((0.75 - 1) / 2)
    assert summary.rank_of_mean == pytest.approx((0.866 - 1) / 2, abs=1e-3)
    assert summary.slope == pytest.approx((0.075 - 0.2) / 2)
    assert summary.interval == pytest.approx(12.706 * 0.275 / 2, rel=1e-3)  # over two types


def test_a_type_with_a_single_exemplar_has_no_slope() -> None:
    summary = exemplar_curves.summary_of([[RISES, FALLS_ONCE], [{0: 0.4, 1: 0.6}]])
    assert summary.right == pytest.approx({0: 0.65, 1: 0.4})
    assert summary.most == pytest.approx((0.35 + 0.6) / 2)
    assert (summary.ranks, summary.slope) == pytest.approx((0.75, 0.075))


def test_the_table_says_how_many_readers_there_are_and_leaves_out_what_was_not_asked(tmp_path: Path) -> None:
    row(tmp_path, 0, {0: 0.1, 1: 0.2, 2: 0.3})
    row(tmp_path, 3, {0: 0.1, 1: 0.3, 2: 0.4})
    last = exemplar_curves.table(tmp_path, ["cells3d", "ovule1135"], 10).splitlines()[-1]
    assert last == "| cells3d | 1 | 2 | 0.10 | 0.25 | 0.35 | - | - | - | - | 0.35 | 1.00 | 1.00 | +0.100 ± 0.000 |"


def test_sets_that_differ_in_their_number_alone_are_a_line_of_the_table(tmp_path: Path) -> None:
    row(tmp_path, 0, {1: 0.2, 2: 0.3}, {1: 0.2, 2: 0.4}).rename(tmp_path / "curve_phantom_0_0.json")
    row(tmp_path, 0, {1: 0.2, 2: 0.2}).rename(tmp_path / "curve_phantom_1_0.json")
    row(tmp_path, 1, {1: 0.2, 2: 0.2}).rename(tmp_path / "curve_phantom_1_1.json")
    (line,) = exemplar_curves.table(tmp_path, ["phantom 0", "phantom 1"], 10).splitlines()[2:]
    assert line == "| phantom | 3 | 1 to 2 | - | 0.20 | 0.30 | - | - | - | - | 0.30 | 0.67 | 0.67 | +0.100 ± 0.248 |"
