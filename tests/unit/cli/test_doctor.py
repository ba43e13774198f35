"""What `mois doctor` says of a dataset: it approves nothing that a training then refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mois.cli.doctor_checks import Finding, dataset, devices, disk
from tests.support.datasets import save_nifti

Make = Callable[..., Path]


def describe(root: Path, **changed: object) -> None:
    content = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    (root / "dataset.json").write_text(json.dumps({**content, **changed}), encoding="utf-8")


def labels_with_one_number_twice(root: Path) -> None:
    describe(root, labels={"background": 0, "bright": 1, "dark": 1})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda root: (root / "labelsTr" / "p1.nii.gz").unlink(),
            [
                "ROOT: training scan p1 has no label map; add labelsTr/p1.nii.gz, all 0 if it has no lesion, or move",
            ],
        ),
        (
            lambda root: (root / "labelsTr" / "p1.nii.gz").rename(root / "labelsTr" / "p1_.nii.gz"),
            [
                "ROOT: training scan p1 has no label map; ",
                "ROOT/labelsTr/p1_.nii.gz: there is no image imagesTr/p1__0000.nii.gz; add the image, or remove",
            ],
        ),
        (
            lambda root: shutil.copy(root / "labelsTr" / "p1.nii.gz", root / "labelsTr" / "q7.nii.gz"),
            ["ROOT/labelsTr/q7.nii.gz: there is no image imagesTr/q7_0000.nii.gz; add the image, or remove the map"],
        ),
        (
            lambda root: (root / "imagesTr" / "p1_0000.nii.gz").rename(root / "imagesTr" / "p1_0001.nii.gz"),
            ["ROOT/imagesTr/p1_0001.nii.gz: scan p1 has no channel 0 (its name ends in 0001); call it p1_0000.nii.gz"],
        ),
        (
            lambda root: (root / "imagesTr" / "p1_0000.nii.gz").rename(root / "imagesTr" / "p1.nii.gz"),
            ["ROOT/imagesTr/p1.nii.gz: images are called SUBJECT_0000.nii.gz"],
        ),
        (
            lambda root: (root / "imagesTr" / "p1_0000.nii.gz").rename(root / "imagesTr" / "p1_0000.dcm"),
            [
                "ROOT/imagesTr/p1_0000.dcm: scan p1 is not read: dataset.json declares file_ending .nii.gz; convert it "
                "to p1_0000.nii.gz, or move it away"
            ],
        ),
        (  # a folder that holds a series, without a channel: its label map says that it is a scan
            lambda root: (root / "imagesTr" / "p1_0000.nii.gz").rename(root / "imagesTr" / "p1"),
            ["ROOT/imagesTr/p1: scan p1 is not read: "],
        ),
        (
            lambda root: (root / "imagesTs" / "p2_0000.nii.gz").rename(root / "imagesTs" / "p2_0000.nii"),
            ["ROOT/imagesTs/p2_0000.nii: scan p2 is not read: "],
        ),
        (
            lambda root: save_nifti(root / "imagesTr" / "p1_0000.nii.gz", np.zeros((40, 8, 48), np.int16)),
            ["ROOT/imagesTr/p1_0000.nii.gz: every voxel is 0; export it from its source again, or leave"],
        ),
        (
            lambda root: describe(root, labels={"0": "background", "1": "bright"}),
            [
                "ROOT/dataset.json: label '0' is 'background', as in nnU-Net's first version; swap name and number: "
                '{"background": 0}.'
            ],
        ),
        (
            lambda root: describe(root, file_ending=".nii"),
            ["ROOT/imagesTr: no images (SUBJECT_0000.nii); set file_ending in dataset.json to .nii.gz."],
        ),
        (
            labels_with_one_number_twice,
            ["ROOT/dataset.json: labels 'bright' and 'dark' are both 1; give each class its own number."],
        ),
        (
            lambda root: (root / "dataset.json").unlink(),
            ["ROOT/dataset.json: no such file; set --root to the folder of an nnU-Net raw dataset."],
        ),
    ],
)
def test_a_dataset_that_cannot_be_trained_on_is_not_approved(
    make_dataset: Make, damage: Callable[[Path], object], said: list[str]
) -> None:
    root = make_dataset(subjects=2, held_out=1)
    damage(root)
    faults = [finding.text for finding in dataset(root) if not finding.good and " to mend" not in finding.text]
    for fault, start in zip(faults, said, strict=True):
        assert fault.startswith(start.replace("ROOT", str(root)))


def test_a_dataset_in_order_is_approved(make_dataset: Make) -> None:
    root = make_dataset(subjects=2, held_out=1)
    (root / "labelsTs" / "p2.nii.gz").unlink()  # to predict, nobody needs it
    findings = list(dataset(root))
    assert findings[0] == Finding("data", True, "2 scans to train on, 1 held out, 24 lesions, 0 faults to mend")
    assert all(finding.good for finding in findings)


@pytest.mark.parametrize(
    ("cuda", "why"), [("13.0", "the driver is older than CUDA 13.0 asks for"), (None, "was built without CUDA")]
)
def test_a_gpu_that_torch_cannot_use_is_to_be_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: str | None, why: str
) -> None:
    (tmp_path / "version").write_text("NVRM version: 470", encoding="utf-8")
    monkeypatch.setattr("mois.inference.execution.DRIVER_FILE", tmp_path / "version")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.version.cuda", cuda)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (finding,) = devices()
    assert (finding.topic, finding.good) == ("device", False)
    assert finding.text.startswith("trainings run on the processor: there is an NVIDIA driver")
    assert why in finding.text


def test_a_folder_that_cannot_be_written_to_is_no_place_for_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert disk(tmp_path / "runs", needed_gb=0).good
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)  # as of a read-only file system
    assert disk(tmp_path / "runs").text == (
        f"{tmp_path} cannot be written to; ask for the right to it, or set trainer.default_root_dir to another folder"
    )


def test_one_is_no_plural(make_dataset: Make) -> None:
    root = make_dataset(subjects=2, lesions=1)
    (root / "labelsTr" / "p0.nii.gz").unlink()
    (summary,) = [finding for finding in dataset(root) if " to mend" in finding.text]
    assert summary == Finding("data", False, "2 scans to train on, 0 held out, 1 lesion, 1 fault to mend")
    (root / "imagesTr" / "p0_0000.nii.gz").unlink()
    (summary,) = [finding for finding in dataset(root) if " to mend" in finding.text]
    assert summary == Finding("data", True, "1 scan to train on, 0 held out, 1 lesion, 0 faults to mend")


@pytest.mark.parametrize("labelled", [True, False])
def test_sequences_of_a_scan_lie_on_one_grid(make_dataset: Make, labelled: bool) -> None:
    root = make_dataset(subjects=1, held_out=1)
    describe(root, channel_names={"0": "T2", "1": "T1"})
    for part, scan in (("Tr", "p0"), ("Ts", "p1")):
        shutil.copy(root / f"images{part}" / f"{scan}_0000.nii.gz", root / f"images{part}" / f"{scan}_0001.nii.gz")
    assert all(finding.good for finding in dataset(root))
    part, scan = ("Tr", "p0") if labelled else ("Ts", "p1")
    if not labelled:
        (root / "labelsTs" / "p1.nii.gz").unlink()
    moved = root / f"images{part}" / f"{scan}_0001.nii.gz"
    affine = np.diag([2.0, 6.0, 2.0, 1.0])
    affine[0, 3] = 9.0
    save_nifti(moved, np.random.default_rng(0).normal(size=(40, 8, 48)).astype(np.float32), affine)
    (fault,) = [finding.text for finding in dataset(root) if not finding.good][:-1]
    assert fault.startswith(f"{moved}: its affine differs from that of {scan}_0000.nii.gz by 9 mm")
    assert "resample the channel onto that grid" in fault
