"""Lesions of two time points: by hand on small maps, and through sessions and files."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from mois.cli import main
from mois.records import Volume
from mois.scans.image_files import write_volume
from mois.scans.registration import moved_mm, register
from mois.session import InteractiveSession, TimePoint, read_time_point, write_comparison
from mois.session.follow_up import Alignment, compare_time_points, comparison_rows, labels_on, picture_on
from tests.bench.time_points import SECOND_SCANS, measure, within
from tests.support.session_fakes import lps, make_model, three_lesions

AFFINE = torch.diag(torch.tensor([-2.0, -2.0, 5.0, 1.0], dtype=torch.float64))  # 0.02 ml a voxel


def point(*boxes, bright=(), affine=AFFINE, patient="p"):
    """Lesions 1, 2, ... in boxes (first, last of I, J, K); those in `bright` look otherwise."""
    labels = torch.zeros(40, 40, 8, dtype=torch.int32)
    image = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) * 10 + 50
    for number, (i, j, k) in enumerate(boxes, start=1):
        labels[slice(*i), slice(*j), slice(*k)] = number
        image[labels == number] = 400.0 if number in bright else 150.0
    image[0] = 300.0
    return TimePoint(Volume("s", patient, image, affine, labels, {}), labels)


A, A_GROWN = ((5, 10), (5, 10), (2, 4)), ((5, 10), (5, 12), (2, 4))
B, FAR = ((20, 24), (20, 24), (3, 5)), ((30, 34), (5, 9), (1, 3))


def short(comparison):
    return [(change.status, change.lesions, change.earlier) for change in comparison.changes]


def test_same_new_and_gone_with_volumes():
    found = compare_time_points(point(A, B), point(FAR, A_GROWN))
    assert short(found) == [("new", (1,), ()), ("same", (2,), (1,)), ("gone", (), (2,))]
    new, same, gone = found.changes
    assert (same.ml_before, same.ml_now) == (pytest.approx(1.0), pytest.approx(1.4))  # 50 and 70 voxels of 0.02 ml
    assert same.change_percent == pytest.approx(40)
    assert new.change_percent is None
    assert gone.change_percent == -100
    assert gone.centre_lps_mm == pytest.approx((2 * 21.5, 2 * 21.5, 5 * 3.5))
    assert (found.ml_before, found.ml_now) == (pytest.approx(1.64), pytest.approx(2.04))  # 82, 102 voxels
    assert [found.count(status) for status in ("same", "new", "gone")] == [1, 1, 1]
    assert not found.registered


def test_lesions_that_became_one_and_one_that_became_two():
    left, right, both = ((5, 10), (5, 10), (2, 4)), ((11, 16), (5, 10), (2, 4)), ((5, 16), (5, 10), (2, 4))
    merged = compare_time_points(point(left, right), point(both))
    assert short(merged) == [("merged", (1,), (1, 2))]
    assert merged.changes[0].ml_before == pytest.approx(2.0)
    split = compare_time_points(point(both), point(left, right))
    assert short(split) == [("split", (1, 2), (1,))]


def test_what_does_not_overlap_is_the_same_only_near_by_and_alike():
    moved = ((10, 15), (5, 10), (2, 4))  # 10 mm further
    assert [change.matched_by for change in compare_time_points(point(A), point(moved)).changes] == ["appearance"]
    assert short(compare_time_points(point(A), point(moved, bright=(1,)))) == [("new", (1,), ()), ("gone", (), (1,))]
    assert short(compare_time_points(point(A), point(FAR))) == [("new", (1,), ()), ("gone", (), (1,))]


def test_no_lesions_and_two_patients():
    assert compare_time_points(point(), point()).changes == ()
    assert compare_time_points(point(), point(A)).change_percent is None
    with pytest.raises(ValueError, match="of two patients, p and q"):
        compare_time_points(point(A), point(A, patient="q"))


def test_a_scan_stored_otherwise_is_not_registered():
    earlier, now = point(A), point(A)
    flipped = AFFINE.clone()
    flipped[:, 0], flipped[:, 3] = -AFFINE[:, 0], AFFINE[:, 3] + 39 * AFFINE[:, 0]
    stored = TimePoint(now.volume._replace(image=now.volume.image.flip(0), affine=flipped), now.labels.flip(0))
    found = compare_time_points(earlier, stored)
    assert not found.registered
    assert [(change.status, change.change_percent) for change in found.changes] == [("same", 0.0)]


AS_PLACED = Alignment(np.eye(4), registered=True, moved_mm=0.0)
"""The scanner's places hold: nothing is searched."""


