"""What a training and a test leave behind: weights, tables, label maps on the scanner's grid, pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file

from mois.backbones import SAM2
from mois.backbones.weights import bundled_file
from mois.evaluation.figures import KEYS
from mois.testing import example_patches
from tests.support.datasets import save_nifti, scan_with_lesions
from tests.support.small_runs import LORA, SCANS, config, data, folder, train

OBLIQUE = np.array(  # slices across the first axis, turned by 20 degrees, the second axis from left to right
    [[0, 1.879, -0.684, 40], [6, 0, 0, -20], [0, 0.684, 1.879, -50], [0, 0, 0, 1]]
)
# an untrained model is shy
SWEEP = [f"--model.protocol.{key}" for key in ("counts=[0,1,2]", "curve_clicks=[1,3]", "rules=paper")]
EASY = [f"--model.inference.{key}" for key in ("threshold=0.02", "peak_threshold=0", "min_lesion_voxels=1")]


def read_metrics(path: Path) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    return result


def figure(summary: dict[str, Any], name: str) -> Any:
    for part in KEYS[name]:
        summary = summary[part]
    return summary


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def two_test_scans(make_dataset: Callable[..., Path]) -> Path:
    """Return a dataset with two test scans: p1 as scanned, p2 oblique, with its axes in another order."""
    root = make_dataset(subjects=1, held_out=2)
    image, classes, _ = (array.transpose(1, 0, 2) for array in scan_with_lesions(2))
    save_nifti(root / "imagesTs" / "p2_0000.nii.gz", image, OBLIQUE)
    save_nifti(root / "labelsTs" / "p2.nii.gz", classes, OBLIQUE)
    return root


def test_a_test_writes_tables_maps_and_pictures(two_test_scans: Path, tmp_path: Path) -> None:
    root, out = two_test_scans, tmp_path / "run" / "test"
    train("test", *LORA, *data(root), *EASY, *SWEEP, folder(tmp_path / "run"))

    metrics = read_metrics(out / "metrics.json")
    assert (metrics["summary"]["n_subjects"], metrics["summary"]["n_patients"]) == (2, 2)
    for name in ("right", "wrong", "swapped", "no_exemplars", "unprompted_dice", "lesion_f1", "scan_dice"):
        assert 0 <= figure(metrics["summary"], name)["mean"] <= 1
        assert figure(metrics["summary"], name)["n"] == 2
    points = [(point["clicks"], point["count"]) for point in metrics["curve"]["points"]]
    assert points == [(1, 0), (1, 1), (1, 2), (3, 0), (3, 1), (3, 2)]
    assert metrics["protocol"]["curve_clicks"] == [1, 3]
    assert metrics["summary"]["paper"]["f1"]["n"] == 2
    assert metrics["provenance"]["backbone"]["source"] == "random"
    assert len(metrics["provenance"]["data"]) == 64
    assert 0 < metrics["provenance"]["trainable_fraction"] < 0.15

    subjects = read_table(out / "subjects.csv")
    assert [row["subject"] for row in subjects] == ["p1", "p2"]
    assert {(row["classes"], row["lesions"]) for row in subjects} == {("1 2", "12")}
    mean = np.mean([float(row["unprompted_dice"]) for row in subjects])
    assert mean == pytest.approx(metrics["summary"]["unprompted"]["dice"]["mean"])
    lesions = read_table(out / "lesions.csv")
    assert len(lesions) == 24
    assert {row["role"] for row in lesions} == {"prompted", "promptable", "never"}
    cube_ml = 3 * 2 * 3 * 24 / 1000
    assert all(float(row["volume_ml"]) == pytest.approx(cube_ml, rel=1e-3) for row in lesions)
    assert len(read_table(out / "curve.csv")) == 24  # 2 scans, 2 classes, 2 clicks, 3 counts
    assert {row["subject"] for row in read_table(out / "candidates.csv")} == {"p1", "p2"}

    for subject in ("p1", "p2"):
        scan = nib.load(root / "imagesTs" / f"{subject}_0000.nii.gz")
        for target_class in (1, 2):
            found = nib.load(out / "predictions" / f"{subject}_class{target_class}.nii.gz")
            assert found.shape == scan.shape
            assert np.array_equal(found.affine, scan.affine)
            assert found.get_data_dtype() == np.int32
            ids = np.asarray(found.dataobj)
            assert 0 <= ids.min() <= ids.max() > 0
            assert Image.open(out / "overlays" / f"{subject}_class{target_class}.png").size[0] > 100


def test_with_one_class_what_needs_another_is_null(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    root = make_dataset(subjects=1, held_out=1)
    for label in root.glob("labelsT*/*.nii.gz"):
        save_nifti(label, (np.asarray(nib.load(label).dataobj) > 0).astype(np.uint8))
    train("test", *LORA, *data(root), folder(tmp_path / "run"))
    out = tmp_path / "run" / "test"
    figures = read_metrics(out / "metrics.json")["summary"]["conditioning"]
    for name in ("wrong", "swapped"):
        assert figures[name] == {"mean": None, "ci95": None, "n": 0}
    assert figures["right"]["n"] == figures["no_exemplars"]["n"] == 1
    (row,) = read_table(out / "subjects.csv")
    assert row["conditioning_wrong"] == row["conditioning_swapped"] == ""
    assert len(read_table(out / "lesions.csv")) == 12


def test_scans_without_labels_are_predicted_on_their_own_grid(two_test_scans: Path, tmp_path: Path) -> None:
    for label in two_test_scans.glob("labelsTs/*"):
        label.unlink()
    train("predict", *LORA, *data(two_test_scans), *EASY, folder(tmp_path / "run"))
    for subject in ("p1", "p2"):
        scan = nib.load(two_test_scans / "imagesTs" / f"{subject}_0000.nii.gz")
        found = nib.load(tmp_path / "run" / "predict" / "predictions" / f"{subject}.nii.gz")
        assert found.shape == scan.shape
        assert np.array_equal(found.affine, scan.affine)


def test_frozen_weights_stay_those_of_the_file_and_the_adapter_is_a_file_of_peft(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    before = bundled_file("nano.safetensors").read_bytes()
    scans = data(make_dataset(subjects=1), val_subjects="[]", batch_size=1, num_workers=0)
    one_process = ["--trainer.devices=1", "--trainer.strategy=auto", "--trainer.max_steps=3"]
    cli = train("fit", config("demo.yaml"), *SCANS, *scans, *one_process, folder(tmp_path / "run"))

    assert bundled_file("nano.safetensors").read_bytes() == before
    file = load_file(bundled_file("nano.safetensors"))
    held = {name.replace(".base_layer", ""): tensor for name, tensor in cli.model.backbone.weights().items()}
    lora = {name: tensor for name, tensor in held.items() if ".lora_" in name}
    assert held.keys() - lora.keys() == file.keys()
    for name, tensor in file.items():
        assert held[name].numpy().tobytes() == tensor.float().numpy().tobytes(), name
    ups = [tensor for name, tensor in lora.items() if ".lora_B." in name]  # they start at 0
    assert ups
    assert all(bool(tensor.any()) for tensor in ups)

    fresh = SAM2("nano", "bundled")
    images, _ = example_patches(2, 64)
    plain = fresh.encode(images)
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "run" / "bundle" / "adapter")
    with torch.no_grad():
        ours, theirs = cli.model.backbone.encode(images), loaded.encode(images)
    assert not torch.equal(plain.levels[-1], ours.levels[-1])
    for level, same in zip(ours.levels, theirs.levels, strict=True):
        assert torch.equal(level, same)
    shared = load_file(tmp_path / "run" / "bundle" / "propagation.safetensors")
    assert all(torch.equal(shared[name], tensor) for name, tensor in cli.model.propagation.state_dict().items())
