import numpy as np
import pytest
from scipy import ndimage

from datamodules.phantoms.lesion_types import (
    BORDERS,
    CORES,
    HELD_BACK,
    INTENSITIES,
    NAMED_TYPES,
    SHAPES,
    TEXTURES,
    LesionType,
    clearly_different,
    draw_lesion_type,
    draw_lesion_types,
    make_lesion_type,
)
from datamodules.phantoms.painting import paint_lesion, render_lesion, smooth_field

NAMED = list(NAMED_TYPES.values())


# -- lesion types


def test_held_back_looks_are_never_drawn_unless_asked_for() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_lesion_type(rng) for _ in range(3000)]
    assert not {kind.look for kind in drawn} & HELD_BACK
    assert len({kind.look for kind in drawn}) == 4 * 3 * 3 - len(HELD_BACK)  # everything else does occur
    assert {draw_lesion_type(rng, held_back=True).look for _ in range(500)} == HELD_BACK


def test_every_level_occurs_in_training() -> None:
    rng = np.random.default_rng(1)
    drawn = [draw_lesion_type(rng) for _ in range(500)]
    for attribute, levels in (
        ("intensity", INTENSITIES),
        ("core", CORES),
        ("texture", TEXTURES),
        ("shape", SHAPES),
        ("border", BORDERS),
    ):
        assert {getattr(kind, attribute) for kind in drawn} == set(levels)


def test_held_back_looks_spread_over_the_attributes() -> None:
    for axis, levels in enumerate((INTENSITIES, CORES, TEXTURES)):
        assert {look[axis] for look in HELD_BACK} == set(levels)


def test_named_types_may_be_trained_on() -> None:
    assert set(NAMED_TYPES) == {"solid_bright", "ring", "striped", "dark"}
    assert not {kind.look for kind in NAMED} & HELD_BACK


@pytest.mark.parametrize("held_back", [False, True])
def test_types_of_one_body_differ_clearly(held_back: bool) -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        first, second, third = draw_lesion_types(rng, 3, held_back=held_back)
        assert clearly_different(first, second)
        assert clearly_different(first, third)
        assert clearly_different(second, third)


def test_stripes_against_speckles_are_no_clear_difference() -> None:
    rng = np.random.default_rng(3)
    solid, striped, speckled = (
        make_lesion_type(rng, "bright", "solid", texture, "round", "sharp") for texture in TEXTURES
    )
    assert clearly_different(solid, striped)
    assert not clearly_different(striped, speckled)


@pytest.mark.parametrize("count", [0, 7])
def test_types_that_do_not_fit_into_one_body(count: int) -> None:
    with pytest.raises(ValueError, match=f"count={count} lesion types in one body; choose 1 to 6"):
        draw_lesion_types(np.random.default_rng(0), count)


def test_unknown_level() -> None:
    with pytest.raises(ValueError, match="'purple' does not exist; choose one of very_dark, dark, bright, very_bright"):
        make_lesion_type(np.random.default_rng(0), "purple", "solid", "smooth", "round", "sharp")


# -- painting


def test_smooth_field_is_standardised_and_smooth() -> None:
    field = smooth_field(np.random.default_rng(0), (20, 60, 60), (3.0, 3.0, 3.0), 12.0)
    assert abs(float(field.mean())) < 0.1
    assert float(field.std()) == pytest.approx(1.0, abs=0.1)
    assert float(np.diff(field, axis=1).std()) < 0.5  # neighbours are 3 mm apart, bumps 12 mm


def flat(level: float = 0.4) -> np.ndarray:
    return np.full((9, 41, 41), level, np.float32)


def paint_flat(image: np.ndarray, kind: LesionType, volume_ml: float) -> np.ndarray:
    painted = render_lesion(np.random.default_rng(4), image, None, kind, (4, 20, 20), volume_ml, (4.0, 3.0, 3.0))
    assert painted is not None
    mask = np.zeros(image.shape, bool)
    mask[painted.box] = painted.mask
    return mask


def test_volume_is_met_to_the_voxel() -> None:
    mask = paint_flat(flat(), NAMED_TYPES["solid_bright"], 8.1)
    assert mask.sum() == 225  # 8100 mm3 of 36 mm3


@pytest.mark.parametrize("name", NAMED_TYPES)
def test_contrast_has_the_declared_sign_and_size(name: str) -> None:
    image, kind = flat(), NAMED_TYPES[name]
    mask = paint_flat(image, kind, 8.0)
    assert np.sign(image[mask].mean() - 0.4) == np.sign(kind.contrast)
    strongest = np.percentile(image[mask], 95 if kind.contrast > 0 else 5) - 0.4
    assert strongest == pytest.approx(kind.contrast, rel=0.3)


def test_a_ring_is_hollow_and_a_bright_core_is_bright() -> None:
    rng = np.random.default_rng(5)
    for core, centre_is_brighter in (("ring", False), ("bright_core", True)):
        image = flat()
        mask = paint_flat(image, make_lesion_type(rng, "bright", core, "smooth", "round", "sharp"), 8.0)
        wall = mask & ~ndimage.binary_erosion(mask, ndimage.generate_binary_structure(3, 1))
        assert (image[4, 20, 20] > image[wall].mean() + 0.05) == centre_is_brighter
        assert (image[4, 20, 20] < image[wall].mean() - 0.05) != centre_is_brighter


@pytest.mark.parametrize("texture", ["striped", "speckled"])
def test_texture_shows_from_2_ml(texture: str) -> None:
    rng = np.random.default_rng(6)
    spread = {}
    for each in ("smooth", texture):
        image = flat()
        mask = paint_flat(image, make_lesion_type(rng, "very_bright", "solid", each, "round", "sharp"), 2.0)
        spread[each] = image[4][ndimage.binary_erosion(mask[4])].std()
    assert spread[texture] > 0.1 > spread["smooth"]


def test_transplant_scales_with_the_scan() -> None:
    scan = (1000 + 100 * smooth_field(np.random.default_rng(0), (9, 41, 41), (4, 3, 3), 20.0)).astype(np.float32)
    scan[:, :, :5] = 0  # background
    weak, strong = scan.copy(), 7 * scan
    kind = NAMED_TYPES["solid_bright"]
    mask = paint_lesion(weak, (4, 20, 20), kind, 4.0, (4.0, 3.0, 3.0), np.random.default_rng(1))
    same = paint_lesion(strong, (4, 20, 20), kind, 4.0, (4.0, 3.0, 3.0), np.random.default_rng(1))
    assert mask.sum() == 111  # 4000 mm3 of 36 mm3
    assert np.array_equal(mask, same)
    assert np.allclose(strong, 7 * weak, rtol=1e-4)
    low, high = np.percentile(scan[scan > 0], (0.5, 99.5))
    assert weak[mask].mean() - scan[mask].mean() == pytest.approx(kind.contrast * (high - low), rel=0.25)
    assert np.array_equal(weak[:, :, :5], scan[:, :, :5])


def test_transplant_where_it_would_not_fit_or_show_changes_nothing() -> None:
    scan = np.full((5, 30, 30), 100.0, np.float32)
    scan[:, :, :15] = 900.0
    scan[:, :15] = 0
    before = scan.copy()
    for centre, kind in (((2, 2, 2), "ring"), ((2, 23, 23), "dark"), ((2, 23, 6), "solid_bright")):
        mask = paint_lesion(scan, centre, NAMED_TYPES[kind], 0.5, (3.0, 3.0, 3.0), np.random.default_rng(0))
        assert not mask.any()
    assert np.array_equal(scan, before)
