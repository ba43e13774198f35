"""Pictures of anything: what is in them, what is annotated, and that no held-back look is."""

import cc3d
import numpy as np
import pytest
import torch

from datamodules.phantoms import lesion_types
from datamodules.phantoms.lesion_types import CORES, HELD_BACK, INTENSITIES, TEXTURES, draw_lesion_type
from datamodules.pictures.annotation import LEAST_PX, Drawn, annotate, finished, largest_parts
from datamodules.pictures.degradations import NOISES, Acquisition, acquire, resize
from datamodules.pictures.grids import Grid
from datamodules.pictures.label_maps import KINDS, borders, draw_label_map
from datamodules.pictures.looks import Look, called, draw_look, draw_looks, is_refused, tellable
from datamodules.pictures.objects import SHAPES, Build, Canvas
from datamodules.pictures.packing import Crowding, pack
from datamodules.pictures.plans import appearances, draw_plan
from datamodules.pictures.scene import BODY, Scene, draw_scene
from mois.intensities import normalise

SMALL = (5, 112, 112)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(np.random.default_rng([5, number]), SMALL) for number in range(40)]


def look(**changes) -> Look:
    given = {
        "build": Build("round", 12.0, 1.0, 0.0), "spread": 0.1, "contrast": 0.3, "variation": 0.0, "core": "solid",
        "core_contrast": 0.3, "wall": 0.3, "texture": "smooth", "texture_depth": 0.0, "grain_px": 3.0, "border_px": 1.0,
    }  # fmt: skip
    return Look(**given | changes)


# -- whole pictures


def test_same_generator_same_picture() -> None:
    one, same, other = (draw_scene(np.random.default_rng(seed), SMALL) for seed in (3, 3, 4))
    assert np.array_equal(one.image, same.image)
    assert np.array_equal(one.instances, same.instances)
    assert one.classes == same.classes
    assert not np.array_equal(one.image, other.image)


def test_every_lesion_has_a_class_and_every_class_two_lesions(scenes) -> None:
    for scene in scenes:
        assert scene.image.shape == scene.instances.shape == SMALL
        assert scene.image.dtype == np.float32
        assert np.isfinite(scene.image).all()
        assert scene.image.min() >= 0
        assert scene.instances.dtype == np.int32
        assert set(np.unique(scene.instances)) - {0} == set(scene.classes)
        kinds = list(scene.classes.values())
        assert sorted(set(kinds)) == list(range(1, len(scene.looks) + 1))
        assert all(kinds.count(kind) >= 2 for kind in set(kinds))
        assert scene.spacing_mm[1:] == (1.5, 1.5)


def test_pictures_have_one_to_six_types_and_all_sizes() -> None:
    drawn = [draw_scene(np.random.default_rng([6, number]), (3, 224, 224)) for number in range(30)]
    assert {len(scene.looks) for scene in drawn} >= {1, 2, 3, 4}
    assert max(len(scene.looks) for scene in drawn) <= 6
    diameters = []
    for scene in drawn:
        areas = np.stack([np.bincount(plane.ravel(), minlength=1 + max(scene.classes)) for plane in scene.instances])
        largest = areas.max(0)[list(scene.classes)]
        assert largest.min() >= LEAST_PX
        diameters += list(2 * np.sqrt(largest / np.pi))
    assert min(diameters) < 5
    assert 60 < max(diameters) < 140


def test_every_instance_is_one_piece(scenes) -> None:
    for scene in scenes:
        parts = cc3d.connected_components(scene.instances, connectivity=26)
        assert parts.max() == len(scene.classes)


def test_touching_instances_stay_apart(scenes) -> None:
    touching = 0
    for scene in scenes:
        left, right = scene.instances[:, :, :-1], scene.instances[:, :, 1:]
        touching += len(np.unique(left[(left != right) & (left > 0) & (right > 0)]))
    assert touching > 100


# -- held-back looks


