"""Names with dots, and what lies in folders of scans besides scans: files of a desktop, and links to nothing."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mois.cli.dataset_survey import survey
from mois.cli.doctor_checks import Finding, dataset
from mois.errors import DataError
from mois.scans.datasets import read_dataset
from mois.scans.image_files import name_of
from tests.support.datasets import save_nifti, write_bids, write_dataset


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("scan.nii.gz", "scan"),
        ("patient.01.nii.gz", "patient.01"),
        ("FLAIR 1.5T.NII.GZ", "FLAIR 1.5T"),
        ("a.hdr", "a"),
        ("v1.2.mha", "v1.2"),
        ("IM0001", "IM0001"),
        ("1.2.840.113619.dcm", "1.2.840.113619"),
        (".nii.gz", ".nii.gz"),
    ],
)
def test_a_scan_is_called_as_its_file_without_the_ending(file: str, name: str) -> None:
    assert name_of(Path("folder") / file) == name


def test_a_series_is_called_as_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = tmp_path / "1.2.840.113619.2"  # folders are often called by the UID of their series
    series.mkdir()
    assert name_of(series) == "1.2.840.113619.2"
    monkeypatch.chdir(series)
    assert name_of(Path()) == "1.2.840.113619.2"


def test_hidden_files_of_a_desktop_are_no_scans(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    for folder in ("imagesTr", "labelsTr"):
        for file in sorted((root / folder).iterdir()):
            file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")  # macOS leaves one beside each file
        (root / folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    found = survey(root)
    assert found.faults == []
    assert [scan.subject for scan in found.scans] == ["p0", "p1"]


def link_to_nothing(file: Path) -> None:
    """Put a link in the place of a file, as datalad leaves one for a file that was not fetched."""
    file.unlink()
    file.symlink_to(file.parent / "not fetched")


@pytest.mark.parametrize("folder", ["labelsTr", "instancesTr"])
def test_a_map_that_is_a_link_to_nothing_is_named(tmp_path: Path, folder: str) -> None:
    root = write_dataset(tmp_path / "data", instances=True)
    label = root / folder / "p0.nii.gz"
    link_to_nothing(label)
    with pytest.raises(DataError, match=r"p0\.nii\.gz: is a link to .*not fetched, which is missing; get that file"):
        read_dataset(root)


def test_a_mask_of_bids_that_is_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    root = write_bids(tmp_path / "bids")
    (mask,) = root.rglob("sub-01_ses-1_label-lesion_mask.nii.gz")
    link_to_nothing(mask)
    with pytest.raises(DataError, match=r"lesion_mask\.nii\.gz: is a link to .*, which is missing; get that file"):
        read_dataset(root)


def test_an_image_of_bids_that_others_have_and_that_is_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    root = write_bids(tmp_path / "bids")
    for image in root.rglob("*_T1w.nii.gz"):  # of no scan: nobody wants it
        link_to_nothing(image)
    assert read_dataset(root)[0].channels == {0: "FLAIR"}
    (image,) = root.rglob("sub-01_ses-1_FLAIR.nii.gz")
    link_to_nothing(image)
    with pytest.raises(DataError, match=r"ses-1_FLAIR\.nii\.gz: is a link to .*, which is missing; get that file"):
        read_dataset(root)


def test_doctor_tells_which_scans_of_bids_have_no_mask_of_lesions(tmp_path: Path) -> None:
    root = write_bids(tmp_path / "bids")
    assert "left out" not in [finding.topic for finding in dataset(root)]
    for place in ("sub-01_ses-2", "sub-02_ses-1"):
        (mask,) = root.rglob(f"{place}_label-lesion_mask.nii.gz")
        mask.unlink()
    found = {finding.topic: finding for finding in dataset(root)}
    assert found["left out"] == Finding(
        "left out",
        True,
        "2 scans without a mask of lesions: sub-01_ses-2, sub-02_ses-1; add one, all 0 if it has no lesion",
    )
    of_derivative = {finding.topic for finding in dataset(root / "derivatives" / "lesions")}
    assert "left out" in of_derivative


def test_masks_of_bids_have_one_value(tmp_path: Path) -> None:
    root = write_bids(tmp_path / "bids")
    (mask,) = root.rglob("sub-02_ses-1_label-lesion_mask.nii.gz")
    save_nifti(mask, 255 * np.asarray(nib.load(mask).dataobj))  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"sub-02_ses-1_.*: its lesions are 255, those of .* are 1; write one value"):
        read_dataset(root)


def test_bids_without_its_description_is_told_what_it_lacks(tmp_path: Path) -> None:
    root = write_bids(tmp_path / "bids")
    (root / "dataset_description.json").unlink()
    with pytest.raises(DataError, match=r"holds sub-\* as in BIDS, but no dataset_description\.json; add it"):
        read_dataset(root)
