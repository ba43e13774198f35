"""Every figure here can be counted by hand."""

from math import isnan

import numpy as np
import pytest

from mois.evaluation.figures import mean_of
from mois.evaluation.statistics import bootstrap_interval
from mois.lesions import dilate_in_plane, lesion_volumes_ml
from mois.metrics.overlap import Overlap, any_overlap, dice, lesion_f1, match_lesions


def instances(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.int32)


def test_dice_counts_voxels_once() -> None:
    found = np.array([1, 1, 1, 0, 0], dtype=bool)
    truth = np.array([0, 1, 1, 1, 0], dtype=bool)
    assert dice(found, truth) == pytest.approx(2 * 2 / (3 + 3))
    ignore = np.array([1, 0, 0, 0, 0], dtype=bool)
    assert dice(found, truth, ignore) == pytest.approx(2 * 2 / (2 + 3))


def test_dice_of_an_empty_truth_is_not_measured() -> None:
    empty = np.zeros(3, dtype=bool)
    assert isnan(dice(empty, empty))
    assert isnan(dice(~empty, empty))
    assert dice(empty, ~empty) == 0.0


def test_two_touching_lesions_count_as_two() -> None:
    truth = instances([1, 1, 2, 2])
    found = instances([1, 1, 0, 0])
    assert lesion_f1(found, truth) == pytest.approx(2 / 3)  # 1 hit, 0 false, 1 missed


def test_one_blob_over_three_lesions_matches_one() -> None:
    truth = instances([1, 1, 0, 2, 2, 0, 3, 3])
    found = instances([7, 7, 7, 7, 7, 7, 7, 7])
    matches = match_lesions(found, truth)  # IoU with each is 2 / 8
    assert len(matches.pairs) == 1
    assert len(matches.missed) == 2
    assert matches.false == ()
    assert matches.precision == 1.0
    assert matches.recall == pytest.approx(1 / 3)
    assert matches.f1 == pytest.approx(2 / 4)


def test_one_lesion_in_three_pieces_is_one_hit_and_two_false() -> None:
    truth = instances([4, 4, 4, 4, 4, 4, 4, 4])
    found = instances([1, 1, 0, 2, 2, 2, 0, 3])
    matches = match_lesions(found, truth)
    assert matches.pairs == {4: 2}  # the largest piece, IoU 3 / 8
    assert matches.false == (1, 3)
    assert matches.f1 == pytest.approx(2 / (2 + 2))


def test_a_match_needs_an_iou_of_a_tenth() -> None:
    truth = instances([1] * 10 + [0] * 10)
    barely = instances([1] + [0] * 19)  # IoU 1 / 10
    assert lesion_f1(barely, truth) == 1.0
    less = instances([1] + [0] * 9 + [1] + [0] * 9)  # IoU 1 / 11
    assert lesion_f1(less, truth) == 0.0


def test_the_matching_is_the_best_one_in_all() -> None:
    truth = instances([1, 1, 1, 1, 2, 2])
    found = instances([5, 6, 6, 6, 6, 0])  # 6 overlaps both lesions, 5 only lesion 1
    # IoU: (5, 1) 1/4, (6, 1) 3/5, (6, 2) 1/5. Best sum: 6 -> 1 alone (.60) beats 5 -> 1 and 6 -> 2 (.45).
    assert match_lesions(found, truth).pairs == {1: 6}


def test_empty_scans() -> None:
    empty, two = instances([0, 0, 0]), instances([1, 0, 2])
    assert isnan(lesion_f1(empty, empty))
    assert match_lesions(two, empty).false == (1, 2)
    assert lesion_f1(two, empty) == 0.0
    assert isnan(match_lesions(two, empty).recall)
    assert match_lesions(empty, two).missed == (1, 2)
    assert isnan(match_lesions(empty, two).precision)
    assert lesion_f1(empty, two) == 0.0


def test_ignored_voxels_count_for_neither_and_ignored_lesions_are_not_false() -> None:
    truth = instances([1, 1, 0, 0, 0, 0, 0, 0])
    ignore = np.array([0, 1, 0, 1, 1, 1, 0, 0], dtype=bool)  # a true voxel always counts: index 1 is not ignored
    found = instances([0, 2, 0, 3, 3, 3, 3, 4])
    overlap = Overlap.of(found, truth, ignore)
    assert overlap.found_voxels.tolist() == [1, 1, 1]
    assert overlap.ignored_voxels.tolist() == [0, 3, 0]
    assert overlap.dice() == pytest.approx(2 * 1 / (2 + 3))
    matches = overlap.match()
    assert matches.pairs == {1: 2}
    assert matches.ignored == (3,)  # three of its four voxels
    assert matches.false == (4,)
    assert overlap.lesion_dice()[0, 0] == pytest.approx(2 * 1 / (1 + 2))


