"""Touching lesions come apart by their cores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage

from datamodules.cores import lesion_cores
from mois.inference.lesion_maps import LesionMaps
from mois.inference.parting import part_by_cores, waist_of
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.interfaces import CERTAIN, Backbone
from mois.lesions import components
from mois.records import Exemplars, Features, SemanticPrediction
from tests.support.fake_model import TYPE_A, TYPE_B, FakeBackbone, FakePropagation, box, make_scan

THICK = (8.0, 1.0, 1.0)
EVEN = (1.0, 1.0, 1.0)


def disc(row: float, column: float, radius: float, shape: tuple[int, int] = (40, 60)) -> npt.NDArray[np.bool_]:
    rows, columns = np.indices(shape)
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def parted(
    lesions: npt.NDArray[np.int32], spacing_mm: tuple[float, float, float] = THICK, min_voxels: int = 4
) -> npt.NDArray[np.int32]:
    """Return the parts of true lesions (S, H, W), given their true cores."""
    cores = np.stack([lesion_cores(on_slice) for on_slice in lesions]).astype(np.float32)
    return part_by_cores(components(lesions > 0, min_voxels), cores, spacing_mm, min_voxels)


def same(found: npt.NDArray[np.int32], true: npt.NDArray[np.int32]) -> bool:
    """Return whether two maps hold the same lesions, with any ids."""
    pairs = np.unique(np.stack([found.ravel(), true.ravel()]), axis=1).T
    return len(pairs) == len(np.unique(found)) == len(np.unique(true))


def test_cores_by_hand() -> None:
    """A bar of 2 x 12 voxels with two cores: the flood meets in the middle. The bar below has one core."""
    lesions, cores = np.zeros((1, 8, 14), np.int32), np.zeros((1, 8, 14), np.float32)
    lesions[0, 1:3, 1:13], lesions[0, 5:7, 1:13] = 1, 2
    cores[0, 1:3, 2:5] = cores[0, 1:3, 9:12] = cores[0, 5:7, 2:5] = 0.95
    found = part_by_cores(lesions, cores, THICK)
    assert found[0, 1].tolist() == [0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0]
    assert found[0, 6].tolist() == [0, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 0]


def test_cores_that_do_not_count() -> None:
    """One with a pixel of .4, one of 3 pixels, and two that a bridge of .4 joins."""
    lesions, cores = np.zeros((1, 8, 20), np.int32), np.zeros((1, 8, 20), np.float32)
    lesions[0, 1:7, 1:19] = 1
    cores[0, 2:6, 2:7] = 0.95
    assert part_by_cores(lesions, cores, THICK).max() == 1
    cores[0, 2:6, 12:17] = 0.4
    assert part_by_cores(lesions, cores, THICK).max() == 1
    cores[0, 3, 13:16] = 0.95
    assert part_by_cores(lesions, np.where(cores == np.float32(0.4), 0, cores), THICK).max() == 1
    cores[0, 2:6, 12:17] = 0.95
    assert part_by_cores(lesions, cores, THICK).max() == 2
    cores[0, 3, 7:12] = 0.4
    assert part_by_cores(lesions, cores, THICK).max() == 1


def test_touching_discs_come_apart_at_the_neck() -> None:
    true = np.zeros((3, 40, 60), np.int32)
    true[:, disc(20, 18, 10)] = 1
    true[:, disc(20, 37, 9) & (true[0] == 0)] = 2
    assert components(true > 0).max() == 1
    found = parted(true)
    assert found.max() == 2
    wrong = sum(int(((found == number) & (true != number)).sum()) for number in (1, 2))
    assert wrong <= 0.01 * (true > 0).sum()


def test_a_lobed_lesion_with_one_core_stays_whole() -> None:
    lobed = np.stack([disc(20, 18, 9) | disc(20, 36, 9) | disc(32, 27, 7) | disc(10, 30, 5)] * 3).astype(np.int32)
    assert same(parted(lobed), lobed)


def test_arms_of_a_lesion_meet_on_another_slice() -> None:
    """On the first slice a lesion shows two arms, and below one body: nothing says that they are two."""
    lesion = np.zeros((2, 40, 60), np.int32)
    lesion[0, 10:30, 10:14] = lesion[0, 10:30, 40:44] = 1
    lesion[1, 10:30, 10:44] = 1
    assert same(parted(lesion), lesion)


def test_what_a_slice_parts_the_next_slice_does_not_join() -> None:
    """Two lesions touch on two slices; on a third only the first goes on, over a part of the second."""
    true = np.zeros((3, 40, 60), np.int32)
    true[:, disc(20, 18, 10)] = 1
    true[:2, disc(20, 37, 9) & (true[0] == 0)] = 2
    true[2, disc(20, 22, 10) & (true[2] == 0)] = 1
    found = parted(true)
    assert found.max() == 2
    assert len(np.unique(found[2])) == 2


def test_lesions_on_top_of_each_other_come_apart_where_slices_are_dense() -> None:
    """Two balls of 10 mm radius that touch at their sides, the second one higher."""
    depth, rows, columns = np.indices((44, 40, 60))
    true = np.zeros(depth.shape, np.int32)
    true[(depth - 13) ** 2 + (rows - 20) ** 2 + (columns - 20) ** 2 <= 100] = 1
    true[((depth - 28) ** 2 + (rows - 20) ** 2 + (columns - 33) ** 2 <= 100) & (true == 0)] = 2
    assert components(true > 0).max() == 1
    assert parted(true, EVEN).max() == 2


def test_small_parts_join_what_they_touch_most() -> None:
    lesions, cores = np.zeros((1, 8, 24), np.int32), np.zeros((1, 8, 24), np.float32)
    lesions[0, 1:7, 1:18] = 1
    cores[0, 2:6, 2:6], cores[0, 2:6, 12:17] = 0.95, 0.95
    sizes = np.bincount(part_by_cores(lesions, cores, THICK).ravel())[1:]
    assert len(sizes) == 2
    assert part_by_cores(lesions, cores, THICK, min_voxels=int(sizes.min())).max() == 2
    assert part_by_cores(lesions, cores, THICK, min_voxels=int(sizes.min()) + 1).max() == 1


@pytest.mark.parametrize("seed", range(25))
def test_every_voxel_keeps_exactly_one_lesion(seed: int) -> None:
    chance = np.random.default_rng(seed)
    shape = tuple(chance.integers(1, 9, 1)) + tuple(chance.integers(4, 40, 2))
    smooth = float(chance.uniform(0, 3))
    mask, cores = (ndimage.gaussian_filter(chance.standard_normal(shape), (0.5, smooth, smooth)) for _ in range(2))
    lesions = components(mask > 0)
    cores = np.clip(0.5 + cores / (cores.std() + 1e-9), 0, 1).astype(np.float16)
    least = int(chance.integers(1, 20))
    found = part_by_cores(lesions, cores, tuple(chance.uniform(0.5, 4, 3)), least)
    assert found.dtype == np.int32
    assert np.array_equal(found > 0, lesions > 0)
    ids = np.unique(found[found > 0])
    assert ids.tolist() == list(range(1, len(ids) + 1))
    for part in ids:
        own = found == part
        assert len(np.unique(lesions[own])) == 1  # a part of one lesion
        assert ndimage.label(own, np.ones((3, 3, 3)))[1] == 1
        assert own.sum() >= min(least, (lesions == lesions[own][0]).sum())


def test_an_answer_with_cores_is_parted_and_one_without_is_not() -> None:
    true = np.zeros((3, 40, 60), np.int32)
    true[:, disc(20, 18, 10)] = 1
    true[:, disc(20, 37, 9) & (true[0] == 0)] = 2
    probability = torch.from_numpy(0.9 * (true > 0)).float()
    cores = torch.from_numpy(np.stack([lesion_cores(on_slice) for on_slice in true])).half()
    segmenter = VolumeSegmenter(FakeBackbone(), FakePropagation(), InferenceSettings())
    with_cores = LesionMaps(probability, cores)
    assert segmenter.lesions(with_cores, 0.008, THICK).max() == 2
    assert segmenter.lesions(probability, 0.008, THICK).max() == 1
    assert segmenter.lesions(LesionMaps(probability), 0.008).max() == 1
    with pytest.raises(ValueError, match="cores part touching lesions, which needs the spacing in mm"):
        segmenter.lesions(with_cores, 0.008)


def test_a_known_waist_parts_by_shape_whatever_the_cores_say() -> None:
    slices, rows, columns = np.indices((24, 40, 60))
    # two balls of radius 10, 17 apart: their waist has a radius of 5.3, 4.7 less than theirs
    balls = [(slices - 12) ** 2 + (rows - 20) ** 2 + (columns - column) ** 2 <= 100 for column in (18, 35)]
    probability = torch.from_numpy(0.9 * (balls[0] | balls[1])).float()
    one_core = (probability > 0.5).half()
    segmenter = VolumeSegmenter(FakeBackbone(), FakePropagation(), InferenceSettings(split_prominence_mm=None))
    maps = LesionMaps(probability, one_core)
    assert segmenter.lesions(maps, 0.008, EVEN).max() == 1
    assert segmenter.lesions(maps._replace(waist_mm=3), 0.008, EVEN).max() == 2
    assert segmenter.lesions(maps._replace(waist_mm=6), 0.008, EVEN).max() == 1
    assert segmenter.lesions(probability, 0.008).max() == 1  # nothing says where to part: no spacing is needed


def test_only_compact_exemplars_in_dense_slices_give_a_waist() -> None:
    ball, lobed = disc(20, 30, 9.5), np.zeros((40, 60), np.bool_)
    for column in (10, 20, 30, 40, 50):  # five small discs in a row: 5 times the largest disc, and what joins them
        lobed |= disc(20, column, 5.5)
    spot = ball | disc(3, 3, 1)  # a click's mask may have a stray piece
    dense = (0.5, 1.0, 1.0)
    radius = float(ndimage.distance_transform_edt(ball).max())
    assert waist_of(np.stack([ball, spot, lobed]), 0.5, dense) == pytest.approx(radius * 0.5 / 4)
    assert waist_of(np.stack([ball, lobed, lobed]), 0.5, dense) == 0
    assert waist_of(np.stack([ball]), 0.5, THICK) == 0
    assert waist_of(np.zeros((1, 40, 60), np.bool_), 0.5, dense) == 0


class WithCores(FakePropagation):
    """Answers with cores: all pixels above .8."""

    def forward(self, features: Features, exemplars: Exemplars, backbone: Backbone) -> SemanticPrediction:
        answer = super().forward(features, exemplars, backbone)
        times = len(answer.logits) // len(features.image)
        bright = features.image[:, 0].repeat_interleave(times, 0) > 0.8
        return answer._replace(cores=(bright.float() * 2 - 1) * CERTAIN)


def test_cores_are_blended_beside_the_probability() -> None:
    """Two lesions: only the brighter one has a core. Without cores the probability is the same to the bit."""
    scan = make_scan([(TYPE_A, box((1, 3), (8, 20), (8, 20))), (TYPE_B, box((1, 3), (30, 50), (8, 20)))])
    settings = InferenceSettings(tile_px=32)
    with_cores, without = (VolumeSegmenter(FakeBackbone(), kind(), settings) for kind in (WithCores, FakePropagation))
    encoded = with_cores.encode(scan)
    found, plain = with_cores.find(encoded), without.find(encoded)
    assert plain.cores is None
    assert torch.equal(found.probability, plain.probability)
    assert torch.equal(found.probability, with_cores.propagate(encoded))
    assert found.cores is not None
    assert found.cores.dtype == torch.float16
    assert torch.equal(found.cores > 0.5, encoded.pictures > 0.8)
    assert 0 < int((found.cores > 0.5).sum()) < int((found.probability > 0.5).sum())
    both = with_cores.find_all(encoded, [with_cores.no_exemplars(encoded)] * 2)
    assert all(torch.equal(one.cores, found.cores) for one in both if one.cores is not None)