def stored(grid_mm, first_mm, shape, *boxes_mm, flip=()):
    """The same body on a grid of edges `grid_mm` from `first_mm` on; lesions are boxes in RAS mm."""
    affine = torch.diag(torch.tensor([*grid_mm, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor(first_mm, dtype=torch.float64) + affine.diag()[:3] / 2  # centre of the first voxel
    centres = [
        first + edge * (np.arange(count) + 0.5) for first, edge, count in zip(first_mm, grid_mm, shape, strict=True)
    ]
    labels = torch.zeros(shape, dtype=torch.int32)
    for number, box in enumerate(boxes_mm, start=1):
        inside = [(at >= low) & (at < high) for at, (low, high) in zip(centres, box, strict=True)]
        labels[np.ix_(*inside)] = number
    for axis in flip:
        labels = labels.flip(axis)
        affine[:, 3] += affine[:, axis] * (shape[axis] - 1)
        affine[:, axis] *= -1
    image = torch.where(labels > 0, 150.0, 50.0)
    return TimePoint(Volume("s", "p", image, affine, labels, {}), labels)


CUBE, SPLINTER = ((12, 24), (12, 24), (12, 24)), ((14, 16), (14, 16), (19, 20))  # 1.728 ml and 0.004 ml


@pytest.mark.parametrize("flip", [(), (0,), (1, 2)])
@pytest.mark.parametrize(
    ("grid_mm", "shape"), [((2, 2, 6), (30, 30, 10)), ((1, 1, 12), (60, 60, 5)), ((3, 4, 4), (20, 15, 15))]
)
def test_volumes_are_those_of_the_own_grid_whatever_the_other_scan_is(grid_mm, shape, flip):
    earlier = stored((1, 1, 1), (0, 0, 0), (60, 60, 60), CUBE)
    now = stored(grid_mm, (0, 0, 0), shape, CUBE, flip=flip)
    for first, second in ((earlier, now), (now, earlier)):
        (change,) = compare_time_points(first, second, AS_PLACED).changes
        assert (change.status, change.ml_before, change.ml_now) == ("same", pytest.approx(1.728), pytest.approx(1.728))
        assert change.change_percent == pytest.approx(0)
        assert change.centre_lps_mm == pytest.approx((-18, -18, 18))


def test_a_small_lesion_that_grew_much_is_the_same_on_fine_and_coarse_grids():
    fine, coarse = (
        stored((1, 1, 1), (0, 0, 0), (60, 60, 60), SPLINTER),
        stored((4, 4, 6), (0, 0, 0), (15, 15, 10), CUBE),
    )
    assert short(compare_time_points(fine, coarse, AS_PLACED)) == [("same", (1,), (1,))]
    assert short(compare_time_points(coarse, fine, AS_PLACED)) == [("same", (1,), (1,))]


def test_what_the_other_scan_does_not_show_is_outside_and_neither_new_nor_gone():
    far = ((12, 24), (12, 24), (48, 60))
    whole = stored((2, 2, 2), (0, 0, 0), (30, 30, 30), CUBE, far)
    half = stored((2, 2, 2), (0, 0, 0), (30, 30, 15), CUBE)
    shorter = compare_time_points(whole, half, AS_PLACED)
    assert short(shorter) == [("same", (1,), (1,)), ("outside", (), (2,))]
    assert short(compare_time_points(half, whole, AS_PLACED)) == [("same", (1,), (1,)), ("outside", (2,), ())]
    assert (shorter.ml_before, shorter.ml_in_both) == (pytest.approx(3.456), pytest.approx((1.728, 1.728)))
    outside, total, in_both = comparison_rows(shorter)[1:]
    assert (outside["ml_before"], outside["ml_now"], outside["outside_percent"]) == ("1.7280", "", "100.0")
    assert (total["change_percent"], in_both["change_percent"]) == ("-50.0000", "0.0000")


def test_a_lesion_that_the_edge_of_a_scan_cuts_off_has_no_change():
    whole = stored((2, 2, 2), (0, 0, 0), (30, 30, 30), ((12, 24), (12, 24), (18, 58)))
    half = stored((2, 2, 2), (0, 0, 0), (30, 30, 10), ((12, 24), (12, 24), (18, 20)))  # a slice of 20 is left
    for first, second in ((whole, half), (half, whole)):
        (change,) = compare_time_points(first, second, AS_PLACED).changes
        assert (change.status, change.matched_by, change.change_percent) == ("same", "overlap", None)
        assert change.outside_percent == pytest.approx(95)


def test_lesions_that_regroup_are_one_entry():
    left, right = ((5, 12), (5, 10), (2, 4)), ((13, 15), (5, 10), (2, 4))
    longer, end = ((6, 15), (5, 10), (2, 4)), ((5, 6), (5, 10), (2, 4))
    assert short(compare_time_points(point(left, right), point(longer, end))) == [("regrouped", (1, 2), (1, 2))]


def test_the_earlier_scan_is_drawn_on_the_grid_of_now():
    motion = np.eye(4)
    motion[:3, 3] = 4, 0, -2
    earlier = stored((1, 1, 1), (0, 0, 0), (40, 40, 40), CUBE, SPLINTER, ((30, 31), (30, 31), (30, 31)))
    now = stored((2, 2, 5), (0, 0, 0), (20, 20, 8), flip=(0,)).volume
    moved = Alignment(motion, registered=True, moved_mm=4.5)
    picture, labels = picture_on(earlier.volume, now, moved), labels_on(earlier, now, moved)
    assert picture.shape == labels.shape == now.shape
    assert labels.unique().tolist() == [0, 1, 2, 3]  # the voxel of 1 mm is drawn, too
    centre = torch.nonzero(labels == 1).double().mean(0)
    placed = now.affine[:3, :3] @ centre + now.affine[:3, 3]
    assert placed.tolist() == pytest.approx([22, 18, 16], abs=2.0)
    assert picture[labels == 1].mean() > 120
    assert picture[now.shape[0] - 1].max() == 50  # the first 4 mm: the earlier scan shows nothing there


@pytest.mark.slow
def test_scans_that_look_alike_nowhere_are_not_registered():
    noise, other = (torch.rand(120, 120, 40, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    labels = torch.zeros(noise.shape, dtype=torch.int32)
    earlier = TimePoint(Volume("s", "p", noise, AFFINE, labels, {}), labels)
    shifted = AFFINE.clone()
    shifted[0, 3] += 1
    with pytest.raises(ValueError, match="look alike nowhere"):
        compare_time_points(earlier, TimePoint(earlier.volume._replace(image=other, affine=shifted), labels))
    empty = earlier.volume._replace(image=torch.zeros_like(noise), affine=shifted)
    for first, second in ((earlier.volume, empty), (empty, earlier.volume)):
        with pytest.raises(ValueError, match="cannot be registered"):
            register(first, second)


@pytest.mark.slow
def test_a_shift_of_the_patient_is_found():
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.random((12, 12, 12)).repeat(5, 0).repeat(5, 1).repeat(5, 2)).float()
    image[:4] = image[-4:] = 0
    affine = torch.diag(torch.tensor([4.0, 4.0, 4.0, 1.0], dtype=torch.float64))
    shifted = affine.clone()
    shifted[:3, 3] += torch.tensor([6.0, -5.0, 3.0])
    volume = Volume("s", "p", image, affine, torch.zeros(image.shape, dtype=torch.int32), {})
    motion = register(volume, volume._replace(affine=shifted))
    assert np.abs(motion[:3, 3] - [6, -5, 3]).max() < 1.0
    assert np.abs(motion[:3, :3] - np.eye(3)).max() < 0.01
    assert moved_mm(motion, volume) == pytest.approx(np.sqrt(70), abs=1.0)


def test_a_session_compares_itself_with_a_session_its_folder_and_a_label_map(tmp_path: Path):
    scan = three_lesions()
    session = InteractiveSession(make_model(), scan, tmp_path / "now")
    session.click(lps(scan, 2, 20, 20))
    earlier = InteractiveSession(make_model(), scan)
    earlier.click(lps(scan, 2, 40, 12))
    earlier.click(lps(scan, 2, 20, 20))
    expected = [("same", (1,), (2,)), ("gone", (), (1,))]
    assert short(session.compare(earlier)) == expected
    assert short(session.compare(TimePoint(scan, earlier.label_map()))) == expected
    write_comparison(session.compare(earlier), tmp_path / "a.csv")
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["status"], row["lesions"], row["earlier"]) for row in rows] == [
        ("same", "1", "2"),
        ("gone", "", "1"),
        ("total", "", ""),
    ]
    assert float(rows[2]["ml_now"]) == pytest.approx(float(rows[0]["ml_now"]), abs=1e-4)


def test_time_points_are_read_from_folders_and_label_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    scan = three_lesions()
    write_volume(scan.image, scan.affine, tmp_path / "scan.nii.gz")
    session = InteractiveSession(make_model(), scan._replace(path=str(tmp_path / "scan.nii.gz")), tmp_path / "then")
    with pytest.raises(ValueError, match=r"has no lesions\.nii\.gz; save it first"):
        read_time_point(tmp_path / "then")
    session.click(lps(scan, 2, 20, 20))
    session.save()
    session.close()
    assert torch.equal(read_time_point(tmp_path / "then").labels, session.label_map())
    write_volume(torch.zeros(scan.shape, dtype=torch.int32), scan.affine, tmp_path / "none.nii.gz")
    with pytest.raises(ValueError, match="a label map does not say its scan"):
        read_time_point(tmp_path / "none.nii.gz")
    words = ["follow_up", str(tmp_path / "then"), str(tmp_path / "then"), f"--out={tmp_path / 't.csv'}"]
    main(words)
    shown = capsys.readouterr().out
    assert "same          1 -> 1" in shown
    assert "+0 %" in shown
    image = str(tmp_path / "scan.nii.gz")
    labels = str(tmp_path / "then" / "lesions.nii.gz")
    main(
        ["follow_up", labels, str(tmp_path / "none.nii.gz"), f"--images={image},{image}", f"--out={tmp_path / 't.csv'}"]
    )
    assert "gone          1 -> -" in capsys.readouterr().out


def test_a_map_of_classes_is_warned_of_and_a_map_of_lesion_ids_is_not(tmp_path: Path):
    """Three lesions as one class: one value in three pieces. As ids: three values in three pieces."""
    scan = three_lesions()
    write_volume(scan.image, scan.affine, tmp_path / "scan.nii.gz")
    write_volume(scan.lesions, scan.affine, tmp_path / "ids.nii.gz")
    write_volume((scan.lesions > 0).int(), scan.affine, tmp_path / "classes.nii.gz")
    with pytest.warns(UserWarning, match="its single value lies in 3 pieces, so it looks like a map of classes"):
        read_time_point(tmp_path / "classes.nii.gz", tmp_path / "scan.nii.gz")
    with warnings.catch_warnings(action="error"):
        assert read_time_point(tmp_path / "ids.nii.gz", tmp_path / "scan.nii.gz").lesion_count == 3
    with pytest.raises(ValueError, match=r"gone\.nii\.gz: no such file or folder"):
        read_time_point(tmp_path / "gone.nii.gz")


def test_the_command_says_what_is_outside_and_what_is_cut_off(tmp_path: Path, capsys, monkeypatch):
    far, cut = ((12, 24), (12, 24), (48, 60)), ((30, 40), (30, 40), (20, 40))
    whole = stored((2, 2, 2), (0, 0, 0), (30, 30, 30), CUBE, far, cut)
    half = stored((2, 2, 2), (0, 0, 0), (30, 30, 15), CUBE, ((30, 40), (30, 40), (20, 30)))
    for name, each in (("then", whole), ("now", half)):
        write_volume(each.labels, each.volume.affine, tmp_path / f"{name}.nii.gz")
        write_volume(each.volume.image, each.volume.affine, tmp_path / f"{name}_image.nii.gz")
    monkeypatch.setattr("mois.session.follow_up.alignment.register", lambda *_: np.eye(4))
    scans, images = ([str(tmp_path / f"{name}{end}.nii.gz") for name in ("then", "now")] for end in ("", "_image"))
    main(["follow_up", *scans, f"--images={','.join(images)}", f"--out={tmp_path / 't.csv'}"])
    assert capsys.readouterr().out.splitlines()[:5] == [
        "same          1 -> 1              1.73 ml      1.73 ml +0 %",
        "same          3 -> 2              2.00 ml      1.00 ml cut off: 50 % outside the other scan",
        "outside       2 -> -              1.73 ml         -",
        "total                             5.46 ml      2.73 ml -50 %",
        "total in both                     1.73 ml      1.73 ml +0 %",
    ]


@pytest.mark.ci
def test_lesions_of_ten_patients_are_matched_right():
    as_made, moved = (measure(10, SECOND_SCANS[name]) for name in ("as made", "moved"))
    assert min(as_made.share, moved.share) >= 0.9
    assert min(within(as_made.changes), within(moved.changes)) >= 0.9
    assert within(as_made.resampled) == 1.0
