"""What a training step asks of a GPU stays within bounds, counted without one."""

from __future__ import annotations

import pytest

from tests.bench.accelerator import launches


@pytest.mark.ci
def test_a_step_of_16_images_and_4_corrections_launches_at_most_10000_kernels_for_any_number_of_episodes() -> None:
    one, images = launches(1)
    assert images == 16
    assert one <= 10_000
    two, images = launches(2)
    assert images == 32
    assert two == pytest.approx(one, rel=0.01)  # twice the images in as many launches, but for a handful
