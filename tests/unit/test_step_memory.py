"""Memory that a training step would take on a GPU, counted without one."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.bench.memory import Alive, row_of, step_memory
from tests.support.paths import ROOT


def test_each_memory_counts_once_and_as_long_as_it_is_held() -> None:
    with FakeTensorMode(), Alive() as alive:
        first = torch.empty(10, 10, device="cuda")
        assert alive.bytes == 400
        view = first[2:]
        assert alive.bytes == 400
        second = view + 1
        assert alive.bytes == 400 + 320
        del first
        assert alive.bytes == 400 + 320  # the view holds it
        del view
        assert alive.bytes == 320
        torch.empty(1000)  # on the CPU
        assert alive.bytes == 320
        del second
        assert alive.bytes == 0


def test_what_autograd_keeps_is_counted_and_no_more() -> None:
    with FakeTensorMode(), Alive() as alive:
        weight = torch.empty(4, 4, device="cuda", requires_grad=True)
        product = weight.exp().exp().sum()  # both exponentials are kept for the backward pass, and the sum
        assert alive.bytes == 64 + 2 * 64 + 4
        del product
        assert alive.bytes == 64


@pytest.mark.ci
def test_a_step_holds_less_where_the_trunk_is_recomputed_and_more_with_more_clicks() -> None:
    plain = step_memory("nano", 64, corrections=1)
    lean = step_memory("nano", 64, corrections=1, checkpoint_trunk=True)
    clicked = step_memory("nano", 64, corrections=2)
    assert plain.weights == lean.weights == clicked.weights
    assert plain.optimiser == lean.optimiser < 3 * plain.weights
    assert lean.forward < plain.forward < clicked.forward
    assert not torch.is_autocast_enabled("cuda")


@pytest.mark.ci
def test_the_page_says_what_is_counted() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert f"\n| {' | '.join(row_of('tiny', 512))} |\n" in page
