"""Episodes of a hand-made stack (`tests.support.episode_stacks`) in which every pixel says where it comes from."""

import numpy as np
import pytest
import torch

from datamodules.episodes import EpisodeDataset, EpisodeMix, EpisodeSettings, collate
from datamodules.foreign import cut_from
from datamodules.loading import EpisodeBatches
from datamodules.subjects import prepare_volume
from datamodules.transforms import Augmentation
from mois.errors import DataError
from mois.records import Episode, Volume
from tests.support.datasets import SHAPE
from tests.support.episode_stacks import ONE_CLASS, PATCH, TWO_CLASSES, episodes, stack

ONLY = {
    "other_class": EpisodeMix(1, 0, 0),
    "transplant": EpisodeMix(0, 1, 0, planted=1),
    "anatomy": EpisodeMix(0, 0, 1),
}


def slice_of(image):
    tissue = image[(image >= 0.495) & (image < 0.6)]
    return round((float(tissue[0]) - 0.5) * 100)


def lesions_in(image):
    return set(torch.round((image[image > 1] % 0.5) * 100).int().tolist())


def test_shapes_and_types():
    batch = collate(episodes(TWO_CLASSES, count=2))
    shapes = {name: tuple(value.shape) for name, value in batch._asdict().items()}
    assert shapes == {
        "support_images": (2, 2, 3, 32, 32),
        "support_masks": (2, 2, 3, 32, 32),
        "support_valid": (2, 2, 3),
        "query_images": (2, 32, 32),
        "query_targets": (2, 2, 32, 32),
        "query_lesions": (2, 32, 32),
        "group_is_lesion": (2, 2),
        "track_images": (2, 3, 32, 32),
        "track_masks": (2, 3, 32, 32),
        "chance": (2, 64),
        "query_cores": (2, 32, 32),
    }
    floats = {"support_images", "query_images", "track_images", "chance"}
    assert {name for name, value in batch._asdict().items() if value.dtype == torch.float32} == floats
    assert all(value.dtype == torch.bool for name, value in batch._asdict().items() if name not in floats)
    assert ((batch.chance >= 0) & (batch.chance < 1)).all()


def same(one: Episode, other: Episode):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_episode_depends_on_seed_epoch_and_index_alone():
    settings = EpisodeSettings(PATCH, 3, 3, EpisodeMix(), Augmentation(1, 1, 1, 1, 1))
    subjects = [stack(TWO_CLASSES), stack(ONE_CLASS)]
    dataset = EpisodeDataset(subjects, settings, seed=5)
    first = dataset[(2, 7)]
    torch.manual_seed(99)
    np.random.seed(99)
    dataset[(0, 0)]
    before = torch.get_rng_state()
    assert same(first, dataset[(2, 7)])
    assert torch.equal(before, torch.get_rng_state())
    assert same(first, EpisodeDataset(subjects, settings, seed=5)[(2, 7)])
    assert not same(first, dataset[(2, 8)])
    assert not same(first, dataset[(3, 7)])
    assert not same(first, EpisodeDataset(subjects, settings, seed=6)[(2, 7)])


@pytest.mark.parametrize("source", ["other_class", "transplant", "anatomy"])
@pytest.mark.parametrize("places", [TWO_CLASSES, ONE_CLASS])
def test_exemplars_come_from_other_slices_and_are_no_lesion_of_the_query(places, source):
    for episode in episodes(places, ONLY[source]):
        query = slice_of(episode.query_images)
        seen = lesions_in(episode.query_images)
        assert episode.support_valid[0].all()
        for image, mask in zip(episode.support_images.flatten(0, 1), episode.support_masks.flatten(0, 1), strict=True):
            if not mask.any():
                continue
            assert slice_of(image) != query
            assert len(image[mask].unique()) == 1 or source != "other_class"  # one lesion, and all of it nothing else
            assert not lesions_in(image[mask]) & seen


def test_different_lesions_come_first_then_other_slices_then_padding():
    for episode in episodes(ONE_CLASS, count=10):
        shown = [
            lesions_in(image[mask]).pop()
            for image, mask in zip(episode.support_images[0], episode.support_masks[0], strict=True)
        ]
        assert len(set(shown)) == 3
    # one lesion on 3 slices, another one far away: whichever the query shows, the other one has slices to give
    long = [(1, 1, s, 8, 8, 5) for s in (1, 2, 3)] + [(2, 1, s, 50, 60, 5) for s in (4, 5)]
    counts = set()
    for episode in episodes(long, ONLY["anatomy"], count=30):
        shown = [
            (lesions_in(i[m]).pop(), slice_of(i))
            for i, m in zip(episode.support_images[0], episode.support_masks[0], strict=True)
            if m.any()
        ]
        assert len(set(shown)) == len(shown) == int(episode.support_valid[0].sum())
        counts.add(len(shown))
    assert counts <= {2, 3}
    assert 2 in counts


