"""The bench of readers' actions, by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mois.records import Volume
from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT))  # the bench is run as `python -m tests.bench.actions`, and installed nowhere
from tests.bench import actions


def row(**right: list[float]) -> list[dict[str, Any]]:
    """Return the points of a row, with the Dice of each strategy after each number of actions."""
    further = {"lesion_f1": 0.5, "shown_f1": 0.5, "lesions": 2, "rejected": 1}
    return [
        {"strategy": strategy, "actions": count, "right": dice, **further}
        for strategy, curve in right.items()
        for count, dice in zip(actions.ACTIONS, curve, strict=True)
    ]


ROWS = [
    row(random=[0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.7, 0.7], suggested=[0.2, 0.3, 0.6, 0.9, 0.9, 0.9, 0.9, 0.9]),
    row(random=[0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9], suggested=[0.4, 0.5, 0.6, 0.7, 0.7, 0.7, 0.7, 0.7]),
]


def test_the_mean_over_rows_says_how_many_actions_are_saved() -> None:
    assert actions.actions_saved(ROWS) == {"random": 6, "suggested": 4}
    assert actions.actions_saved([row(random=[0.5] * 8, corrects=[0.4] * 8)]) == {"random": 1, "corrects": None}


def test_the_table_has_a_line_for_each_strategy_and_figure() -> None:
    lines = actions.table(ROWS).splitlines()
    assert len(lines) == 2 + 2 * len(actions.FIGURES)
    assert lines[2] == "| random | right | 0.30 | 0.40 | 0.50 | 0.60 | 0.70 | 0.80 | 0.80 | 0.80 |"


def test_the_table_of_negatives_has_a_line_for_each_number_of_exemplars() -> None:
    one = {"exemplars": 2, "right": 0.5, "right_after": 0.7, "false_lesions": 4, "false_after": 1}
    rows = [[one], [one | {"right": 0.7}, one | {"exemplars": 3}]]
    assert actions.table_of_negatives(rows).splitlines()[2:] == [
        "| 2 | 2 | 0.60 | 0.70 | 4.00 | 1.00 |",
        "| 3 | 1 | 0.50 | 0.70 | 4.00 | 1.00 |",
    ]


def test_the_class_with_more_lesions_is_scored() -> None:
    empty = torch.zeros(1, 1, 1)
    scan = Volume("a", "a", empty, torch.eye(4, dtype=torch.float64), empty.int(), {1: 2, 2: 1, 3: 2, 4: 1, 5: 2})
    assert actions.most_frequent_class(scan) == 2
    assert actions.most_frequent_class(scan._replace(classes={1: 2, 2: 1})) == 1


def test_a_row_that_is_there_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "evaluate_volume", lambda *_: pytest.fail("it was measured again"))
    path = tmp_path / "actions_0_1.json"
    path.write_text("[]\n", encoding="utf-8")
    assert actions.measure(tmp_path, 0, 1) == path
