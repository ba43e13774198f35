"""What a training leaves to share is the best model that it found, calibrated on what its validation found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mois.sharing.bundle import Bundle
from mois.sharing.calibration import Calibration
from mois.training.checkpoints.checkpoint_content import RECORD
from mois.training.checkpoints.checkpoint_io import read_training
from tests.support.small_runs import LORA, data, folder, train


@pytest.mark.slow
def test_a_training_leaves_the_bundle_of_its_best_checkpoint(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    scans = data(make_dataset(subjects=2), val_subjects="[p1]", episodes_per_epoch=2)
    cli = train(
        "fit",
        *LORA,
        *scans,
        "--trainer.max_epochs=1",
        "--model.companions=[{class_path: mois.propagation.Prototype}]",
        "--model.inference.threshold=0.01",
        "--model.inference.track_mm=6",
        "--bundle.false_per_scan=1",
        folder(run),
    )
    best = read_training(run / "checkpoints" / "best.ckpt")
    found = best[RECORD]["validation"][""]
    bundle = Bundle.load(run / "bundle")
    held = {
        **dict(bundle.backbone.named_parameters("backbone")),
        **dict(bundle.propagation.named_parameters("propagation")),
    }
    for name, tensor in best["state_dict"].items():
        assert name.startswith("companions.") or torch.equal(held[name], tensor), name

    assert found["peaks"], "an untrained model at so low a threshold finds something"
    assert bundle.calibration == Calibration.fit(found["peaks"], found["hits"])
    assert found["scans"] == 2  # one scan with two classes
    budget = Calibration.peak_for_budget(found["peaks"], found["hits"], scans=2, false_per_scan=1)
    assert bundle.inference.peak_threshold == pytest.approx(budget)
    assert bundle.figures["scan_dice"] == pytest.approx(found["figures"]["scan_dice"])
    assert bundle.provenance["data"] != "unknown"

    volume = next(iter(cli.datamodule.val_dataloader()))
    model = cli.model.eval()
    ours, theirs = model.segmenter(), bundle.segmenter()
    assert torch.equal(ours.propagate(ours.encode(volume)), theirs.propagate(theirs.encode(volume)))
    companion = Bundle.load(run / "bundle_prototype")
    assert companion.identity.propagation == "mois.propagation.prototype.Prototype"
    assert "scan_dice" in companion.figures
    assert not [path for path in run.rglob("*") if path.suffix in (".pt", ".pkl", ".bin") and "bundle" in str(path)]


@pytest.mark.slow
def test_a_training_without_validation_leaves_a_bundle_that_says_so(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train("fit", *LORA, *data(make_dataset(subjects=1), val_subjects="[]"), "--trainer.max_steps=1", folder(run))
    bundle = Bundle.load(run / "bundle")
    assert bundle.calibration is None
    assert bundle.figures == {}
    assert "No validation of these weights is recorded." in (run / "bundle" / "README.md").read_text(encoding="utf-8")
