"""Lesions that go through many thin slices: `clicks: near` ends them, and further clicks on them go on."""

from __future__ import annotations

import numpy as np
import pytest

from mois.session import InteractiveSession
from tests.support.fake_model import TYPE_A, box, make_scan
from tests.support.session_fakes import as_stack, lps, make_model

SLICES = 24
REACH = 8
"""Slices of 5 mm within three radii of the lesion, which has an area of 16 x 16 pixels of 1.5 mm: 40.6 mm."""


@pytest.mark.parametrize("window", ["off", "auto"])
def test_near_a_lesion_goes_on_between_two_clicks_and_ends_beyond_them(window: str) -> None:
    scan = make_scan([(TYPE_A, box((0, SLICES), (24, 40), (16, 32)))], shape=(SLICES, 64, 48))
    session = InteractiveSession(make_model(clicks="near", window=window, track_mm=200.0), scan)

    def slices() -> list[int]:
        return np.flatnonzero(as_stack(session.label_map()).any((1, 2))).tolist()

    session.click(lps(scan, 0, 32, 24))
    assert slices() == list(range(1 + REACH))
    session.click(lps(scan, 21, 32, 24), lesion=1)  # further than the two reach
    assert slices() == list(range(SLICES))
    session.undo()
    for place in ((28, 20), (28, 28), (36, 20), (36, 28)):  # clicked away: nobody says that it goes on to slice 19
        session.click(lps(scan, 19, *place), lesion=1, positive=False)
    assert slices() == list(range(1 + REACH))
    session.click(lps(scan, 14, 32, 24), lesion=1)
    assert slices() == list(range(19))
