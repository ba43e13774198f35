"""Episodes of a hand-made stack in which every pixel says where it comes from.

Tissue of slice s is 0.5 + s / 100; lesion i of class 1 is 1 + i / 100, of class 2 it is 1.5 + i / 100.
"""

import math

import numpy as np
import pytest
import torch

from datamodules.episodes import EpisodeDataset, EpisodeMix, EpisodeSettings, collate
from datamodules.foreign import cut_from
from datamodules.loading import EpisodeBatches, EpisodeLoader
from datamodules.subjects import prepare_stack, prepare_volume
from datamodules.transforms import Augmentation, augment
from mois.errors import DataError
from mois.records import Episode, Volume
from tests.support.datasets import SHAPE

PATCH = 32
ONLY = {
    "other_class": EpisodeMix(1, 0, 0),
    "transplant": EpisodeMix(0, 1, 0, planted=1),
    "anatomy": EpisodeMix(0, 0, 1),
}


def stack(places, shape=(8, 64, 80), name="s"):
    """places: (lesion, class, slice, row, column, edge)."""
    image = (0.5 + torch.arange(shape[0]) / 100).view(-1, 1, 1).expand(shape).clone()
    lesions = torch.zeros(shape, dtype=torch.int32)
    classes = {}
    for lesion, kind, slice_, row, column, edge in places:
        area = (slice_, slice(row, row + edge), slice(column, column + edge))
        lesions[area], image[area], classes[lesion] = lesion, 0.5 + kind / 2 + lesion / 100, kind
    return prepare_stack(image, lesions, classes, None, (name, name), (1.0, 5.0), PATCH)


