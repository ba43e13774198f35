"""How the learning rate rises and falls."""

from __future__ import annotations

import math

import pytest
import torch

from adapters import Frozen
from mois.propagation import Similarity
from mois.testing import nano_backbone
from mois.training.module import ExemplarSegmenter
from mois.training.optimisation import Optimisation


def test_the_rate_rises_over_the_warm_up_and_falls_to_a_hundredth() -> None:
    factor = Optimisation(warm_up=0.1).factor
    assert [factor(step, 20) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]  # two steps of warm-up
    assert factor(11, 20) == pytest.approx((1 + 0.01) / 2)  # halfway down
    assert factor(20, 20) == factor(99, 20) == pytest.approx(0.01)


def test_a_training_of_one_step_has_the_whole_rate() -> None:
    assert Optimisation().factor(0, 1) == 1


def test_an_adapter_has_its_own_rate_and_its_own_stop() -> None:
    adapter, others = [torch.zeros(2, 2), torch.zeros(2)], [torch.zeros(3, 3)]
    groups = Optimisation(learning_rate=0.1, adapter_learning_rate=0.01).groups(adapter, others)
    assert [(group["lr"], [p.shape[0] for p in group["params"]]) for group in groups] == [
        (0.01, [2]),
        (0.01, [2]),
        (0.1, [3]),
    ]
    assert [len(group["params"]) for group in Optimisation().groups(adapter, others)] == [2, 1]  # as ever
    learns = Optimisation(adapter_share=0.25).adapter_learns
    assert [learns(step, 8) for step in (0, 1, 2, 7)] == [True, True, False, False]


def test_settings_of_an_adapter_that_trains_nothing_are_named() -> None:
    optimisation = Optimisation(adapter_learning_rate=1e-4, adapter_share=0.5)
    module = ExemplarSegmenter(nano_backbone(), Frozen(), Similarity(), optimisation=optimisation)
    with pytest.warns(
        match=r"adapter_learning_rate=0\.0001, .*adapter_share=0\.5 has no effect: Frozen trains nothing"
    ):
        module.configure_optimizers()
    assert not Optimisation().of_adapter()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter_share": 1.5}, r"adapter_share=1\.5 must be between 0 and 1"),
        ({"adapter_share": math.nan}, "adapter_share=nan must be between 0 and 1"),
        ({"warm_up": 7}, "warm_up=7 must be between 0 and 1"),
        ({"learning_rate": -1.0}, r"model\.optimisation\.learning_rate=-1\.0 must be a number of at least 0"),
        ({"learning_rate": math.inf}, "learning_rate=inf must be a number of at least 0"),
        ({"adapter_learning_rate": -0.1}, r"adapter_learning_rate=-0\.1 must be a number of at least 0"),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1 must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Optimisation(**settings)