def test_held_back_looks_are_never_drawn() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_look(rng, int(rng.choice([-1, 1])), float(rng.uniform(2, 40))) for _ in range(2000)]
    for _ in range(400):
        drawn += draw_looks(rng, 6, (1, -1), float(rng.uniform(4, 30)), lambda _: True)
    assert len(drawn) > 3000
    seen: set[str] = set()
    for each in drawn:
        intensities, cores, textures = called(each)
        assert intensities, cores
        assert not {(i, c, t) for i in intensities for c in cores for t in textures} & HELD_BACK
        seen |= intensities | cores | textures
    assert seen == {*INTENSITIES, *CORES, *TEXTURES}  # every level occurs, in other company


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"contrast": 0.2, "core_contrast": 0.2}, ({"bright"}, {"solid"}, {"smooth"})),
        ({"contrast": 0.9, "core_contrast": 0.9}, ({"bright", "very_bright"}, {"solid"}, {"smooth"})),
        ({"contrast": 1.3, "core_contrast": 0.0, "core": "ring"}, ({"very_bright"}, {"ring"}, {"smooth"})),
        ({"contrast": -0.2, "core_contrast": -0.2}, ({"dark", "very_dark"}, {"solid"}, {"smooth"})),
        (
            {"contrast": -0.2, "core_contrast": 0.3, "core": "core"},
            ({"dark", "very_dark"}, {"bright_core"}, {"smooth"}),
        ),
        (
            {"contrast": -0.2, "core_contrast": -0.5, "core": "core"},  # dark, and darker inside
            ({"dark", "very_dark"}, {"bright_core", "solid"}, {"smooth"}),
        ),
        (
            {"contrast": 0.2, "core_contrast": -0.4, "core": "core"},  # bright around a dark inside
            ({"bright"}, {"bright_core", "ring"}, {"smooth"}),
        ),
        (
            {"contrast": 0.2, "core_contrast": 0.15, "core": "rim", "texture": "mottled", "texture_depth": 0.9},
            ({"bright"}, {"ring", "solid"}, {"speckled"}),
        ),
        (
            {"contrast": 0.2, "texture": "striped", "texture_depth": 0.4, "build": Build("round", 7.0, 1.0, 0.0)},
            ({"bright"}, {"solid"}, {"striped", "speckled", "smooth"}),
        ),
    ],
)
def test_what_a_look_could_be_called(changes, expected) -> None:
    assert called(look(**changes)) == expected


def test_normalisation_decides_as_well() -> None:
    ring = look(contrast=0.4, core_contrast=0.0, core="ring", texture="speckled", texture_depth=0.9)
    assert not is_refused(ring, (1, 1))  # a bright ring with speckles
    assert is_refused(ring, (2, 2))  # a very bright one


def test_a_look_that_covers_other_ground_is_asked_about_there() -> None:
    seen = 0
    for seed in range(300):
        plan = draw_plan(np.random.default_rng(seed), Grid((3, 40, 40), (3.0, 3.0, 3.0)), 9.0, seed % 3 == 0)
        if plan is not None:
            drawn = appearances(plan)
            assert len(drawn) == len(plan.looks) * (1 if plan.confined else len(np.unique(plan.levels)))
            assert not any(is_refused(each) for each in drawn)
            seen += len(drawn) > len(plan.looks)
    assert seen > 20


def test_all_generators_ask_the_same_question(monkeypatch) -> None:
    rings = {(i, "ring", t) for i in INTENSITIES for t in TEXTURES}
    monkeypatch.setattr(lesion_types, "HELD_BACK", frozenset(rings))
    rng = np.random.default_rng(0)
    assert "ring" not in {draw_lesion_type(rng).core for _ in range(200)}
    assert not {"ring", "rim"} & {draw_look(rng, 1, 12.0).core for _ in range(200)}
    for number in range(10):
        scene = draw_scene(np.random.default_rng([7, number]), SMALL)
        assert not {"ring", "rim"} & {each.core for each in scene.looks}


