"""How the learning rate rises and falls."""

from __future__ import annotations

import pytest

from mois.training.module import Optimisation


def test_the_rate_rises_over_the_warm_up_and_falls_to_a_hundredth() -> None:
    factor = Optimisation(warm_up=0.1).factor
    assert [factor(step, 20) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]  # two steps of warm-up
    assert factor(11, 20) == pytest.approx((1 + 0.01) / 2)  # halfway down
    assert factor(20, 20) == factor(99, 20) == pytest.approx(0.01)


def test_a_training_of_one_step_has_the_whole_rate() -> None:
    assert Optimisation().factor(0, 1) == 1
