"""What figures say when they are compared."""

from __future__ import annotations

import pytest

from mois.sharing.remarks import exemplars_harm, made_worse, remarks


@pytest.mark.parametrize(
    ("right", "no_exemplars", "harm"),
    [(0.36, 0.64, True), (0.64, 0.36, False), (0.8911, 0.8914, False), (0.0, 0.001, True), (None, 0.5, False)],
)
def test_exemplars_do_harm_where_less_is_found_with_them(right: float | None, no_exemplars: float, harm: bool) -> None:
    assert exemplars_harm(right, no_exemplars) == harm
    assert any("do harm" in said for said in remarks(right, 0.0, no_exemplars)) == harm


def test_of_one_class_right_is_compared_with_no_exemplars() -> None:
    (said,) = remarks(0.5, None, 0.2)
    assert "compare right with no_exemplars" in said
    assert remarks(0.5, 0.1, 0.2) == []


def test_what_a_training_made_worse_is_said_with_both_figures() -> None:
    (said,) = made_worse({"prompted_dice": 0.63, "right": 0.3}, {"prompted_dice": 0.33, "right": 0.4})
    assert said.startswith("prompted_dice fell from 0.63 (step 0) to 0.33: ")
    assert "learning_rate" in said
    both = made_worse({"prompted_dice": 0.5, "right": 0.3}, {"prompted_dice": 0.4, "right": 0.2})
    assert [said.split()[0] for said in both] == ["prompted_dice", "right"]
    assert made_worse({"prompted_dice": 0.5, "right": None}, {"prompted_dice": 0.495, "right": 0.2}) == []
    assert made_worse({}, {"right": 0.2}) == []