# -- looks of one picture


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"contrast": 0.6, "core_contrast": 0.6}, True),
        ({"contrast": 0.4, "core_contrast": 0.4}, False),
        ({"contrast": -0.3, "core_contrast": -0.3}, True),
        ({"core": "ring", "core_contrast": 0.0}, True),
        ({"texture": "striped", "texture_depth": 0.9}, True),
        ({"texture": "striped", "texture_depth": 0.3}, False),
        ({"build": Build("round", 30.0, 1.0, 0.0)}, True),
        ({"build": Build("lobulated", 12.0, 1.0, 0.0)}, False),
        ({"build": Build("tube", 12.0, 1.0, 0.0)}, True),
        ({"border_px": 12.0}, True),
    ],
)
def test_types_are_told_apart_by_one_strong_difference(changes, expected) -> None:
    assert tellable(look(), look(**changes)) == expected


def test_small_types_are_not_told_apart_by_texture() -> None:
    small = Build("round", 4.0, 1.0, 0.0)
    assert not tellable(look(build=small), look(build=small, texture="speckled", texture_depth=1.0))


def test_types_of_a_picture_can_be_told_apart(scenes) -> None:
    for scene in scenes:
        pairs = [(a, b) for at, a in enumerate(scene.looks) for b in scene.looks[:at]]
        assert all(tellable(a, b) for a, b in pairs)


# -- ground


@pytest.mark.parametrize("kind", KINDS)
def test_label_maps(kind) -> None:
    grid = Grid((4, 60, 50), (3.0, 2.0, 2.0))
    drawn = KINDS[kind](np.random.default_rng(0), grid, 25.0)
    assert drawn.labels.shape == grid.shape
    assert drawn.labels.max() < drawn.size
    assert len(np.unique(drawn.labels)) > 1
    assert (drawn.outline is not None) == (kind == "organ")
    assert any(draw_label_map(np.random.default_rng(seed), grid).size > 6 for seed in range(30))  # one within another


def test_borders_of_two_halves() -> None:
    labels = np.zeros((1, 6, 8), np.uint8)
    labels[:, :, 4:] = 1
    assert np.flatnonzero(borders(labels, 2)[0, 0]).tolist() == [2, 3, 4, 5]


# -- objects


def canvas(*centres: tuple[float, float, float], radius: float = 12.0) -> Canvas:
    rng = np.random.default_rng(0)
    drawn = Canvas(rng, Grid((1, 40, 60), (1.0, 1.0, 1.0)), 5.0)
    for number, centre in enumerate(centres, 1):
        drawn.put(rng, number, Build("round", radius, 1.0, 0.0), centre, radius, 2.0)
    return drawn


def test_touching_balls_part_midway() -> None:
    drawn = canvas((0.5, 20.5, 20.5), (0.5, 20.5, 40.5))
    row = np.where(drawn.depth() > 0, drawn.owner, 0)[0, 20]
    assert np.flatnonzero(row == 1).tolist() == list(range(9, 30))
    assert np.flatnonzero(row == 2).tolist() == list(range(31, 52))


def test_a_gap_between_touching_balls() -> None:
    drawn = canvas((0.5, 20.5, 20.5), (0.5, 20.5, 40.5))
    row = drawn.depth(gap_px=3.0)[0, 20] > 0
    assert np.flatnonzero(~row[9:51]).tolist() == [20, 21, 22]  # columns 29 to 31


def test_objects_stay_where_they_are_allowed() -> None:
    rng = np.random.default_rng(0)
    drawn = canvas()
    allowed = np.zeros(drawn.owner.shape, bool)
    allowed[:, :, :30] = True
    drawn.put(rng, 1, Build("round", 12.0, 1.0, 0.0), (0.5, 20.5, 26.5), 12.0, 2.0, allowed)
    assert not ((drawn.depth() > 0) & ~allowed).any()
    assert ((drawn.depth() > 0) & allowed).sum() > 200


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_about_as_large_as_asked(shape) -> None:
    rng = np.random.default_rng(2)
    drawn = Canvas(rng, Grid((9, 80, 80), (5.0, 1.0, 1.0)), 8.0)
    drawn.put(rng, 1, Build(shape, 15.0, 1.0, 0.0), (22.5, 40.0, 40.0), 15.0, 2.0)
    rows, columns = np.nonzero((drawn.depth() > 0).any(0))
    assert 10 <= max(np.ptp(rows), np.ptp(columns)) <= 70


