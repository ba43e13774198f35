"""Folders that cannot be adapted to: each ends in one line before any training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from mois.cli import main as mois_main
from tests.support.datasets import SHAPE, save_nifti, scan_with_lesions

Make = Callable[..., Path]
LABEL = Path("labelsTr") / "p1.nii.gz"
IMAGE = Path("imagesTr") / "p1_0000.nii.gz"


def empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def without_labels(root: Path) -> None:
    shutil.rmtree(root / "labelsTr")


def with_a_label_on_another_grid(root: Path) -> None:
    save_nifti(root / LABEL, np.ones((SHAPE[0] // 2, *SHAPE[1:]), np.uint8))


def without_a_lesion(root: Path) -> None:
    for label in (root / "labelsTr").iterdir():
        save_nifti(label, np.zeros(SHAPE, np.uint8))


def with_an_unreadable_file(root: Path) -> None:
    (root / IMAGE).write_bytes(b"no picture")


def with_a_cut_file(root: Path) -> None:
    (root / IMAGE).write_bytes((root / IMAGE).read_bytes()[:5000])


def without_a_channel(root: Path) -> None:
    save_nifti(root / "imagesTr" / "p0_0001.nii.gz", scan_with_lesions()[0])


def with_parts_of_labels(root: Path) -> None:
    save_nifti(root / LABEL, nib.load(root / LABEL).get_fdata().astype(np.float32) * 0.7)  # type: ignore[attr-defined]


def without_a_description(root: Path) -> None:
    (root / "dataset.json").unlink()


def with_an_unknown_class(root: Path) -> None:
    save_nifti(root / LABEL, np.full(SHAPE, 7, np.uint8))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (empty, "ROOT/dataset.json: no such file; set --data to the folder of an nnU-Net raw dataset."),
        (without_a_description, "ROOT/dataset.json: no such file; set --data to the folder of an nnU-Net raw dataset."),
        (
            without_labels,
            "ROOT: training scan p0 has no label map; add labelsTr/p0.nii.gz, all 0 if it has no lesion, or move its "
            "image out of imagesTr (1 more: mois doctor ROOT)",
        ),
        (with_a_label_on_another_grid, "ROOT/labelsTr/p1.nii.gz: "),
        (without_a_lesion, "ROOT: no training scan has a lesion (voxels above 0); annotate some."),
        (with_an_unreadable_file, "ROOT/imagesTr/p1_0000.nii.gz: "),
        (with_a_cut_file, "ROOT/imagesTr/p1_0000.nii.gz: "),
        (
            without_a_channel,
            "ROOT: scan p1 has no image of channel 1, which other scans have; add p1_0001.nii.gz, or move that of the "
            "others away",
        ),
        (with_parts_of_labels, "ROOT/labelsTr/p1.nii.gz: label values must be whole numbers, got 1.4; threshold it"),
        (with_an_unknown_class, "ROOT/labelsTr/p1.nii.gz: holds label 7, dataset.json declares [1, 2]; add it"),
    ],
)
def test_a_broken_folder_ends_in_one_line(
    make_dataset: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], line: str
) -> None:
    root = make_dataset(subjects=2)
    damage(root)
    assert said(capsys, root, tmp_path / "bundle").startswith(line.replace("ROOT", str(root)))
    assert not (tmp_path / "bundle_training").exists()


def test_a_bundle_that_is_there_is_kept(make_dataset: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    assert said(capsys, make_dataset(), out) == f"out={out} is there already; choose another folder, or remove it."


def test_a_full_disk(
    make_dataset: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**8))  # type: ignore[attr-defined]
    line = said(capsys, make_dataset(), tmp_path / "bundle")
    assert line.startswith(f"out={tmp_path / 'bundle'}: 0.1 GB free in {tmp_path}; make room, or choose another disk")


def test_a_folder_that_cannot_be_written_to(
    make_dataset: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    out = tmp_path / "bundle"
    cure = "ask for the right to it, or choose another folder."
    assert said(capsys, make_dataset(), out) == f"out={out}: {tmp_path} cannot be written to; {cure}"


def test_no_time_is_refused(make_dataset: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, make_dataset(), tmp_path / "bundle", "--minutes=0") == (
        "minutes=0: a training needs time; choose more than 0."
    )


def said(capsys: pytest.CaptureFixture[str], root: Path, out: Path, *more: Any) -> str:
    """Return the one line of an adaptation that fails."""
    with pytest.raises(SystemExit) as stop:
        mois_main(["adapt", "--data", str(root), "--out", str(out), *more])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")
