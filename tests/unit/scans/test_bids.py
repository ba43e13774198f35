"""BIDS datasets: patients, sessions and masks of lesions from the names of files."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from datamodules import NiftiDataModule
from datamodules.splits import SplitSettings
from mois.cli.dataset_survey import survey
from mois.cli.planned import plan_dataset
from mois.errors import DataError
from mois.planning.plan import make_plan
from mois.scans.datasets import read_dataset
from tests.support.datasets import BIDS_PLACE, save_nifti, scan_with_lesions, write_bids


@pytest.mark.parametrize("inner", ["", "derivatives/lesions"])
def test_patients_and_sessions_come_from_entities(tmp_path: Path, inner: str) -> None:
    root = write_bids(tmp_path / "bids") / inner
    scans = read_dataset(root)
    assert [(scan.subject, scan.patient, scan.session, scan.site) for scan in scans] == [
        ("sub-01_ses-1", "sub-01", "ses-1", "A"),
        ("sub-01_ses-2", "sub-01", "ses-2", "A"),
        ("sub-02_ses-1", "sub-02", "ses-1", "B"),
        ("sub-02_ses-2", "sub-02", "ses-2", "B"),
    ]
    assert scans[0].channels == {0: "FLAIR", 1: "T1w"}
    assert scans[0].classes == {1: "lesion"}
    assert scans[0].label == tmp_path / "bids" / (
        "derivatives/lesions/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz"
    )
    volume = scans[0].read(channels=["FLAIR", "T1w"])
    assert len(volume.classes) == 12
    assert [channel.name for channel in volume.further] == ["T1w"]


def test_ids_of_participants_may_lack_the_prefix(tmp_path: Path) -> None:
    root = write_bids(tmp_path)
    (root / "participants.tsv").write_text("participant_id\tsite\n01\tA\nsub-02\tB\n", encoding="utf-8")
    assert [scan.site for scan in read_dataset(root)] == ["A", "A", "B", "B"]


def test_patients_without_a_line_of_participants_are_named(tmp_path: Path) -> None:
    root = write_bids(tmp_path)
    (root / "participants.tsv").write_text("participant_id\tsite\nsub-01\tA\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"participants\.tsv: no line for sub-02; their scans have no site"):
        scans = read_dataset(root)
    assert [scan.site for scan in scans] == ["A", "A", "", ""]


def test_participants_without_sites_are_no_fault(tmp_path: Path) -> None:
    root = write_bids(tmp_path)
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t40\n", encoding="utf-8")
    with warnings.catch_warnings(action="error"):
        assert {scan.site for scan in read_dataset(root)} == {""}


def test_it_is_planned_and_split_by_patient(tmp_path: Path) -> None:
    root = write_bids(tmp_path / "bids")
    found = survey(root, contrasts=True)
    assert found.faults == []
    assert make_plan(found.for_plan(root)).split.val_subjects == ("sub-02_ses-1", "sub-02_ses-2")
    data = NiftiDataModule(root, pixel_mm=2, patch_px=32, split=SplitSettings(val_subjects=["sub-02_ses-1"]))
    with pytest.raises(DataError, match="patient sub-02 stands in train"):
        data.setup("fit")
    both = SplitSettings(val_subjects=["sub-02_ses-1", "sub-02_ses-2"])
    data = NiftiDataModule(root / "derivatives" / "lesions", pixel_mm=2, patch_px=32, split=both)
    data.setup("fit")
    assert len(data.fingerprint()) == 64


def test_a_segmentation_names_its_classes(tmp_path: Path) -> None:
    root = write_bids(tmp_path / "bids", "dseg", values=2)
    assert read_dataset(root)[0].classes == {1: "lesion 1", 2: "lesion 2"}  # values of the maps
    (root / "derivatives" / "lesions" / "all_dseg.tsv").write_text("index\tname\n0\tbackground\n1\tbright\n2\tdark\n")
    assert read_dataset(root)[0].classes == {1: "bright", 2: "dark"}


def test_names_of_classes_are_those_of_the_masks_and_not_of_another_segmentation(tmp_path: Path) -> None:
    root = write_bids(tmp_path / "bids", "label-lesion_dseg", values=2)
    other = root / "derivatives" / "fmriprep"  # its tables come first by name
    place = BIDS_PLACE.format(patient="01", session="ses-1")
    save_nifti(other / f"{place}_desc-aseg_dseg.nii.gz", scan_with_lesions()[1])
    (other / "desc-aseg_dseg.tsv").write_text("index\tname\n1\tLeft-Cerebral-Exterior\n2\tLeft-White-Matter\n")
    assert read_dataset(root)[0].classes == {1: "lesion 1", 2: "lesion 2"}
    ours = root / "derivatives" / "lesions"
    (ours / "desc-other_dseg.tsv").write_text("index\tname\n1\tother\n2\tother still\n")
    (ours / "label-lesion_dseg.tsv").write_text("index\tname\n1\tbright\n2\tdark\n")
    assert read_dataset(root)[0].classes == {1: "bright", 2: "dark"}
    (ours / f"{place}_dseg.tsv").write_text("index\tname\n1\tdark\n2\tbright\n")  # nearer, for one scan only
    with pytest.raises(
        DataError, match=r"label-lesion_dseg.tsv: index 1 is bright, in .*_dseg.tsv it is dark; give one"
    ):
        read_dataset(root)


def test_images_on_another_grid_than_the_mask_are_left_out(tmp_path: Path) -> None:
    root = write_bids(tmp_path / "bids")  # as raw data are: the mask was drawn on FLAIR, T1w has voxels of its own
    for path in root.rglob("*_T1w.nii.gz"):
        save_nifti(path, np.arange(8000, dtype=np.float32).reshape(20, 20, 20))
    scans = read_dataset(root)
    assert [[path.name for path in scan.images.values()] for scan in scans[:2]] == [
        ["sub-01_ses-1_FLAIR.nii.gz"],
        ["sub-01_ses-2_FLAIR.nii.gz"],
    ]
    found = survey(root, contrasts=True)
    assert found.faults == []
    plan = make_plan(found.for_plan(root))
    assert plan.channel == 0
    assert plan.reasons["channel"] == "FLAIR"
    for path in root.rglob("*_FLAIR.nii.gz"):
        save_nifti(path, np.arange(8000, dtype=np.float32).reshape(20, 20, 20))
    with pytest.raises(DataError, match="resample the label map onto that grid"):  # none fits
        read_dataset(root)[0].read()


def test_a_sequence_that_one_scan_lacks_is_not_the_first(tmp_path: Path) -> None:
    root = write_bids(tmp_path / "bids")
    (missing,) = root.rglob("sub-02_ses-1_FLAIR.nii.gz")
    missing.unlink()
    scans = read_dataset(root)
    assert [sorted(scan.images) for scan in scans] == [[0, 1], [0, 1], [0], [0, 1]]
    assert scans[0].channels == {0: "T1w", 1: "FLAIR"}
    plan = plan_dataset(root, "--data")
    assert plan.channel == 0
    assert plan.reasons["channel"] == "T1w, the only one that every scan has"
    for path in root.rglob("sub-01_*_T1w.nii.gz"):
        path.unlink()
    with pytest.raises(
        DataError, match=r"no sequence is there for every scan \(FLAIR for 3, T1w for 2 of 4\); add the"
    ):
        plan_dataset(root, "--data")


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    root = write_bids(tmp_path / "bids")
    mask = root / "derivatives/lesions/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz"
    other = mask.with_name("sub-01_ses-1_space-T1w_label-lesion_mask.nii.gz")
    other.write_bytes(mask.read_bytes())
    with pytest.raises(DataError, match="are both lesions of sub-01_ses-1; move one away"):
        read_dataset(root)
    mask.unlink()
    with pytest.raises(DataError, match="there is no image of sub-01_ses-1 in space-T1w; add it"):
        read_dataset(root)
    other.unlink()
    assert len(read_dataset(root)) == 3  # a scan without a mask is left out
    for path in root.rglob("*label-lesion_mask.nii.gz"):
        path.unlink()
    with pytest.raises(DataError, match="no mask of lesions"):
        read_dataset(root)
