"""Ranks do not wait for each other at a step, but for the gradients."""

from __future__ import annotations

import pytest

from tests.bench.ddp import barriers


@pytest.mark.ci
def test_no_step_of_two_ranks_has_a_barrier_also_with_accumulated_batches() -> None:
    outcome = barriers(1)
    assert outcome.figures == {"barriers_per_step": 0}
    assert outcome.details["all_reduces_per_step"] <= 4  # the loss, the wait for data, and the signals of two batches
