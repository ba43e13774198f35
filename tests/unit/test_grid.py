"""Whether two grids are the same, and everything that has to lie on a scan's grid."""

import itertools
import math

import nibabel as nib
import numpy as np
import pytest
import torch

from datamodules.slabs import slab_slices
from datamodules.subjects import prepare_volume
from mois.errors import DataError
from mois.evaluation.scored_systems import read_maps
from mois.geometry import SliceGrid, check_pictures
from mois.grid import Grid, match_grids, put_on
from mois.records import Volume
from mois.scans.image_files import write_volume
from mois.scans.volumes import read_on_grid, read_volume
from mois.session import InteractiveSession
from mois.session.header import check_origin
from mois.session.journal import read_journal
from mois.session.playing import play, requested_actions
from mois.session.prompts.prompt_file import PromptEntry
from tests.support.datasets import SHAPE, SPACING_MM, save_nifti, scan_with_lesions
from tests.support.session_fakes import make_model, three_lesions

AFFINE = np.diag([*SPACING_MM, 1.0])
ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
TILT = math.radians(20)


def stored_otherwise(array, affine, order, signs):
    """The same voxels with their axes in another order and direction, by nibabel."""
    orientation = np.stack([np.argsort(order), np.array(signs)[np.argsort(order)]], axis=1)
    back = nib.orientations.inv_ornt_aff(orientation, array.shape)
    return nib.orientations.apply_orientation(array, orientation), affine @ back


def oblique(shift=0.0):
    turn = np.eye(4)
    turn[:2, :2] = [[math.cos(TILT), -math.sin(TILT)], [math.sin(TILT), math.cos(TILT)]]
    affine = turn @ AFFINE
    affine[:3, 3] = 5, -7 + shift, 9
    return affine


def sheared():
    affine = AFFINE.copy()
    affine[:3, 2] = 0, 2 * math.sin(TILT), 2 * math.cos(TILT)
    return affine


@pytest.mark.parametrize("affine", [AFFINE, oblique(), sheared()], ids=["straight", "oblique", "sheared"])
def test_all_48_ways_to_store_a_grid_are_the_same_grid(affine):
    array = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    wanted = Grid.of(array.shape, affine)
    shapes = set()
    for order, signs in ORIENTATIONS:
        stored, its_affine = stored_otherwise(array, affine, order, signs)
        found = Grid.of(stored.shape, its_affine)
        assert match_grids(found, wanted).same
        assert np.array_equal(put_on(stored, found, wanted, "a"), array)
        assert found.voxel_ml == pytest.approx(wanted.voxel_ml)
        shapes.add(stored.shape)
    assert len(shapes) == 6


@pytest.mark.parametrize(
    ("shift_mm", "edge_mm", "same"),
    [
        (0.009, 1.0, True),
        (0.011, 1.0, False),
        (0.009e-3, 1e-3, True),  # a scan of micrometres: 2 % of a voxel
        (0.03e-3, 1e-3, False),
    ],
)
def test_how_far_corners_may_lie_apart(shift_mm, edge_mm, same):
    affine = np.diag([edge_mm, edge_mm, edge_mm, 1.0])
    moved = affine.copy()
    moved[0, 3] = shift_mm
    found = match_grids(Grid.of((4, 5, 6), moved), Grid.of((4, 5, 6), affine))
    assert found.shift_mm == pytest.approx(shift_mm)
    assert found.same is same


