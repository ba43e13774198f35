"""What a step costs, measured without leaving a trace."""

from __future__ import annotations

import gc
import random
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adapters import Frozen, Full, Lora, Placement
from mois.backbones import SAM2
from mois.interfaces import Adapter
from mois.propagation import Similarity
from mois.testing import nano_backbone
from mois.training.cost import PartCost, step_cost
from mois.training.feature_cache import CacheSettings
from mois.training.module import ExemplarSegmenter
from tests.support.example_episodes import example_episode


def costs(adapter: Adapter) -> dict[str, PartCost]:
    module = ExemplarSegmenter(nano_backbone(), adapter, Similarity())
    return {cost.part: cost for cost in step_cost(module, example_episode(1, 1, 3, 64))}


def test_each_part_keeps_what_is_trained_and_nothing_else() -> None:
    full, late, frozen = costs(Full()), costs(Lora(placement=Placement(["trunk"], [4]))), costs(Frozen())
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


def test_a_cached_step_is_measured_with_what_it_finds_and_leaves_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows: dict[str, dict[str, PartCost]] = {}
    for name, adapter in (("frozen", Frozen()), ("late", Lora(placement=Placement(["trunk"], [4])))):
        for cache in (CacheSettings(), CacheSettings(tmp_path / "cache")):
            module = ExemplarSegmenter(nano_backbone(), adapter, Similarity(), cache=cache)
            with Operations(monkeypatch):
                costs = step_cost(module, example_episode(1, 1, 3, 64))
            rows[f"{name}{' cached' * (cache.folder is not None)}"] = {cost.part: cost for cost in costs}
            if module.encoder is not None:
                assert (module.encoder.hits, module.encoder.waited_s) == (0, 0)
                assert list(tmp_path.rglob("*")) == [tmp_path / "cache"]
    assert list(rows["frozen cached"]) == ["cache", "click", "semantic", "weights", "optimiser"]
    assert list(rows["late cached"]) == ["cache", *rows["late"]]
    late, cached = rows["late"], rows["late cached"]
    assert 0 < cached["trunk"].seconds < 0.8 * late["trunk"].seconds  # in operations
    assert cached["neck"].seconds == pytest.approx(late["neck"].seconds, rel=0.05)
    assert cached["trunk"].mib == pytest.approx(late["trunk"].mib, rel=0.05)
    assert cached["cache"].mib == 0


class Operations(TorchDispatchMode):
    """A clock that counts operations, and so does not depend on the machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.now = 0.0
        monkeypatch.setattr("mois.training.cost.time", SimpleNamespace(perf_counter=lambda: self.now))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one, and do it."""
        self.now += 1
        return func(*args, **(kwargs or {}))


def test_recomputed_activations_are_counted_as_the_trunks_time_not_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for again in (False, True):
        module = ExemplarSegmenter(SAM2("nano", "random", checkpoint_trunk=again), Full(), Similarity())
        with Operations(monkeypatch):
            found.append({cost.part: cost for cost in step_cost(module, example_episode(1, 1, 3, 64))})
    kept, recomputed = found
    assert 0 < recomputed["trunk"].mib < 0.5 * kept["trunk"].mib
    assert recomputed["trunk"].seconds > 1.1 * kept["trunk"].seconds  # in operations
    assert recomputed["semantic"].seconds == kept["semantic"].seconds


def test_what_only_a_first_step_takes_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ExemplarSegmenter(nano_backbone(), Full(), Similarity())
    with Operations(monkeypatch) as clock:

        def load_kernels(*_: object) -> None:
            handle.remove()
            clock.now += 1e9

        handle = module.backbone.parts()["trunk"].register_forward_hook(load_kernels)
        costs = step_cost(module, example_episode(1, 1, 1, 64))
    assert clock.now > 1e9
    assert 0 < sum(cost.seconds for cost in costs) < 1e6


def test_the_graph_of_the_step_is_gone_afterwards() -> None:
    module = ExemplarSegmenter(nano_backbone(), Lora(), Similarity())
    before = _with_graph()  # of tests before this one
    step_cost(module, example_episode(1, 1, 3, 64))
    assert not [each for each in _with_graph() if all(each is not other for other in before)]


def _with_graph() -> list[torch.Tensor]:
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is torch.Tensor and each.grad_fn is not None]
