"""`mois try`: the shipped model on a scan, with the labels beside it."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mois.cli import main as mois_main
from mois.cli.trial_files import labels_beside, read_labelled
from mois.scans.datasets import read_dataset
from tests.support.datasets import SHAPE, save_nifti, write_bids
from tests.support.example_bundles import EASY, random_bundle

Make = Callable[..., Path]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["nowhere.nii.gz"], "nowhere.nii.gz: no such file; correct the path."),
        (["nowhere.nii.gz", "--count=0"], "count=0 must be 1 or more."),
        (["nowhere.nii.gz", "--pixel_mm", "wide"], "pixel_mm="),
        (["nowhere.nii.gz", "--out", __file__], f"out={__file__} is a file; name a folder."),
    ],
)
def test_what_cannot_be_tried_ends_in_one_line(more: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        mois_main(["try", "shipped", *more])
    said = capsys.readouterr().err
    assert said.startswith(f"error: {line}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [["try", "B", "scan.nii.gz"], ["view", "scan.nii.gz", "--bundle=B"], ["serve", "nninteractive", "--bundle=B"]],
    ids=lambda words: words[0],
)
def test_a_bundle_of_others_is_loaded_once_it_is_trusted(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    trusted: list[list[str]] = []

    def load(bundle: Path, device: str, trust: Sequence[str] = (), weights: Path | None = None) -> None:
        trusted.append(list(trust))
        raise ValueError("it would be loaded")

    monkeypatch.setattr("mois.sharing.bundle.Bundle.load", load)
    with pytest.raises(SystemExit):
        mois_main([*words, "--trust", "of_others"])
    assert trusted == [["of_others"]]


@pytest.mark.ci
def test_labels_beside_a_scan_are_clicked(
    make_dataset: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = make_dataset(subjects=1) / "imagesTr" / "p0_0000.nii.gz"
    out = tmp_path / "out"
    mois_main(
        ["try", "shipped", str(scan), "--pixel_mm", "[1,2]", "--count", "2", "--out", str(out), "--device", "cpu"]
    )
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("1 mm: prompted 2, found ")
    assert said[-1] == f"{out / 'try.png'} and {out / 'try.csv'}"
    with (out / "try.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["pixel_mm"]) for row in rows] == [1, 2]
    assert all(0 <= float(row["unprompted_dice"]) <= 1 for row in rows)

    prompts = tmp_path / "prompts.json"  # a prompt file needs no labels
    prompts.write_text(json.dumps({"prompts": [{"click": {"voxel": [20, 4, 20]}}]}), encoding="utf-8")
    command = ["try", "shipped", str(scan), "--prompts", str(prompts), "--pixel_mm", "[2]", "--out", str(out)]
    mois_main([*command, "--device", "cpu"])
    with (out / "try.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["prompted"], row["unprompted_dice"]) == ("1", "")


def test_lesion_ids_of_a_dataset_keep_touching_lesions_apart(make_dataset: Make) -> None:
    root = make_dataset(subjects=1, instances=True)
    scan, ids = root / "imagesTr" / "p0_0000.nii.gz", root / "instancesTr" / "p0.nii.gz"
    touching = np.zeros(SHAPE, np.int32)
    touching[10:13, 2:4, 10:13], touching[13:16, 2:4, 10:13] = 4, 9  # side by side: one lesion by their class alone
    save_nifti(root / "labelsTr" / "p0.nii.gz", (touching > 0).astype(np.uint8))
    save_nifti(ids, touching)
    volume, chosen = read_labelled({"": scan}, None, needed=True, target_class=None)
    assert (volume.classes, chosen) == ({4: 1, 9: 1}, 1)
    shutil.rmtree(root / "labelsTr")  # all lesions are of class 1 then
    assert read_labelled({"": scan}, None, needed=True, target_class=None)[0].classes == {4: 1, 9: 1}


def test_places_that_a_reader_rejected_are_no_lesions_to_click(make_dataset: Make) -> None:
    root = make_dataset(subjects=1, lesions=11)  # 6 bright lesions, 5 dark ones
    scan, about = root / "imagesTr" / "p0_0000.nii.gz", root / "dataset.json"
    labels = json.loads(about.read_text(encoding="utf-8"))
    _, most = read_labelled({"": scan}, None, needed=True, target_class=None)
    name = {1: "bright", 2: "dark"}[most]
    del labels["labels"][name]
    about.write_text(json.dumps({**labels, "labels": {**labels["labels"], "rejected": most}}), encoding="utf-8")
    assert read_labelled({"": scan}, None, needed=True, target_class=None)[1] == 3 - most


def test_a_scan_without_labels_needs_prompts(
    make_dataset: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_dataset(subjects=1)
    shutil.rmtree(root / "labelsTr")
    scan = root / "imagesTr" / "p0_0000.nii.gz"
    with pytest.raises(SystemExit):
        mois_main(["try", "shipped", str(scan), "--out", str(tmp_path / "out")])
    line = f"error: {scan}: there are no labels beside it; give --labels MAP, or --prompts FILE.\n"
    assert capsys.readouterr().err == line


def test_a_class_without_labels_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        mois_main(["try", "shipped", "scan.nii.gz", "--target_class", "2", "--prompts", "p.json"])
    line = "target_class=2 is a class of labels; give --labels MAP, or leave it out."
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_model_of_two_channels_takes_them_by_name(
    make_dataset: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_dataset(subjects=1)
    t2 = root / "imagesTr" / "p0_0000.nii.gz"
    t1 = shutil.copy(t2, root / "imagesTr" / "p0_0001.nii.gz")
    bundle = random_bundle(tmp_path / "bundle", inference=replace(EASY, channels=("T2", "T1"), tile_px=32))
    asked = ["--pixel_mm", "[4]", "--count", "1", "--out", str(tmp_path / "out"), "--device", "cpu"]
    mois_main(["try", str(bundle), f"T1={t1}", f"T2={t2}", *asked])
    assert capsys.readouterr().out.startswith("4 mm: prompted 1, found ")
    with pytest.raises(SystemExit):
        mois_main(["try", str(bundle), str(t2), *asked])
    given = (
        f"error: --scan {t2}: {t2} is none of its channels, or one twice; the model sees T2, T1; give --scan T2=FILE"
    )
    assert capsys.readouterr().err == f"{given} --scan T1=FILE.\n"


@pytest.mark.parametrize(
    ("scan", "labels"),
    [
        ("imagesTr/p0_0000.nii.gz", "labelsTr/p0.nii.gz"),
        ("a.nii.gz", "a_seg.nii.gz"),
        ("a.nii.gz", "a_label.nrrd"),
        ("sub-1_FLAIR.nii.gz", "sub-1_dseg.nii.gz"),
        ("a.nii.gz", None),
    ],
)
def test_labels_beside(tmp_path: Path, scan: str, labels: str | None) -> None:
    for name in (scan, labels or "b_seg.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert labels_beside(tmp_path / scan) == (None if labels is None else tmp_path / labels)


def test_labels_of_a_bids_dataset_are_those_of_its_derivatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_bids(tmp_path / "bids")
    for subject in read_dataset(root):
        assert subject.images.keys() == {0, 1}
        assert [labels_beside(image) for image in subject.images.values()] == [subject.label] * 2
    name = "sub-02/ses-1/anat/sub-02_ses-1_{}.nii.gz"
    scan, mask = root / name.format("FLAIR"), root / "derivatives/lesions" / name.format("label-lesion_mask")
    monkeypatch.chdir(scan.parent)
    assert labels_beside(Path(scan.name)) == mask
    warped = root / "derivatives/mni" / name.format("space-MNI_FLAIR")  # a mask of another space is none of its labels
    warped.parent.mkdir(parents=True)
    shutil.copy(scan, warped)
    assert labels_beside(warped) is None
    inside = shutil.copy(mask, warped.with_name("sub-02_ses-1_space-MNI_label-lesion_mask.nii.gz"))
    shutil.copy(root / "dataset_description.json", root / "derivatives/mni")
    assert labels_beside(warped) == inside
    assert labels_beside(scan) == mask
    mask.unlink()
    assert labels_beside(scan) is None