def test_how_much_two_grids_differ_is_said():
    array = np.zeros((40, 8, 48))
    wanted = Grid.of(array.shape, AFFINE)
    moved = AFFINE.copy()
    moved[0, 3] = 50
    with pytest.raises(ValueError, match=r"by 50 mm \(0.01 mm allowed\); resample"):
        put_on(array, Grid.of(array.shape, moved), wanted, "a")
    # two slices of 6 mm more
    with pytest.raises(ValueError, match=r"shape \(40, 10, 48\) differs from \(40, 8, 48\) of a.* up to 12 mm apart"):
        put_on(np.zeros((40, 10, 48)), Grid.of((40, 10, 48), AFFINE), wanted, "a")
    with pytest.raises(ValueError, match="its affine differs from that of a by"):
        put_on(array, Grid.of(array.shape, oblique()), wanted, "a")
    turned = np.array([[0, -6.0, 0, 0], [2, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])  # the same shape, the axes swapped
    with pytest.raises(ValueError, match="its affine differs from that of a by"):
        put_on(array, Grid.of(array.shape, turned), wanted, "a")


def test_the_volume_of_a_voxel_is_that_of_its_edges_at_whatever_angle():
    upright, leaning = (
        Volume("s", "p", torch.zeros(SHAPE), torch.from_numpy(affine), torch.zeros(SHAPE, dtype=torch.int32), {})
        for affine in (AFFINE, sheared())
    )
    assert upright.voxel_ml == pytest.approx(0.024)
    assert leaning.voxel_ml == pytest.approx(0.024 * math.cos(TILT))
    assert leaning.grid.spacing_mm == pytest.approx(SPACING_MM)
    assert (leaning.shape, leaning.grid.shape) == (SHAPE, SHAPE)


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((2, 3), np.eye(4), "three axes"),
        ((2, 3, 0), np.eye(4), "three axes"),
        ((2, 3, 4), np.eye(3), r"shape \(4, 4\)"),
        ((2, 3, 4), np.diag([1.0, 0, 1, 1]), "no inverse"),
        ((2, 3, 4), np.diag([1.0, math.nan, 1, 1]), "no inverse"),
    ],
)
def test_what_is_no_grid(shape, affine, message):
    with pytest.raises(ValueError, match=message):
        Grid.of(shape, affine)


def test_voxels_of_a_tenth_of_a_micrometre_have_an_affine():
    assert Grid.of((2, 3, 4), np.diag([1e-4, 1e-4, 1e-4, 1.0])).voxel_ml == pytest.approx(1e-15)


# -- everything that is read onto a scan's grid -----------------------------------------------------------------------


def test_a_label_in_another_voxel_order_is_turned_into_place(tmp_path):
    image, classes, ids = scan_with_lesions()
    path = save_nifti(tmp_path / "i.nii.gz", image)
    plain = read_volume(
        path, save_nifti(tmp_path / "l.nii.gz", classes), subject="s", patient="p", classes={1: "a", 2: "b"}
    )
    for number, (order, signs) in enumerate(ORIENTATIONS[1::9]):
        label = save_nifti(tmp_path / f"l{number}.nii.gz", *stored_otherwise(classes, AFFINE, order, signs))
        numbers = save_nifti(tmp_path / f"n{number}.nii.gz", *stored_otherwise(ids, AFFINE, order, signs))
        kinds = {"subject": "s", "patient": "p", "classes": {1: "a", 2: "b"}}
        assert torch.equal(read_volume(path, label, **kinds).lesions, plain.lesions)
        by_id = read_volume(path, numbers, instances=True, semantic=label, **kinds)
        assert torch.equal(by_id.lesions, torch.from_numpy(ids))


def test_a_prediction_is_put_in_place_or_refused(tmp_path):
    image, classes, _ = scan_with_lesions()
    volume = read_volume(save_nifti(tmp_path / "p0.nii.gz", image), None, subject="p0", patient="p", classes={})
    stored, affine = stored_otherwise(classes, AFFINE, (2, 0, 1), (-1, 1, -1))
    save_nifti(tmp_path / "found" / "p0.nii.gz", stored, affine)
    assert torch.equal(read_maps(tmp_path / "found", volume), torch.from_numpy(classes.astype(np.int32)))
    affine[1, 3] += 12
    save_nifti(tmp_path / "found" / "p0.nii.gz", stored, affine)
    with pytest.raises(DataError, match=r"p0\.nii\.gz: its affine differs from that of scan p0 by 12 mm"):
        read_maps(tmp_path / "found", volume)


def mirrored(scan, mask):
    """The mask stored from left to right where the scan is from right to left, as other programs write it."""
    affine = scan.affine.numpy().copy()
    affine[:3, 3] += (mask.shape[0] - 1) * affine[:3, 0]
    affine[:3, 0] *= -1
    return mask[::-1], affine


