"""What a step costs, measured without leaving a trace."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from adapters import Frozen, Full, Lora
from mois.backbones import SAM2
from mois.interfaces import Adapter
from mois.propagation import Similarity
from mois.testing import example_episode, nano_backbone
from mois.training.cost import PartCost, step_cost
from mois.training.module import ExemplarSegmenter


def costs(adapter: Adapter) -> dict[str, PartCost]:
    module = ExemplarSegmenter(nano_backbone(), adapter, Similarity())
    return {cost.part: cost for cost in step_cost(module, example_episode(1, 1, 3, 64))}


def test_each_part_keeps_what_is_trained_and_nothing_else() -> None:
    full, late, frozen = costs(Full()), costs(Lora(parts=["trunk"], stages=[4])), costs(Frozen())
    assert list(full) == ["trunk", "neck", "click", "track", "semantic", "weights", "optimiser"]
    assert all(cost.mib > 0 for cost in full.values())
    assert all((cost.seconds > 0) == (cost.part != "weights") for cost in full.values())
    assert list(frozen) == ["trunk", "neck", "click", "semantic", "weights", "optimiser"]
    assert frozen["trunk"].mib == frozen["neck"].mib == frozen["click"].mib == 0
    assert 0 < late["trunk"].mib < 0.3 * full["trunk"].mib
    assert sum(cost.mib for cost in frozen.values()) < sum(cost.mib for cost in late.values())
    assert sum(cost.mib for cost in late.values()) < sum(cost.mib for cost in full.values())


def test_weights_and_optimiser_are_counted_by_hand() -> None:
    module = ExemplarSegmenter(nano_backbone(), Frozen(), Similarity())
    found = {cost.part: cost.mib * 2**20 for cost in step_cost(module, example_episode(1, 1, 1, 64))}
    trained = sum(p.numel() for p in module.propagation.parameters())
    assert found["weights"] == pytest.approx(4 * (trained + sum(p.numel() for p in module.backbone.parameters())))
    assert found["optimiser"] == pytest.approx(3 * 4 * trained)  # gradient and two moments, float32


@pytest.mark.parametrize("adapter", [Full(), Lora()])
def test_it_leaves_no_trace(adapter: Adapter) -> None:
    module = ExemplarSegmenter(nano_backbone(), adapter, Similarity())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    step_cost(module, example_episode(1, 1, 3, 64))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert not module.backbone.parts()["trunk"]._forward_hooks


def test_recomputed_activations_are_counted_as_the_trunks_time_not_memory() -> None:
    kept, again = (
        ExemplarSegmenter(SAM2("nano", "random", checkpoint_trunk=flag), Full(), Similarity()) for flag in (False, True)
    )
    one, other = (
        {cost.part: cost for cost in step_cost(module, example_episode(1, 1, 3, 64))} for module in (kept, again)
    )
    assert 0 < other["trunk"].mib < 0.5 * one["trunk"].mib
    assert other["trunk"].seconds > 0.5 * one["trunk"].seconds
