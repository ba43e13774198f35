"""What tracking asks of a GPU stays within bounds, in windows as on whole tiles, counted without a GPU."""

from __future__ import annotations

from typing import Literal

import pytest

from tests.bench.accelerator import followed

STEPS, LESIONS, TRACKED = 2, 2, 8  # 5 slices, clicked on the middle one: 2 lesions on 4 further slices


@pytest.mark.ci
@pytest.mark.parametrize(
    ("window", "grows", "most", "waits"), [("off", False, 350, 1), ("auto", False, 350, 2), ("auto", True, 500, 2.5)]
)
def test_a_step_of_all_lesions_launches_a_bounded_number_of_operations(
    window: Literal["off", "auto"], grows: bool, most: int, waits: float
) -> None:
    counted = followed(window, grows=grows, lesions=LESIONS, slices=5, patch_px=192)
    assert counted.launches * TRACKED / STEPS <= most
    assert counted.waits <= waits + 2 / STEPS  # and two in all: the boxes of the clicks, and the masks
    more = followed(window, grows=grows, lesions=2 * LESIONS, slices=5, patch_px=192)
    assert more.launches * 2 == pytest.approx(counted.launches)
    assert more.waits == counted.waits


@pytest.mark.ci
def test_bfloat16_doubles_the_operations_at_most() -> None:
    plain, half = (followed("auto", precision=each, lesions=2, slices=5, patch_px=192) for each in ("32", "bf16"))
    assert 1.5 * plain.launches < half.launches < 2.1 * plain.launches  # torch casts frozen weights at each call
    assert half.waits == plain.waits