def test_large_ids_are_fine() -> None:
    truth, found = instances([2_000_000_000, 0]), instances([1_999_999_999, 0])
    assert match_lesions(found, truth).pairs == {2_000_000_000: 1_999_999_999}


def test_dilation_stays_within_the_slice() -> None:
    mask = np.zeros((3, 5, 7), dtype=bool)
    mask[1, 2, 3] = True
    grown = dilate_in_plane(mask, 1)
    assert grown[1].sum() == 9
    assert grown[1, 1:4, 2:5].all()
    assert not grown[[0, 2]].any()
    assert dilate_in_plane(mask, 0).sum() == 1
    assert dilate_in_plane(mask, 9)[1].all()


def test_volumes_are_millilitres() -> None:
    lesions = instances([9, 9, 0, 4])
    assert lesion_volumes_ml(lesions, voxel_ml=0.5) == {4: 0.5, 9: 1.0}


def test_mean_skips_what_was_not_measured() -> None:
    assert mean_of([0.2, None, 0.4, float("nan")]) == pytest.approx(0.3)
    assert mean_of([None]) is None


def test_bootstrap_interval_holds_the_mean_and_is_seeded() -> None:
    low, high = bootstrap_interval([0.4, 0.5, 0.6], seed=1) or (0.0, 0.0)
    assert 0.4 <= low < 0.5 < high <= 0.6
    assert (low, high) == bootstrap_interval([0.4, 0.5, 0.6], seed=1)
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert bootstrap_interval([0.5]) is None


def test_bootstrap_draws_the_scans_of_a_patient_together() -> None:
    values = [0.0, 0.0, 0.0, 1.0]
    assert bootstrap_interval(values, groups=["a", "a", "a", "a"]) is None
    low, high = bootstrap_interval(values, groups=["a", "a", "a", "b"]) or (0.5, 0.5)
    assert (low, high) == (0.0, 1.0)  # one in four resamples holds only patient a, one in four only b


def test_one_blob_over_everything_is_perfect_by_the_papers_rule_alone() -> None:
    truth, blob = instances([1, 1, 0, 2, 2, 0, 3, 3, 0, 0, 0, 0]), instances([7] * 12)
    theirs, ours = any_overlap(blob, truth), match_lesions(blob, truth)
    assert (theirs.precision, theirs.recall, theirs.f1) == (1.0, 1.0, 1.0)
    assert theirs.pairs == {1: 7, 2: 7, 3: 7}
    assert ours.f1 == pytest.approx(2 / 4)  # IoU 2 / 12 with one of three


def test_any_overlap_counts_what_touches_nothing_as_false() -> None:
    matches = any_overlap(instances([0, 5, 5, 6]), instances([1, 1, 0, 0]))
    assert (matches.pairs, matches.missed, matches.false) == ({1: 5}, (), (6,))
    assert matches.f1 == pytest.approx(2 / 3)
    assert isnan(any_overlap(instances([0]), instances([0])).f1)
    assert any_overlap(instances([0]), instances([3])).f1 == 0.0


def test_panoptic_quality_is_the_iou_of_the_hits_over_hits_and_half_the_rest() -> None:
    truth = instances([1, 1, 1, 1, 0, 2, 2, 0, 0])
    found = instances([1, 1, 1, 0, 0, 5, 5, 0, 6])
    assert Overlap.of(found, truth).panoptic_quality() == pytest.approx((3 / 4 + 1) / (2 + 0.5))
    half = instances([1, 0, 0, 0, 0, 5, 5, 0, 0])  # IoU 1 / 4 is no hit: one false, one missed
    assert Overlap.of(half, truth).panoptic_quality() == pytest.approx(1 / (1 + 0.5 + 0.5))
    assert isnan(Overlap.of(instances([0]), instances([0])).panoptic_quality())


def test_panoptic_quality_of_a_blob_over_touching_lesions_is_nothing() -> None:
    truth, blob = instances([1, 1, 2, 2, 3, 3]), instances([1] * 6)
    assert Overlap.of(blob, truth).panoptic_quality() == 0.0
    assert Overlap.of(blob, truth).dice() == 1.0


def test_volume_error_has_a_sign() -> None:
    overlap = Overlap.of(instances([1, 1, 1, 0]), instances([4, 4, 0, 0]))
    assert overlap.volume_error_ml(0.5) == 0.5
    assert overlap.volume_error_percent() == 50.0
    assert Overlap.of(instances([0, 0]), instances([4, 4])).volume_error_percent() == -100.0
    nothing = Overlap.of(instances([1]), instances([0]))
    assert nothing.volume_error_ml(0.5) == 0.5
    assert isnan(nothing.volume_error_percent())
