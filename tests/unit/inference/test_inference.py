"""Whole volumes with a model that can be computed by hand: where things land, and what is computed how often."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from mois.inference.encoded_volume import EncodedVolume, Tracked, paste
from mois.inference.segmenter import VolumeSegmenter, side_by_side
from mois.inference.settings import InferenceSettings
from mois.lesions import components
from mois.propagation import Similarity
from mois.records import Prompts, Volume
from mois.testing import nano_backbone
from tests.support.fake_model import TYPE_A, TYPE_B, FakeBackbone, FakePropagation, box, make_scan

SETTINGS = InferenceSettings(pixel_mm=1.5, tile_px=32, batch_size=5, track_mm=100.0)
A1 = box((1, 4), (16, 24), (16, 24))
A2 = box((3, 5), (40, 52), (28, 36))
B1 = box((2, 3), (36, 44), (8, 16))


@pytest.fixture
def scan() -> Volume:
    return make_scan([(TYPE_A, A1), (TYPE_A, A2), (TYPE_B, B1)])


def make_segmenter(**changes: object) -> VolumeSegmenter:
    return VolumeSegmenter(FakeBackbone(), FakePropagation(), replace(SETTINGS, **changes))  # type: ignore[arg-type]


def mask_of(encoded: EncodedVolume, where: tuple[slice, slice, slice], *, decoded: bool = False) -> torch.Tensor:
    """Return a box (S, H, W) bool; as decoded at a quarter of the resolution, it lacks its four corner pixels.

    The corner pixel's centre is an eighth of a cell inside: (1/2 + 1/8)^2 = 0.39 of its logit is the lesion's.
    """
    mask = torch.zeros(encoded.grid.stack_shape, dtype=torch.bool)
    mask[where] = True
    if decoded:
        slices, rows, columns = where
        for row in (rows.start, rows.stop - 1):
            for column in (columns.start, columns.stop - 1):
                mask[slices, row, column] = False
    return mask


def test_every_tile_is_encoded_once_and_air_never(scan: Volume) -> None:
    segmenter = make_segmenter(overlap=0.0)
    wide = torch.zeros(48 + 32, *scan.image.shape[1:])
    wide[:48] = scan.image
    encoded = segmenter.encode(scan._replace(image=wide, lesions=torch.zeros_like(wide, dtype=torch.int32)))
    # 64 x 80 in tiles of 32: 2 x 3, the last column of tiles is air
    assert encoded.row_of.shape == (6, 6)
    assert (encoded.row_of[:, [2, 5]] == -1).all()
    assert segmenter.backbone.encoded == len(encoded.places) == 6 * 4
    exemplars = segmenter.exemplars(encoded, [(1, mask_of(encoded, A1)[1])])
    segmenter.propagate(encoded, exemplars)
    segmenter.propagate(encoded)
    assert segmenter.backbone.encoded == 6 * 4
    row = segmenter.row(encoded, 0, 2)
    assert row == 6 * 4 == segmenter.row(encoded, 0, 2)
    for _ in range(2):
        encoded.select(np.array([row, 0]))
    assert segmenter.backbone.encoded == 6 * 4 + 1
    assert encoded.places[row].tolist() == [0, 2]


def test_propagation_finds_the_lesions_of_the_exemplars_type_where_they_are(scan: Volume) -> None:
    segmenter = make_segmenter()
    encoded = segmenter.encode(scan)
    exemplars = segmenter.exemplars(encoded, [(1, mask_of(encoded, A1)[1])])
    assert exemplars.valid.tolist() == [[True]]
    assert exemplars.tokens["value"].item() == pytest.approx(0.7)
    found = segmenter.propagate(encoded, exemplars) >= 0.5
    assert torch.equal(found, mask_of(encoded, A1) | mask_of(encoded, A2))
    without = segmenter.propagate(encoded) >= 0.5
    assert torch.equal(without, found | mask_of(encoded, B1))


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flip", [[], [0], [1, 2]])
def test_results_land_on_the_scanners_grid_whatever_the_orientation(
    scan: Volume, axes: tuple[int, int, int], flip: list[int]
) -> None:
    affine = scan.affine[:, [*axes, 3]].clone()
    for axis in flip:
        affine[:3, 3] += affine[:3, axis] * (scan.image.permute(axes).shape[axis] - 1)
        affine[:3, axis] *= -1
    turned = scan._replace(
        image=scan.image.permute(axes).flip(flip), lesions=scan.lesions.permute(axes).flip(flip), affine=affine
    )
    segmenter = make_segmenter()
    encoded = segmenter.encode(turned)
    probability = segmenter.propagate(encoded)
    found = encoded.grid.to_volume(probability) >= 0.5
    assert torch.equal(found, turned.lesions > 0)


def test_resampled_pictures_come_back_to_the_scans_pixels(scan: Volume) -> None:
    segmenter = make_segmenter(pixel_mm=0.75, tile_px=64)
    encoded = segmenter.encode(scan)
    assert encoded.pictures.shape == (6, 128, 96)
    mask = mask_of(encoded, A1)[1].repeat_interleave(2, 0).repeat_interleave(2, 1)
    found = segmenter.propagate(encoded, segmenter.exemplars(encoded, [(1, mask)])) >= 0.5
    truth = mask_of(encoded, A1) | mask_of(encoded, A2)
    # Interpolation changes the outermost half pixel: only border voxels may differ.
    assert not (found & ~truth).any()
    assert torch.equal(found[1, 17:23, 17:23], truth[1, 17:23, 17:23])


def test_several_questions_at_once_are_answered_as_one_by_one(scan: Volume) -> None:
    segmenter = make_segmenter()
    encoded = segmenter.encode(scan)
    of_a = segmenter.exemplars(encoded, [(1, mask_of(encoded, A1)[1]), (3, mask_of(encoded, A2)[3])])
    of_b = segmenter.exemplars(encoded, [(2, mask_of(encoded, B1)[2])])
    none = segmenter.no_exemplars(encoded)
    assert (of_a.count, of_b.count, none.count) == (2, 1, 0)
    assert side_by_side([of_a, of_b, none]).valid.tolist() == [[True, True], [True, False], [False, False]]
    together = segmenter.propagate_all(encoded, [of_a, of_b, none])
    assert torch.equal(together[0], segmenter.propagate(encoded, of_a))
    assert torch.equal(together[1], segmenter.propagate(encoded, of_b))
    assert torch.equal(together[2], segmenter.propagate(encoded))


def test_what_a_tile_shows_is_embedded_once_for_all_lesions_on_it(scan: Volume) -> None:
    propagation = Similarity()
    propagation.build(nano_backbone())
    segmenter = VolumeSegmenter(nano_backbone(), propagation, replace(SETTINGS, batch_size=4))
    encoded = segmenter.encode(scan)
    rows = np.array([3, 1, 3, 3, 1, 3, 3])  # five of one tile are more than a batch
    masks = torch.rand(len(rows), 32, 32, generator=torch.Generator().manual_seed(0))
    masks[2] = 0
    one_by_one = [segmenter.describe(encoded, rows[[n]], masks[n : n + 1]) for n in range(len(rows))]
    embedded: list[int] = []
    propagation.stem.register_forward_pre_hook(lambda _, given: embedded.append(len(given[0])))
    together = segmenter.describe(encoded, rows, masks)
    assert embedded == [2, 1]  # both tiles with four of the masks, then what is left of the second
    assert together.valid.tolist() == [[True, True, False, True, True, True, True]]
    for name, token in together.tokens.items():
        torch.testing.assert_close(token, torch.cat([one.tokens[name] for one in one_by_one], 1))


def test_many_clicks_are_answered_in_batches_as_one_by_one(scan: Volume) -> None:
    backbone = nano_backbone()
    segmenter = VolumeSegmenter(backbone, FakePropagation(), replace(SETTINGS, batch_size=2))
    encoded = segmenter.encode(scan)
    rows, points = np.array([0, 3, 0, 1, 2]), 32 * torch.rand(5, 1, 2, generator=torch.Generator().manual_seed(0))
    prompts = Prompts(points, torch.ones(5, 1, dtype=torch.int32))
    answers = segmenter.answer(encoded, rows, prompts)
    for n in range(len(rows)):
        alone = segmenter.answer(encoded, rows[[n]], Prompts(prompts.points[[n]], prompts.labels[[n]]))
        for part, expected in zip(answers, alone, strict=True):
            torch.testing.assert_close(part[[n]], expected)


def test_half_precision_features_give_the_same_lesions(scan: Volume) -> None:
    segmenter = make_segmenter()
    encoded = segmenter.encode(scan)
    assert encoded.store.dtype == torch.float16
    assert torch.equal(segmenter.propagate(encoded) >= 0.5, encoded.grid.to_stack(scan.lesions) > 0)


def track_from(segmenter: VolumeSegmenter, encoded: EncodedVolume, clicks: list[tuple[int, float, float]]) -> Tracked:
    rows, points = [], []
    for slice_index, y, x in clicks:
        tile = encoded.tiles.best_tile(y, x)
        top, left = encoded.corner(tile)
        rows.append(segmenter.row(encoded, slice_index, tile))
        points.append([[x - left, y - top]])
    prompts = Prompts(torch.tensor(points), torch.ones(len(rows), 1, dtype=torch.int32))
    answer = segmenter.answer(encoded, np.array(rows), prompts)
    return segmenter.track(encoded, np.array(rows), answer)


@pytest.mark.parametrize("batch_size", [2, 32])
def test_tracking_follows_lesions_both_ways_to_their_ends(scan: Volume, batch_size: int) -> None:
    segmenter = make_segmenter(batch_size=batch_size)
    encoded = segmenter.encode(scan)
    tracked = track_from(segmenter, encoded, [(2, 20.0, 20.0), (3, 46.0, 32.0)])
    lesions = segmenter.tracked_lesions(encoded, tracked)
    assert np.array_equal(lesions == 1, mask_of(encoded, A1, decoded=True).numpy())
    assert np.array_equal(lesions == 2, mask_of(encoded, A2, decoded=True).numpy())


def test_tracking_ends_at_its_range_and_at_the_end_of_the_scan() -> None:
    scan = make_scan([(TYPE_A, box((0, 6), (16, 24), (16, 24)))])
    for track_mm, slices in [(4.9, [3]), (5.0, [2, 3, 4]), (10.0, [1, 2, 3, 4, 5]), (100.0, [0, 1, 2, 3, 4, 5])]:
        segmenter = make_segmenter(track_mm=track_mm)
        encoded = segmenter.encode(scan)
        lesions = segmenter.tracked_lesions(encoded, track_from(segmenter, encoded, [(3, 20.0, 20.0)]))
        assert np.flatnonzero(lesions.any((1, 2))).tolist() == slices


def test_tracking_ends_where_a_lesion_explodes() -> None:
    # 2 x 2 cells on slices 1..3, 7 x 6 on slice 4: 42 > 4 x (4 + 4)
    scan = make_scan([(TYPE_A, box((1, 4), (20, 28), (20, 28))), (TYPE_A, box((4, 5), (16, 44), (16, 40)))])
    segmenter = make_segmenter()
    encoded = segmenter.encode(scan)
    lesions = segmenter.tracked_lesions(encoded, track_from(segmenter, encoded, [(2, 24.0, 24.0)]))
    assert np.flatnonzero(lesions.any((1, 2))).tolist() == [1, 2, 3]


@pytest.mark.parametrize(("tile_px", "said"), [(256, False), (288, True)])
def test_tiles_far_wider_than_the_scan_are_said(tile_px: int, said: bool) -> None:
    scan = make_scan([(TYPE_A, box((1, 2), (20, 28), (20, 28)))])  # 64 x 48 pixels of 1.5 mm: 96 mm
    segmenter = make_segmenter(tile_px=tile_px)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        segmenter.encode(scan)
    told = [str(warning.message) for warning in caught if "wide" in str(warning.message)]
    wide = "a tile of 288 pixels of 1.5 mm is 432 mm wide, 4.5 times as wide as scan (96 mm)"
    assert [line.startswith(wide) for line in told] == [True] * said


def test_tracking_remembers_the_clicked_slice_and_the_latest_ones() -> None:
    scan = make_scan([(TYPE_A, box((0, 5), (16, 24), (16, 24)))])
    segmenter = make_segmenter(track_memory=2)
    encoded = segmenter.encode(scan)
    track_from(segmenter, encoded, [(0, 20.0, 20.0)])
    clicked_and_latest = [
        [(1, True)],
        [(2, True), (1, False)],
        [(3, True), (1, False), (2, False)],
        [(4, True), (1, False), (2, False)],
        [(5, True), (1, False), (2, False)],  # there is nothing on slice 5
    ]
    assert segmenter.backbone.attended == clicked_and_latest


def test_presence_can_weigh_the_answer(scan: Volume) -> None:
    segmenter = make_segmenter(weigh_by_presence=True)
    certain = torch.tensor(10.0).sigmoid()
    assert segmenter.propagate(segmenter.encode(scan)).max() == pytest.approx(float(certain**2))


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_the_lesion_that_was_clicked_nearer_has_the_voxel(scan: Volume, order: list[int]) -> None:
    segmenter = make_segmenter()
    encoded = segmenter.encode(scan)
    rows = [segmenter.row(encoded, slice_index, 0) for slice_index in range(4)]
    far, near, top = (torch.full((8, 8), -5.0) for _ in range(3))
    far[:4], near[2:6], top[:2] = 5.0, 1.0, 2.0
    # lesion 1 was clicked on slice 0 and is sure; lesion 2 was clicked on slice 3; both are on slice 2
    tracks = [(np.array([rows[0], rows[2]]), torch.stack([far, far])), (np.array([rows[3], rows[2]]), [top, near])]
    parts = [(np.full(2, n), tracks[n][0], torch.stack(list(tracks[n][1]))) for n in order]
    tracked = Tracked(
        np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), torch.cat([p[2] for p in parts])
    )
    for nearer_owns, expected in [(False, [1, 1, 2]), (True, [1, 2, 2])]:
        score, owner = paste(encoded, tracked, nearer_owns)
        assert [int(owner[2, y, 8]) for y in (4, 12, 20)] == expected
        assert float(score[2, 12, 8]) == (1.0 if nearer_owns else 5.0)


def test_evaluations_give_voxels_to_the_nearer_click_only_where_clicks_are_near() -> None:
    owns = {clicks: InferenceSettings(clicks=clicks).nearer_owns for clicks in ("model", "followed", "near")}
    assert owns == {"model": False, "followed": False, "near": True}


def test_the_more_certain_of_two_lesions_has_the_voxel(scan: Volume) -> None:
    segmenter = make_segmenter()
    encoded = segmenter.encode(scan)
    row = segmenter.row(encoded, 0, 0)
    logits = torch.stack([torch.full((8, 8), 1.0), torch.full((8, 8), -1.0)])
    logits[1, :4] = 5.0
    score, owner = paste(encoded, Tracked(np.array([0, 1]), np.array([row, row]), logits))
    assert owner[0, 0, 0] == 2
    assert owner[0, 31, 0] == 1
    assert score[0, 40, 0] == -20.0
    assert owner[1].max() == 0


def test_components_are_26_connected_and_large_enough() -> None:
    mask = np.zeros((3, 5, 5), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True  # touch at corners: one lesion of 3
    mask[0, 4, 4] = True
    assert sorted(np.unique(components(mask))) == [0, 1, 2]
    kept = components(mask, min_voxels=2)
    assert kept.dtype == np.int32
    assert kept[2, 2, 2] == 1
    assert kept[0, 4, 4] == 0
    assert components(np.zeros((2, 2, 2), dtype=bool)).max() == 0


def test_small_lesions_are_dropped_by_voxels_and_by_millilitres() -> None:
    probability = torch.zeros(1, 8, 8)
    probability[0, :2, :2] = 0.9
    probability[0, 5:8, 5:8] = 0.9
    assert make_segmenter(min_lesion_voxels=4).lesions(probability, 0.01).max() == 2
    assert make_segmenter(min_lesion_voxels=5).lesions(probability, 0.01).max() == 1
    assert make_segmenter(min_lesion_ml=0.09).lesions(probability, 0.01).max() == 1
    assert make_segmenter(min_lesion_ml=0.091).lesions(probability, 0.01).max() == 0


def test_a_lesion_is_as_large_as_its_likely_voxels_but_needs_a_sure_one() -> None:
    probability = torch.zeros(1, 3, 9)
    probability[0, 1] = torch.tensor([0.4, 0.8, 0.4, 0.0, 0.6, 0.6, 0.0, 0.2, 0.2])
    segmenter = make_segmenter(threshold=0.35, peak_threshold=0.7, min_lesion_voxels=1)
    found = segmenter.candidates(probability, 0.01)
    assert found.lesions[0, 1].tolist() == [1, 1, 1, 0, 2, 2, 0, 0, 0]
    assert found.peaks.tolist() == pytest.approx([0.8, 0.6])
    assert segmenter.lesions(probability, 0.01)[0, 1].tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_a_scan_of_nothing_but_air_has_no_lesions(scan: Volume) -> None:
    segmenter = make_segmenter()
    encoded = segmenter.encode(scan._replace(image=torch.zeros_like(scan.image)))
    assert segmenter.propagate(encoded).max() < 0.5


def test_a_scan_smaller_than_a_tile_works() -> None:
    where = box((1, 2), (8, 16), (8, 16))
    scan = make_scan([(TYPE_A, where)], shape=(3, 24, 28))
    segmenter = make_segmenter()
    encoded = segmenter.encode(scan)
    assert torch.equal(segmenter.propagate(encoded) >= 0.5, encoded.grid.to_stack(scan.lesions) > 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pixel_mm", 0.0),
        ("tile_px", 100),
        ("overlap", 1.0),
        ("batch_size", 0),
        ("threshold", 0.0),
        ("peak_threshold", 1.0),
        ("track_growth", 1.0),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"inference\.{field}={value}"):
        replace(SETTINGS, **{field: value})  # type: ignore[arg-type]
