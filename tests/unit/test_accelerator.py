"""What a training step asks of a GPU stays within bounds, counted without one."""

from __future__ import annotations

import pytest

from tests.bench.accelerator import launches


@pytest.mark.ci
def test_a_step_of_16_images_and_4_corrections_launches_at_most_10000_kernels_for_any_number_of_episodes() -> None:
    one, images = launches(1)
    assert images == 16
    assert one <= 10_000
    assert launches(2) == (one, 32)
