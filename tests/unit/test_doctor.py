"""What `mois doctor` says of a dataset: it approves nothing that a training then refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mois.doctor import Finding, dataset

Make = Callable[..., Path]


def labels_with_one_number_twice(root: Path) -> None:
    content = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    content["labels"]["dark"] = 1
    (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda root: (root / "labelsTr" / "p1.nii.gz").unlink(),
            ["ROOT: training scan p1 has no label map; add labelsTr/p1, all 0 if it has no lesion, or move its image"],
        ),
        (
            lambda root: (root / "labelsTr" / "p1.nii.gz").rename(root / "labelsTr" / "p1_.nii.gz"),
            [
                "ROOT: training scan p1 has no label map; ",
                "ROOT/labelsTr/p1_.nii.gz: there is no image imagesTr/p1__0000.nii.gz; did you mean p1.nii.gz?",
            ],
        ),
        (
            lambda root: shutil.copy(root / "labelsTr" / "p1.nii.gz", root / "labelsTr" / "q7.nii.gz"),
            ["ROOT/labelsTr/q7.nii.gz: there is no image imagesTr/q7_0000.nii.gz; add the image, or remove the map"],
        ),
        (
            lambda root: (root / "imagesTr" / "p1_0000.nii.gz").rename(root / "imagesTr" / "p1_0001.nii.gz"),
            ["ROOT/imagesTr/p1_0001.nii.gz: scan p1 has no channel 0 (its name ends in 0001); call it p1_0000, or set"],
        ),
        (
            lambda root: (root / "imagesTr" / "p1_0000.nii.gz").rename(root / "imagesTr" / "p1.nii.gz"),
            ["ROOT/imagesTr/p1.nii.gz: images are called SUBJECT_0000.nii.gz"],
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
    faults = [finding.text for finding in dataset(root) if not finding.good and "faults to mend" not in finding.text]
    for fault, start in zip(faults, said, strict=True):
        assert fault.startswith(start.replace("ROOT", str(root)))


def test_a_dataset_in_order_is_approved(make_dataset: Make) -> None:
    root = make_dataset(subjects=2, held_out=1)
    (root / "labelsTs" / "p2.nii.gz").unlink()  # to predict, nobody needs it
    assert list(dataset(root)) == [
        Finding("data", True, "2 scans to train on, 1 held out, 24 lesions, 0 faults to mend")
    ]