def test_the_target_is_all_of_the_class_in_the_query():
    both = 0
    for episode in episodes(TWO_CLASSES, EpisodeMix(1, 0, 0, together=1)):
        first = 1 + int(episode.support_images[0][episode.support_masks[0]].min() > 1.5)
        bright, brightest = (episode.query_images > 1) & (episode.query_images < 1.5), episode.query_images > 1.5
        targets = [bright, brightest] if first == 1 else [brightest, bright]
        assert torch.equal(episode.query_targets, torch.stack(targets))
        assert torch.equal(episode.query_lesions, bright | brightest)
        assert episode.group_is_lesion.all()
        both += bool(bright.any() and brightest.any())
    assert both > 10


def test_every_lesion_of_the_query_has_its_core():
    """Lesions of 5 x 5 pixels have cores of 3 x 3 (more at the edge), planted lesions of 3 x 3 a core of one pixel."""
    planted = 0
    for episode in episodes(TWO_CLASSES, ONLY["other_class"]) + episodes(ONE_CLASS, ONLY["transplant"]):
        everything = episode.query_lesions | episode.query_targets[1]
        assert not (episode.query_cores & ~everything).any()
        own = episode.query_cores & episode.query_lesions
        full = episode.query_lesions.sum() == 25 * len(lesions_in(episode.query_images))
        if full:
            assert own.sum() >= 9 * len(lesions_in(episode.query_images))
        foreign = episode.query_cores & episode.query_targets[1] & ~episode.query_lesions
        assert bool(foreign.any()) == bool((episode.query_targets[1] & ~episode.query_lesions).any())
        planted += bool(foreign.any())
    assert planted > 30


def test_transplants_are_the_target_of_group_1_only():
    planted = 0
    for episode in episodes(ONE_CLASS, ONLY["transplant"]):
        assert (episode.support_images[1][episode.support_masks[1]] == 0.9).all()
        assert torch.equal(episode.query_targets[1], episode.query_images == 0.9)
        assert not (episode.query_targets[1] & episode.query_lesions).any()
        assert torch.equal(episode.query_targets[0], episode.query_images > 1)
        assert episode.group_is_lesion.tolist() == [True, True]
        planted += bool(episode.query_targets[1].any())
    assert planted > 35


def test_lesions_of_another_scan_are_cut_out_and_put_in():
    donor = stack([(1, 2, 3, 20, 20, 6), (2, 2, 5, 30, 30, 4)])
    settings = EpisodeSettings(PATCH, 3, 1, ONLY["transplant"], Augmentation.none())
    dataset = EpisodeDataset([stack(ONE_CLASS), donor], settings, 0, painter=None)
    index = next(i for i in range(2) if dataset.subject_of(0, i) == 0)
    episode = dataset[(0, index)]
    inside = episode.support_images[1][episode.support_masks[1]]
    assert episode.support_valid[1].all()
    assert inside.median() > 1.2  # class 2 is brighter than its tissue by 1
    patch = np.full((1, 32, 32), 0.5, np.float32)
    mask = cut_from(donor, 2)(patch, (0.0, 16.0, 16.0), 36 * 5 / 1000, (5.0, 1.0, 1.0), np.random.default_rng(0))
    assert mask.sum() in (16, 36)
    assert mask[0, 16, 16]


def test_normal_anatomy_is_not_to_be_found():
    for episode in episodes(ONE_CLASS, ONLY["anatomy"]):
        assert episode.support_valid[1].all()
        assert (episode.support_images[1][episode.support_masks[1]] < 0.6).all()  # tissue
        assert not episode.query_targets[1].any()
        assert episode.group_is_lesion.tolist() == [True, False]


def test_a_source_that_a_subject_has_not_falls_back():
    transplanted = episodes(ONE_CLASS, ONLY["other_class"], count=5)
    assert all((e.support_images[1][e.support_masks[1]] == 0.9).all() for e in transplanted)
    normal = episodes(ONE_CLASS, ONLY["other_class"], count=5, paint=None)
    assert all(e.group_is_lesion.tolist() == [True, False] for e in normal)


def test_a_single_lesion_is_exemplar_of_queries_without_it():
    for episode in episodes([(1, 1, 4, 20, 20, 6)], ONLY["anatomy"], count=10):
        assert episode.support_valid[0].tolist() == [True, False, False]
        assert not episode.query_targets[0].any()


def test_a_lesion_that_is_everywhere_leaves_no_exemplar():
    shape = (3, 32, 32)
    for episode in episodes([(1, 1, s, 0, 0, 32) for s in range(3)], count=3, shape=shape):
        assert not episode.support_valid[0].any()
        assert not episode.group_is_lesion[0]


def test_queries_without_lesions_have_their_share():
    free = episodes(TWO_CLASSES, EpisodeMix(lesion_free=1, background=0), count=30)
    assert sum(not episode.query_lesions.any() for episode in free) > 25
    centred = episodes(TWO_CLASSES, EpisodeMix(lesion_free=0, background=0), count=30)
    assert all(episode.query_lesions.any() for episode in centred)