@pytest.mark.parametrize("given", ["file", "array with its affine", "entry of a file of prompts"])
def test_a_mask_lies_where_its_header_says(tmp_path, given):
    scan = three_lesions()
    mask = np.zeros(scan.shape, np.uint8)
    mask[30:34, 42:48, 3:5] = 1
    stored, affine = mirrored(scan, mask)
    session = InteractiveSession(make_model(), scan)
    path = save_nifti(tmp_path / "m.nii.gz", np.ascontiguousarray(stored), affine)
    if given == "file":
        session.mask(path)
    elif given == "array with its affine":
        session.mask(stored, affine=affine)
    else:
        play(session, requested_actions([PromptEntry("mask", path)], scan), tmp_path)
    assert torch.equal(session.label_map() == 1, torch.from_numpy(mask > 0))


def test_a_mask_on_another_grid_is_refused(tmp_path):
    scan = three_lesions()
    mask = np.zeros(scan.shape, np.uint8)
    mask[30:34, 42:48, 3:5] = 1
    session = InteractiveSession(make_model(), scan)
    off = scan.affine.numpy().copy()
    off[0, 3] += 50
    path = save_nifti(tmp_path / "m.nii.gz", mask, off)
    for refused in (
        lambda: session.mask(path),
        lambda: session.mask(torch.from_numpy(mask), affine=torch.from_numpy(off)),
        lambda: play(session, requested_actions([PromptEntry("mask", path)], scan), tmp_path),
    ):
        with pytest.raises(ValueError, match="by 50 mm"):
            refused()
    with pytest.raises(ValueError, match=r"mask: shape \(48, 64, 5\) differs from \(48, 64, 6\)"):
        session.mask(mask[..., :5])
    assert session.actions == ()


def test_a_mask_at_a_place_in_millimetres_is_at_that_place(tmp_path):
    # voxel (7, 6, 27) of the scan's grid; the file runs from the other side: its voxel 32 is the same place
    mask = np.zeros(SHAPE, np.uint8)
    mask[7, 6, 27] = 1
    flip = np.diag([-2.0, 6, 2, 1])
    flip[0, 3] = 78
    path = save_nifti(tmp_path / "m.nii.gz", mask[::-1], flip)
    read = read_on_grid(path, Grid.of(SHAPE, AFFINE), "the scan")
    voxel = np.argwhere(read)[0]
    assert (AFFINE @ [*voxel, 1])[:3].tolist() == [14, 36, 54]


def test_ids_may_be_as_large_as_int32_holds(tmp_path):
    image, classes, ids = scan_with_lesions()
    ids[ids == 12] = 2**31 - 1
    volume = read_volume(
        save_nifti(tmp_path / "i.nii.gz", image),
        save_nifti(tmp_path / "n.nii.gz", ids),
        subject="s",
        patient="p",
        classes={1: "a", 2: "b"},
        instances=True,
        semantic=save_nifti(tmp_path / "l.nii.gz", classes),
    )
    assert max(volume.classes) == 2**31 - 1
    assert volume.classes[2**31 - 1] == 2


# -- a scan of one slice ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "spacing", "stack"),
    [
        ((64, 64, 1), (2.0, 2.0, 1.0), (1, 64, 64)),
        ((64, 1, 48), (2.0, 1.0, 2.0), (1, 48, 64)),
        ((1, 64, 48), (0.5, 2.0, 2.0), (1, 48, 64)),
        ((1, 1, 48), (1.0, 7.0, 2.0), (1, 48, 1)),  # the coarser one of two
        ((1, 1, 1), (1.0, 1.0, 2.0), (1, 1, 1)),
    ],
)
def test_an_axis_of_one_voxel_is_the_slice_axis(shape, spacing, stack):
    grid = SliceGrid.of(shape, torch.diag(torch.tensor([*spacing, 1.0])))
    assert grid.stack_shape == stack


def test_a_scan_of_one_slice_is_not_cut_into_lines():
    grid = SliceGrid.of((96, 96, 1), torch.diag(torch.tensor([2.0, 2.0, 1.0, 1.0])), "left-right")
    with pytest.raises(ValueError, match=r"slice_axis: .* would be cut into 96 lines of 1 x 96 pixels; set it to auto"):
        check_pictures(grid, 1.0)


