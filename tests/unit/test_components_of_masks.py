"""From a probability map to lesions, with the numbers in sight."""

import numpy as np

from mois.lesions import components, find_candidates


def test_candidates_touch_by_a_corner_have_their_peaks_and_are_kept_by_them() -> None:
    probability = np.zeros((2, 3, 6), dtype=np.float32)
    probability[0, 0, 0], probability[1, 1, 1] = 0.4, 0.6  # one lesion: 26 neighbours
    probability[0, 2, 3:5] = 0.5, 0.9
    probability[1, 0, 5] = 0.8  # a single voxel
    found = find_candidates(probability, 0.4, min_voxels=2)
    assert found.lesions.dtype == np.int32
    assert found.lesions[[0, 1, 0, 0], [0, 1, 2, 2], [0, 1, 3, 4]].tolist() == [1, 1, 2, 2]
    assert np.count_nonzero(found.lesions) == 4
    assert found.peaks.tolist() == [np.float32(0.6), np.float32(0.9)]
    sure = found.sure(0.75)
    assert sure.peaks.tolist() == [np.float32(0.9)]
    assert np.array_equal(sure.lesions, found.lesions == 2)


def test_nothing_gives_no_candidates() -> None:
    found = find_candidates(np.zeros((1, 2, 2), dtype=np.float32), 0.5)
    assert len(found.peaks) == 0
    assert not components(np.zeros((1, 2, 2), dtype=bool)).any()


def test_voxels_in_a_row_are_lesions_of_their_own() -> None:
    """cc3d 4.1.1 raises an error for this mask as a bool array, and labels background in others."""
    assert components(np.array([[[True, False, True]]])).tolist() == [[[1, 0, 2]]]