def test_small_lesions_are_drawn_as_often_as_large_ones():
    one_large = [(1, 1, 0, 0, 0, 40)] + [(i, 1, i % 8, 50, 6 * (i - 2), 2) for i in range(2, 12)]
    subject = stack(one_large)
    weight = {int(i): float(subject.sampler.rows[subject.table.lesion == i].sum()) for i in subject.table.lesion}
    assert weight[1] == pytest.approx(1)  # the only one of its size
    assert sum(weight.values()) == pytest.approx(2)  # all small ones together weigh the same
    torch.manual_seed(0)
    drawn = [subject.sampler.draw(np.ones(len(subject.table.lesion), bool)) for _ in range(400)]
    assert 0.4 < np.mean(subject.table.lesion[drawn] == 1) < 0.6


def test_the_clip_follows_one_lesion_and_ends_in_zeros():
    places = [(1, 1, 0, 30, 30, 6), (1, 1, 1, 30, 30, 4)]
    for episode in episodes(places, count=10):
        middle = slice_of(episode.track_images[1])
        areas = episode.track_masks.flatten(1).sum(1).tolist()
        if middle == 0:
            assert not episode.track_images[0].any()
            assert areas == [0, 36, 16]
        else:
            assert areas == [36, 16, 0]
            assert slice_of(episode.track_images[2]) == 2


def test_lesions_at_the_border_are_inside_their_patch():
    corners = [(1 + i, 1, i, 62 * (i % 2), 78 * (i // 2 % 2), 2) for i in range(8)]
    for episode in episodes(corners, count=20):
        assert episode.support_valid[0].all()
        assert (episode.support_masks[0].flatten(1).sum(1) == 4).all()


def test_a_small_scan_is_padded_to_a_tile():
    tiny = [(i + 1, 1, i, 4, 4, 3) for i in range(6)]
    for episode in episodes(tiny, count=5, shape=(6, 12, 20)):
        assert not episode.query_images[12:].any()
        assert not episode.query_images[:, 20:].any()
        assert episode.support_valid[0].all()


def volume(shape, spacing=(2.0, 6.0, 2.0)):
    lesions = torch.zeros(shape, dtype=torch.int32)
    lesions[2:4, 2:4, 2:4] = 1
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return Volume("s", "p", torch.rand(shape) + 1, affine, lesions, {1: 1})


def test_a_patch_that_cannot_fit_even_when_padded_is_refused():
    prepare_volume(volume((10, 6, 12)), pixel_mm=1.0, patch_px=96)  # 4 x 24 mm
    with pytest.raises(
        DataError, match=r"patch_px=128 at pixel_mm=1.0 is 128 mm, more than 4 times subject s \(24 mm\)"
    ):
        prepare_volume(volume((10, 6, 12)), pixel_mm=1.0, patch_px=128)


def test_volumes_are_normalised_resampled_and_measured():
    subject = prepare_volume(volume(SHAPE), pixel_mm=1.0, patch_px=32)
    assert subject.stack_shape == (8, 96, 80)
    assert subject.gap_mm == 6
    assert subject.table.volume_ml.tolist() == pytest.approx([8 * 24 / 1000] * 2)
    assert subject.table.area_px.tolist() == [16, 16]
    assert 0 <= float(subject.cut(subject.window(2, 40, 40, 32)).image.min()) <= 2


def test_blanked_slices_are_never_seen():
    usable = torch.ones(8, dtype=torch.bool)
    usable[2:5] = False
    subject = prepare_volume(volume(SHAPE), pixel_mm=2.0, patch_px=32, usable=usable)
    assert set(subject.body[:, 0].tolist()) <= {0, 1, 5, 6, 7}
    assert not subject.scan["image"].data[..., 2:5].any()
    assert not set(subject.table.slice.tolist()) & {2, 3, 4}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EpisodeSettings(patch_px=100), "patch_px=100 must be a multiple of 32"),
        (lambda: EpisodeSettings(exemplars=0), "exemplars=0"),
        (lambda: EpisodeSettings(clip=2), "clip=2"),
        (lambda: EpisodeMix(planted=1.5), "planted=1.5"),
        (lambda: EpisodeMix(0, 0, 0), "set one above 0"),
        (lambda: EpisodeMix(lesion_free=0.6, background=0.6), "lower them"),
        (lambda: Augmentation(gamma=2), "gamma=2"),
        (lambda: Augmentation(zoom=1), "zoom=1"),
        (lambda: EpisodeBatches(6, 4, world=2), "episodes_per_epoch=6 is less than a batch of 4 on each of 2"),
        (
            lambda: EpisodeBatches(6, 2, world=2, accumulate=2),
            r"less than 2 batches \(.*\) of 2 on each .* to 8 or more",
        ),
        (lambda: EpisodeBatches(6, 0), "batch_size=0"),
        (lambda: EpisodeDataset([], EpisodeSettings(), views=-1), "views=-1"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