@pytest.mark.parametrize(
    ("shape", "spacing", "pixel_mm"),
    [
        ((40, 8, 48), (2000.0, 6000.0, 2000.0), 1.0),  # metres taken for millimetres
        ((400, 8, 400), (2.0, 6.0, 2.0), 0.01),
    ],
)
def test_pictures_that_no_memory_holds_are_refused_before_it_is_taken(shape, spacing, pixel_mm):
    grid = SliceGrid.of(shape, torch.diag(torch.tensor([*spacing, 1.0])))
    with pytest.raises(ValueError, match=r"80000 x 80000 pixels .*; set a larger pixel_mm|96000 x 80000 pixels"):
        check_pictures(grid, pixel_mm)


def one_slice() -> Volume:
    torch.manual_seed(0)
    flat = torch.diag(torch.tensor([2.0, 2.0, 1.0, 1.0], dtype=torch.float64))
    lesions = torch.zeros(64, 64, 1, dtype=torch.int32)
    lesions[20:24, 20:24] = 1
    return Volume("s", "p", 100 + torch.rand(64, 64, 1), flat, lesions, {1: 1}, "s.nii.gz")


def test_a_session_on_one_slice_is_of_one_picture(tmp_path):
    session = InteractiveSession(make_model(), one_slice(), tmp_path / "s")
    session.click((-44.0, -44.0, 0.0))
    session.close()
    again = InteractiveSession.load(tmp_path / "s", make_model(), one_slice())
    assert torch.equal(again.label_map(), session.label_map())
    again.close()
    # before, such a scan was cut across its coarsest axis, and the header said nothing of it
    now = dict(read_journal(tmp_path / "s").header)
    assert now["one_slice"] is True
    old = {key: value for key, value in now.items() if key != "one_slice"} | {"format_version": 1}
    with pytest.raises(ValueError, match="was made when a scan of one slice was cut into lines; begin a new session"):
        check_origin(old, now)


def test_one_slice_cannot_be_trained_and_validated_on():
    with pytest.raises(DataError, match=r"val_slab=0.2: subject s has one slice"):
        slab_slices(one_slice(), 0.2)


def test_one_slice_is_prepared_as_one_picture():
    prepared = prepare_volume(one_slice(), pixel_mm=2.0, patch_px=32)
    assert prepared.stack_shape == (1, 64, 64)
    with pytest.raises(ValueError, match="set it to auto"):
        prepare_volume(one_slice(), pixel_mm=2.0, patch_px=32, slice_axis="left-right")


def test_a_scan_longer_than_nifti_1_can_say_is_written(tmp_path):
    long = np.arange(40000, dtype=np.int32).reshape(40000, 1, 1)
    write_volume(long, torch.from_numpy(AFFINE), tmp_path / "a.nii.gz")
    assert np.array_equal(read_on_grid(tmp_path / "a.nii.gz", Grid.of(long.shape, AFFINE), "a"), long)


def test_what_float32_rounds_is_no_other_grid(tmp_path):
    far = np.diag([2e-4, 2e-4, 2e-4, 1.0])
    far[:3, 3] = 100.00001, -7.3, 55.5  # a fifth of a micrometre a voxel, ten centimetres away
    write_volume(np.ones((4, 5, 6), np.int32), torch.from_numpy(far), tmp_path / "a.nii")
    assert read_on_grid(tmp_path / "a.nii", Grid.of((4, 5, 6), far), "a").all()


def test_two_maps_of_the_same_scan_are_refused(tmp_path):
    image, classes, _ = scan_with_lesions()
    volume = read_volume(save_nifti(tmp_path / "p0.nii.gz", image), None, subject="p0", patient="p", classes={})
    for ending in ("nii", "nii.gz"):
        save_nifti(tmp_path / "found" / f"p0.{ending}", classes)
    with pytest.raises(DataError, match=r"holds p0.nii.gz and p0.nii, several maps of one class; keep one"):
        read_maps(tmp_path / "found", volume)
