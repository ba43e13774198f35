"""Whole datasets that several processes evaluate together give what one process gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from mois.cli import main
from tests.support.datasets import save_nifti, scan_with_lesions
from tests.support.example_bundles import random_bundle
from tests.support.paths import ROOT
from tests.support.small_runs import LORA, data, finish, folder, train, train_apart

Make = Callable[..., Path]
EASY = ("--model.inference.threshold=0.02", "--model.inference.peak_threshold=0", "--model.protocol.counts=[0,1]")


@pytest.fixture
def three_test_scans(make_dataset: Make) -> Path:
    """Three scans to test on, which do not divide by two, and which differ."""
    root = make_dataset(subjects=1, held_out=3)
    for number, lesions in ((1, 6), (2, 9)):
        save_nifti(root / "labelsTs" / f"p{number}.nii.gz", scan_with_lesions(number, lesions)[1])
    return root


def measured(folder: Path) -> Any:
    """Return what stands in metrics.json but for what made it and how long that took."""

    def without_time(part: Any) -> Any:
        if not isinstance(part, dict):
            return [without_time(one) for one in part] if isinstance(part, list) else part
        return {name: without_time(one) for name, one in part.items() if name not in ("seconds", "provenance")}

    return without_time(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))


@pytest.mark.ci
def test_two_processes_evaluate_as_one(three_test_scans: Path, tmp_path: Path) -> None:
    model = random_bundle(tmp_path / "bundle")
    command = [
        "evaluate",
        f"--bundle={model}",
        f"--data={three_test_scans}",
        "--reader.prompted=2",
        "--protocol.counts=[0,1]",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         "-m", "mois.cli", *command, f"--out={tmp_path / 'two'}"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, encoding="utf-8", timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report.html") == 1
    main([*command, f"--out={tmp_path / 'one'}"])
    assert measured(tmp_path / "two") == measured(tmp_path / "one")
    for name in ("lesions.csv", "candidates.csv"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()
    assert sorted(path.name for path in (tmp_path / "two" / "predictions").iterdir()) == [
        f"p{scan}_class{target_class}.nii.gz" for scan in (1, 2, 3) for target_class in (1, 2)
    ]


@pytest.mark.ci
def test_two_processes_test_and_predict_as_one(three_test_scans: Path, tmp_path: Path) -> None:
    run = [*LORA, *data(three_test_scans), *EASY]
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", folder(tmp_path / "two")]
    one = ["--trainer.devices=1", "--trainer.strategy=auto", folder(tmp_path / "one")]
    with train_apart("test", *run, *two) as process:
        train("test", *run, *one)
        finish(process)
    assert measured(tmp_path / "two" / "test") == measured(tmp_path / "one" / "test")

    with train_apart("predict", *run, *two) as process:
        finish(process)
    for scan in ("p1_class1", "p2_class2", "p3_class1"):  # a prediction of annotated scans prompts as a test does
        predicted, tested = f"two/predict/predictions/{scan}.nii.gz", f"one/test/predictions/{scan}.nii.gz"
        assert np.array_equal(nib.load(tmp_path / predicted).dataobj, nib.load(tmp_path / tested).dataobj), scan


@pytest.mark.ci
def test_a_bad_scan_of_one_rank_ends_both_with_its_line(three_test_scans: Path, tmp_path: Path) -> None:
    bad = three_test_scans / "imagesTs" / "p2_0000.nii.gz"  # the second: rank 1's
    bad.write_bytes(bad.read_bytes()[:-500])
    run = ["predict", *LORA, *data(three_test_scans), "--trainer.devices=2", "--trainer.strategy=ddp"]
    with train_apart(*run, folder(tmp_path / "run")) as process:
        _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in said
    (line,) = {line for line in said.splitlines() if "error" in line.lower()}
    assert line.startswith("error: ")
    assert "p2_0000.nii.gz" in line