# three lesions on every slice, 16 rows apart, of both classes
TWO_CLASSES = [(i + 1, 1 + (i + i // 8) % 2, i % 8, 8 + 16 * (i // 8), 8 + 24 * (i % 8 % 3), 5) for i in range(24)]
ONE_CLASS = [(i, 1, s, r, c, e) for i, _, s, r, c, e in TWO_CLASSES]


def painter(rng):
    """Foreign lesions are squares of 0.9."""

    def paint(image, centre, volume_ml, spacing_mm, rng):
        mask = np.zeros(image.shape, bool)
        row, column = int(centre[1]), int(centre[2])
        mask[:, row : row + 3, column : column + 3] = True
        mask &= image > 0
        image[mask] = 0.9
        return mask

    return paint


def episodes(places, mix=None, count=40, settings=None, shape=(8, 64, 80), paint=painter):
    settings = settings or EpisodeSettings(PATCH, 3, 3, mix or EpisodeMix(), Augmentation.none())
    dataset = EpisodeDataset([stack(places, shape)], settings, 1, paint)
    return [dataset[(0, index)] for index in range(count)]


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


def test_masks_move_with_their_images():
    torch.manual_seed(0)
    masks = torch.zeros(6, 1, 64, 64, dtype=torch.bool)
    masks[:, :, 20:40, 12:30] = True
    images = masks[:, 0].float()
    moved, shifted = augment(
        images, masks, torch.tensor([0, 1, 2, 3, 4, 4]), Augmentation(0, 0, 0, 0, 0, flip=0.5, affine=1)
    )
    assert ((moved > 0.5) != shifted[:, 0]).float().mean() < 0.01
    assert torch.equal(moved[4], moved[5])  # slices of a clip
    assert not torch.equal(moved[0], images[0])
    assert 0.6 < shifted.sum() / masks.sum() < 1.5


def test_what_is_only_mirrored_keeps_every_bit():
    images, masks = torch.rand(3, 32, 32), torch.rand(3, 2, 32, 32) > 0.5
    before = images.clone(), masks.clone()
    moved, shifted = augment(images, masks, torch.tensor([0, 1, 1]), Augmentation(0, 0, 0, 0, 0, flip=1, affine=0))
    assert torch.equal(moved, images.flip(-1, -2))
    assert torch.equal(shifted, masks.flip(-1, -2))
    assert torch.equal(images, before[0])  # what was given is as it was
    assert torch.equal(masks, before[1])


def test_only_patches_that_are_turned_are_sampled_and_then_mirrored(monkeypatch):
    sampled = []
    sample = torch.nn.functional.grid_sample
    monkeypatch.setattr(
        torch.nn.functional,
        "grid_sample",
        lambda *given, **how: sampled.append(given[0].shape[1]) or sample(*given, **how),
    )
    images, masks = torch.rand(40, 32, 32), torch.zeros(40, 3, 32, 32, dtype=torch.bool)
    masks[:, 0, 12:20, 12:20] = True
    torch.manual_seed(0)
    moved, _ = augment(images, masks, torch.arange(40), Augmentation(0, 0, 0, 0, 0, flip=0, affine=0.5))
    turned = (moved != images).flatten(1).any(1)
    assert 10 < turned.sum() < 30
    assert sampled == [1, 1] * int(turned.sum())  # a patch, and of its three masks the one that is not empty


def test_a_turn_is_that_of_the_affine_grid():
    """Sample where torch's own `affine_grid` does, a mirror after the turn."""
    images = torch.rand(1, 1, 32, 32)
    masks = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    masks[..., 8:24, 8:24] = True
    settings = Augmentation(0, 0, 0, 0, 0, flip=1, affine=1, degrees=30, zoom=0.1)
    torch.manual_seed(3)
    torch.rand(5), torch.rand(1, 2), torch.rand(1)  # what is drawn before
    angle, zoom = math.radians(30) * (2 * torch.rand(1).item() - 1), 1 + 0.1 * (2 * torch.rand(1).item() - 1)
    torch.manual_seed(3)
    moved, _ = augment(images[0], masks, torch.zeros(1, dtype=torch.int64), settings)
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    turn = torch.tensor([[[-cos, sin, 0.0], [-sin, -cos, 0.0]]])
    grid = torch.nn.functional.affine_grid(turn, [1, 1, 32, 32], align_corners=False)
    wanted = torch.nn.functional.grid_sample(images, grid, align_corners=False)
    torch.testing.assert_close(moved, wanted[0], atol=1e-4, rtol=0)


def test_a_tiny_mask_is_not_lost():
    masks = torch.zeros(8, 2, 32, 32, dtype=torch.bool)
    masks[:, 0, 1, 1] = True  # in the corner, where a rotation takes it out of the picture
    _, shifted = augment(
        torch.rand(8, 32, 32), masks, torch.arange(8), Augmentation(0, 0, 0, 0, 0, affine=1, degrees=45)
    )
    assert (shifted[:, 0].flatten(1).any(1)).all()


def test_intensities_change_alike_and_the_outside_stays_zero():
    torch.manual_seed(1)
    images = torch.rand(4, 32, 32) + 0.2
    images[:, :8] = 0
    masks = torch.zeros(4, 1, 32, 32, dtype=torch.bool)
    changed, _ = augment(images, masks, torch.arange(4), Augmentation(1, 1, 1, 1, 1, flip=0, affine=0))
    assert not changed[:, :8].any()
    assert not torch.allclose(changed[:, 8:], images[:, 8:], atol=1e-2)
    assert ((changed >= 0) & (changed <= 2)).all()
    unchanged, _ = augment(images, masks, torch.arange(4), Augmentation.none())
    assert torch.equal(unchanged, images)


def test_two_ranks_see_what_one_process_with_twice_the_batch_sees():
    alone = list(EpisodeBatches(17, 4))
    ranks = [list(EpisodeBatches(17, 2, rank, 2)) for rank in (0, 1)]
    assert len(alone) == len(ranks[0]) == len(ranks[1]) == 4
    for step, batch in enumerate(alone):
        assert sorted(ranks[0][step] + ranks[1][step]) == batch
    assert [key for batch in alone for key in batch] == [(0, index) for index in range(16)]


def test_ranks_draw_from_different_subjects_at_every_step():
    subjects = [stack(ONE_CLASS, name=str(number)) for number in range(4)]
    dataset = EpisodeDataset(subjects, EpisodeSettings(PATCH))
    ranks = [{dataset.subject_of(*key) for batch in EpisodeBatches(16, 2, rank, 2) for key in batch} for rank in (0, 1)]
    assert not ranks[0] & ranks[1]
    assert ranks[0] | ranks[1] == {0, 1, 2, 3}
    orders = {tuple(dataset.subject_of(epoch, index) for index in range(4)) for epoch in range(10)}
    assert len(orders) > 3


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_goes_on_in_the_middle_of_an_epoch(num_workers):
    settings = EpisodeSettings(PATCH, 2, 1, EpisodeMix(), Augmentation.none())
    dataset = EpisodeDataset([stack(ONE_CLASS)], settings, 0, painter)

    def loader():
        return EpisodeLoader(dataset, batch_size=2, episodes_per_epoch=6, num_workers=num_workers)

    whole = loader()
    seen = [batch.chance[:, 0].tolist() for _ in range(2) for batch in whole]
    assert len(seen) == 6
    assert len({number for batch in seen for number in batch}) == 12

    broken = loader()
    steps = iter(broken)
    [next(steps) for _ in range(2)]
    resumed = loader()
    resumed.load_state_dict(broken.state_dict())
    assert [batch.chance[:, 0].tolist() for batch in resumed][:1] == seen[2:3]
    assert resumed.state_dict()["consumed"] == 5
    with pytest.raises(ValueError, match="2 episodes a step, this run has 3"):
        EpisodeLoader(dataset, batch_size=3, episodes_per_epoch=6).load_state_dict(broken.state_dict())


def test_an_epoch_is_whole_steps_where_gradients_are_accumulated():
    keys = [key for batch in EpisodeBatches(10, 4) for key in batch]  # 2 steps of 4
    accumulated = list(EpisodeBatches(10, 2, accumulate=2))  # not 5 batches, the last of which would step alone
    assert [len(batch) for batch in accumulated] == [2, 2, 2, 2]
    assert [key for batch in accumulated for key in batch] == keys


def test_with_views_patches_come_again_and_chance_does_not():
    settings = EpisodeSettings(PATCH, 3, 3)
    new, again = (EpisodeDataset([stack(TWO_CLASSES)], settings, 1, painter, views) for views in (0, 2))
    for index in range(3):
        first, second, third = (again[(epoch, index)] for epoch in range(3))
        assert all(map(torch.equal, first, new[(0, index)]))
        assert all(map(torch.equal, first._replace(chance=third.chance), third))
        assert torch.equal(third.chance, new[(2, index)].chance)
        assert not torch.equal(first.chance, third.chance)
        assert not torch.equal(first.query_images, second.query_images)
