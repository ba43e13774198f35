"""Lesions of two time points: by hand on small maps, and through sessions and files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from mois.cli import main
from mois.records import Volume
from mois.scans.image_files import write_volume
from mois.scans.registration import moved_mm, register
from mois.session import InteractiveSession, TimePoint, read_time_point, write_comparison
from mois.session.follow_up import compare_time_points
from tests.bench.time_points import measure
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
    assert "same    1 -> 1" in shown
    assert "+0 %" in shown
    image = str(tmp_path / "scan.nii.gz")
    labels = str(tmp_path / "then" / "lesions.nii.gz")
    main(
        ["follow_up", labels, str(tmp_path / "none.nii.gz"), f"--images={image},{image}", f"--out={tmp_path / 't.csv'}"]
    )
    assert "gone    1 -> -" in capsys.readouterr().out


@pytest.mark.ci
def test_lesions_of_ten_patients_are_matched_right():
    as_made, moved = measure(10, moved=False), measure(10, moved=True)
    assert as_made.share >= 0.9
    assert as_made.within == 1.0
    assert moved.share >= 0.9
