"""Confidence of found lesions, by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mois.sharing.calibration import Calibration


def test_steps_are_smoothed_so_that_nothing_is_certain() -> None:
    # isotonic steps: {0.4: 0 of 2}, {0.6, 0.7: 1 of 2 (a hit before a miss)}, {0.9: 2 of 2}
    fitted = Calibration.fit([0.4, 0.4, 0.6, 0.7, 0.9, 0.9], [False, False, True, False, True, True])
    assert fitted.peaks == (0.4, 0.6, 0.7, 0.9)
    assert fitted.confidences == pytest.approx((1 / 4, 2 / 4, 2 / 4, 3 / 4))
    assert (fitted.candidates, fitted.hits) == (6, 3)
    # constant outside, linear between the steps
    assert fitted.confidence([0.0, 0.4, 0.5, 0.65, 0.8, 1.0]) == pytest.approx([0.25, 0.25, 0.375, 0.5, 0.625, 0.75])


def test_a_small_sure_step_does_not_fall_below_a_large_good_one() -> None:
    # 8 of 10 becomes 9 / 12 = 0.75 and 1 of 1 becomes 2 / 3: joined by weight, (12 x 0.75 + 3 x 2 / 3) / 15
    peaks = [0.5] * 10 + [0.9]
    fitted = Calibration.fit(peaks, [True] * 8 + [False] * 2 + [True])
    assert fitted.confidences == pytest.approx((11 / 15, 11 / 15))


def test_one_candidate_is_enough_and_none_is_not() -> None:
    assert Calibration.fit([0.5], [True]).confidence([0.1, 0.9]) == pytest.approx([2 / 3, 2 / 3])
    with pytest.raises(ValueError, match="needs at least one candidate"):
        Calibration.fit([], [])
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        Calibration.fit([1.5], [True])
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1,\)"):
        Calibration.fit([0.5, 0.6], [True])


def test_confidence_never_falls_and_recovers_what_made_the_data() -> None:
    rng = np.random.default_rng(0)
    peaks = rng.uniform(0.35, 1, 4000)
    hits = rng.uniform(size=4000) < peaks**2
    fitted = Calibration.fit(peaks.astype(np.float32), hits)
    said = fitted.confidence(np.linspace(0, 1, 200))
    assert (np.diff(said) >= 0).all()
    assert 0 < said[0] < said[-1] < 1
    assert np.abs(fitted.confidence([0.5, 0.7, 0.9]) - np.square([0.5, 0.7, 0.9])).max() < 0.06


def test_a_calibration_is_plain_json() -> None:
    fitted = Calibration.fit([0.4, 0.6, 0.9], [False, False, True])
    assert Calibration.from_dict(json.loads(json.dumps(fitted.as_dict()))) == fitted
    with pytest.raises(ValueError, match="must not fall"):
        Calibration((0.2, 0.4), (0.6, 0.5), 2, 1)
    with pytest.raises(ValueError, match="as many confidences as peaks"):
        Calibration((), (), 0, 0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Calibration((0.2,), (1.0,), 1, 1)


def test_reliability_compares_what_was_said_with_what_is() -> None:
    said = Calibration((0.0, 1.0), (0.01, 0.99), 0, 0)  # confidence = 0.01 + 0.98 x peak
    low, high = said.reliability([0.1, 0.2, 0.9, 1.0], [False, True, True, True], bins=2)
    assert (low.low, low.high, low.count, low.hits) == (0, 0.5, 2, 0.5)
    assert low.confidence == pytest.approx(0.157)
    assert (high.low, high.high, high.count, high.hits) == (0.5, 1, 2, 1)
    assert said.reliability([], []) == ()


@pytest.mark.parametrize(
    ("false_per_scan", "threshold"),
    [
        (2.0, 0.0),  # 4 false ones on 2 scans may all stay
        (1.5, 0.4),  # 3 may: the one of 0.3 goes, half-way to 0.5
        (1.0, 0.55),  # 2 may: 0.5 goes, half-way to 0.6
        (0.5, 0.65),  # 1 may: 0.6 goes, half-way to the hit at 0.7
        (0.49, 0.9),  # none may: 0.8 goes, half-way to 1, for there is nothing surer
    ],
)
def test_the_threshold_keeps_to_a_budget_of_false_lesions(false_per_scan: float, threshold: float) -> None:
    peaks, hits = [0.3, 0.5, 0.6, 0.7, 0.8], [False, False, False, True, False]
    found = Calibration.peak_for_budget(peaks, hits, scans=2, false_per_scan=false_per_scan)
    assert found == pytest.approx(threshold)
    left = sum(peak >= found and not hit for peak, hit in zip(peaks, hits, strict=True))
    assert left / 2 <= false_per_scan


def test_a_budget_counts_scans_without_candidates_and_refuses_none() -> None:
    assert Calibration.peak_for_budget([0.5], [False], scans=10, false_per_scan=0.1) == 0
    assert Calibration.peak_for_budget([1.0], [False], scans=1, false_per_scan=0) == 1
    with pytest.raises(ValueError, match="scans=0 must be 1 or more"):
        Calibration.peak_for_budget([], [], scans=0, false_per_scan=1)
