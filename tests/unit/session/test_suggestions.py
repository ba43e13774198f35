"""The order of suggestions, computed by hand: odds x size^2 / (0.1 + novelty)."""

import numpy as np
import pytest

from mois.geometry import SliceGrid
from mois.session.advice import _outside_range, suggestions
from mois.session.masks import BoxMask
from mois.session.state import Lesion, State, UnsureLesion
from tests.support.session_fakes import three_lesions


def found(voxels: int, confidence: float, novelty: float = 0.9, **changes: bool) -> Lesion:
    mask = BoxMask((0, 0, 0), np.ones((1, 1, voxels), dtype=bool))
    return Lesion(mask, "found", confidence=confidence, novelty=novelty, **changes)


def advised(lesions: list[Lesion], unsure: list[UnsureLesion] | None = None) -> list[tuple[int | None, float]]:
    state = State(dict(enumerate(lesions, start=1)), unsure=tuple(unsure or ()))
    return [(one.lesion, one.benefit) for one in suggestions(state, GRID, 0.01, 10)]


@pytest.mark.parametrize(
    ("shown", "unit", "words"),
    [
        ([0.64], "", "darker than the exemplar (0.64)"),
        ([0.64, 0.642], "", "darker than every exemplar (0.64)"),
        ([0.64, 0.7], "", "darker than every exemplar (0.64 to 0.70)"),
        ([9.0], "mm2", "smaller than the exemplar (9 mm2)"),
        ([9.0, 12.0], "mm2", "smaller than every exemplar (9 to 12 mm2)"),
    ],
)
def test_a_range_of_one_exemplar_is_one_number(shown: list[float], unit: str, words: str) -> None:
    areas = {1: 0.1, 2: 0.2}
    assert _outside_range({n: found(4, 0.9) for n in areas}, areas, shown, unit) == [
        f"2 of 2 found lesions are much {words}; click lesion 1 or another like it."
    ]


GRID = SliceGrid.of(three_lesions().shape, three_lesions().affine)


def test_large_and_sure_lesions_come_first() -> None:
    # 9 x 1 / 1 = 9; 9 x 0.25 / 1 = 2.25; 1 x 1 / 1 = 1. The benefit of a score s is s / (1 + s).
    order = advised([found(10, 0.5), found(5, 0.9), found(10, 0.9)])
    assert order == [(3, pytest.approx(0.9)), (2, pytest.approx(2.25 / 3.25)), (1, pytest.approx(0.5))]


def test_what_looks_unlike_every_exemplar_comes_later() -> None:
    assert [lesion for lesion, _ in advised([found(10, 0.9, 1.9), found(10, 0.8)])] == [1, 2]  # 4.5 and 4
    assert [lesion for lesion, _ in advised([found(10, 0.9, 1.9), found(10, 0.9)])] == [2, 1]
    far, farther = advised([found(10, 0.9, 2.0), found(10, 0.9, 1e9)])  # two equal exemplars give such a novelty
    assert far[1] == farther[1]


def test_a_candidate_that_was_not_found_comes_after_found_lesions_of_its_size() -> None:
    order = advised([found(10, 0.5, 9.0)], [UnsureLesion((0, 0, 0), 0.7, 10)])
    assert order == [(1, pytest.approx(1 / 3.1)), (None, pytest.approx(0.05 / 2.15))]


def test_judged_and_locked_lesions_are_not_suggested() -> None:
    prompted = Lesion(BoxMask((0, 0, 0), np.ones((1, 1, 4), dtype=bool)), "prompted")
    assert advised([prompted, found(9, 0.9, locked=True)]) == []