def test_packed_objects_keep_their_distance() -> None:
    grid = Grid((3, 80, 80), (4.0, 1.0, 1.0))
    builds = [Build("round", 8.0, 1.0, 0.0), Build("round", 4.0, 1.0, 0.0)]
    places = pack(np.random.default_rng(0), grid, builds, [0.1, 0.1], Crowding([20, 20], 0.8, 0.3), [None, None])
    assert {place.kind for place in places} == {0, 1}
    for at, one in enumerate(places):
        for other in places[:at]:
            apart = np.linalg.norm(np.subtract(one.centre_px, other.centre_px))
            assert apart >= 0.8 * (one.radius_px + other.radius_px) - 1e-6


# -- annotation


def test_what_hardly_shows_and_what_is_alone_is_not_annotated() -> None:
    owner = np.zeros((1, 40, 80), np.int32)
    depth = np.full(owner.shape, -5, np.float32)
    rows, columns = np.mgrid[:40, :80]
    for number, centre in enumerate((10, 30, 50, 70), 1):
        far = np.hypot(rows - 20, columns - centre)
        near = far < 10
        owner[0, near], depth[0, near] = number, (6 - far)[near]
    noise = 0.01 * np.random.default_rng(0).standard_normal(owner.shape).astype(np.float32)
    contrast = np.array([0, 0.5, 0.5, 0.02, 0.5], np.float32)
    image = 0.3 + noise + np.where(depth > 0, contrast[owner], 0)
    instances, classes = annotate(Drawn(owner, depth, owner > 0), np.array([0, 1, 1, 1, 2]), image.astype(np.float32))
    assert classes == {1: 1, 2: 1}  # 3 is faint, 4 the only one of its class
    assert set(np.unique(instances)) == {0, 1, 2}


def test_largest_parts() -> None:
    instances = np.array([[[1, 1, 0, 1, 2, 2, 0, 2]]], np.int32)
    assert largest_parts(instances).tolist() == [[[1, 1, 0, 0, 2, 2, 0, 0]]]


def test_finished_objects_have_smooth_outlines() -> None:
    drawn = canvas((0.5, 20.0, 30.0))
    fine = finished(drawn.owner, drawn.depth(), drawn.owner > 0, (1, 80, 120))
    rows, columns = np.mgrid[:80, :120]
    ball = np.hypot((rows + 0.5) / 2 - 20, (columns + 0.5) / 2 - 30) < 12
    assert ((fine.depth[0] > 0) != ball).mean() < 0.005


# -- degradations


@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_as_strong_as_said(noise) -> None:
    grid = Grid((2, 64, 64), (4.0, 1.0, 1.0))
    how = Acquisition(bias=0.0, blur_px=0.0, haze=0.0, mixed=0.0, noise=noise, sigma=0.1, smooth=False)
    image = acquire(np.random.default_rng(0), grid, np.ones(grid.shape, np.float32), how)
    expected = {"none": 0.0, "speckle": 0.153}.get(noise, 0.1)
    assert image.std() == pytest.approx(expected, abs=0.01)
    assert image.mean() == pytest.approx(1, abs=0.02)


def test_light_blur_and_slices() -> None:
    grid = Grid((3, 64, 64), (4.0, 1.0, 1.0))
    signal = np.zeros(grid.shape, np.float32)
    signal[1, 32, 32] = 1
    how = Acquisition(bias=0.2, blur_px=1.5, haze=0.2, mixed=0.2, noise="none", sigma=0.0, smooth=False)
    image = acquire(np.random.default_rng(0), grid, signal, how)
    assert 0 < image[1, 32, 32] < 0.3
    assert image[0, 32, 32] > 0
    assert image[1, 33, 33] > 0


def test_resize() -> None:
    ramp = np.arange(4, dtype=np.float32)[None, None] * np.ones((1, 2, 1), np.float32)
    assert resize(ramp, 2, 8)[0, 0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    assert resize(ramp, 2, 4) is ramp


def test_pictures_are_normalised_as_scans_are(scenes) -> None:
    for scene in scenes[:10]:
        image = torch.from_numpy(scene.image)
        assert torch.equal(normalise(image, BODY, known=scene.levels), normalise(image, BODY))
