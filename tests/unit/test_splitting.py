"""Touching lesions: two balls with a waist are two lesions, an ellipsoid and a ball with a dent are one."""

import numpy as np
import pytest
import torch

from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.lesions import depth_mm, split_touching
from tests.support.fake_model import FakeBackbone, FakePropagation

SPACING = (4.0, 1.0, 1.0)


def ball(centre_mm, radius_mm, shape=(9, 40, 60)):
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, SPACING, strict=True)), indexing="ij")
    return sum((axis - at) ** 2 for axis, at in zip(grid, centre_mm, strict=True)) <= radius_mm**2


# radius 8, centres 13 apart: the waist has a radius of sqrt(64 - 6.5 ** 2) = 4.7, so that the prominence is 3.3 mm
TWO = ball((16, 20, 20), 8) | ball((16, 20, 33), 8)


@pytest.mark.parametrize(("prominence_mm", "count"), [(1.0, 2), (2.0, 2), (4.5, 1)])
def test_two_balls_are_two_lesions_unless_the_waist_is_too_thick(prominence_mm, count):
    parts = split_touching(TWO.astype(np.int32), SPACING, prominence_mm)
    assert parts.max() == count
    assert np.array_equal(parts > 0, TWO)
    if count == 2:
        assert parts[4, 20, 15] != parts[4, 20, 38]
        assert (parts[:, :, :26] == parts[4, 20, 15]).sum() == TWO[:, :, :26].sum()


def test_one_ball_is_one_lesion_and_others_keep_their_order():
    lesions = ball((16, 20, 10), 7) * 1 + ball((16, 20, 40), 3) * 2
    parts = split_touching(lesions.astype(np.int32), SPACING, 1.0)
    assert np.array_equal(parts, lesions)
    assert parts.dtype == np.int32


def test_a_part_too_small_for_a_lesion_joins_its_neighbour():
    lesions = (ball((16, 20, 20), 8) | ball((16, 20, 31), 4)).astype(np.int32)
    assert split_touching(lesions, SPACING, 0.5).max() == 2
    assert split_touching(lesions, SPACING, 0.5, min_voxels=150).max() == 1


def test_it_is_a_switch_of_the_inference_settings():
    probability = torch.from_numpy(TWO.astype(np.float32))
    voxel_ml = 0.004
    whole = VolumeSegmenter(FakeBackbone(), FakePropagation(), InferenceSettings())
    assert whole.lesions(probability, voxel_ml).max() == 1
    parting = VolumeSegmenter(FakeBackbone(), FakePropagation(), InferenceSettings(split_prominence_mm=1.5))
    assert parting.lesions(probability, voxel_ml, SPACING).max() == 2
    with pytest.raises(ValueError, match="needs the spacing"):
        parting.lesions(probability, voxel_ml)


def test_balls_on_leaning_slices_are_parted_by_millimetres():
    lean = ((4.0, 0.0, 4.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))  # each slice lies 4 mm further along the rows
    places = np.stack(np.meshgrid(*(np.arange(n) for n in (9, 40, 60)), indexing="ij"), -1) @ np.array(lean)
    two = np.any([((places - centre) ** 2).sum(-1) <= 64 for centre in ((16, 20, 33), (16, 20, 46))], axis=0)
    for prominence_mm, count in ((1.0, 2), (2.0, 2), (4.5, 1)):
        assert split_touching(two.astype(np.int32), lean, prominence_mm).max() == count


def test_depth_on_leaning_slices_can_end_on_another_slice():
    mask = np.ones((5, 1, 21), bool)
    straight = depth_mm(mask, np.diag([3.0, 50.0, 1.0]))
    leaning = depth_mm(mask, np.array([[3.0, 0.0, 8.0], [0.0, 50.0, 0.0], [0.0, 0.0, 1.0]]))
    assert straight.shape == leaning.shape == (7, 3, 23)
    assert straight[3, 1, 11] == 9.0  # three slices up
    # one slice up, 11 pixels back: 3 mm up, 8 - 11 = -3 mm along the row
    assert leaning[3, 1, 11] == pytest.approx(18**0.5)
    assert np.array_equal(leaning > 0, straight > 0)
