"""Meta's smallest size at 512 pixels: LoRA, two ranks, an interruption, W&B offline, a whole scan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.small_runs import BACKBONE, config, data, finish, folder, last, losses, train_apart, validations
from tests.support.wandb_records import read_back


@pytest.mark.ci
def test_size_tiny_at_512_pixels_trains_on_two_ranks_goes_on_exactly_and_validates(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    """SAM2 tiny with random weights, LoRA, `LearnedMatching`, and TorchIO's transforms in every episode."""
    run = [config("sam2.yaml"), f"{BACKBONE}weights=random", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    run += ["--trainer.strategy=ddp", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]
    run += ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=2", "--dry_step=false"]
    run += ["--validate_first=false", "--tracking.wandb=offline", "--model.protocol.prompted=2"]
    run += ["--model.propagation.init_args.width=32", "--model.learning.corrections=1"]  # for memory and time
    run += [
        f"--data.init_args.augmentation.{name}=1" for name in ("bias", "gamma", "noise", "ghosting", "motion", "affine")
    ]
    scans = make_dataset(subjects=2)
    run += data(scans, pixel_mm=0.2, exemplars=1, clip=3, batch_size=1, episodes_per_epoch=2, num_workers=0, fold=0)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    unseen = "--trainer.limit_val_batches=0"
    for more, path in (
        ([unseen, "--trainer.max_steps=1"], stopped),
        ([unseen, "--ckpt_path=last"], stopped),
        ([], whole),
    ):
        with train_apart("fit", *run, *more, folder(path)) as process:
            finish(process)

    assert list(losses(stopped)) == [0, 1]
    assert losses(stopped) == losses(whole)
    ours, theirs = (last(path)["state_dict"] for path in (whole, stopped))
    assert any("lora_" in name for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    (scored,) = validations(whole)  # a whole scan
    recorded = json.dumps(read_back(whole))
    for word in ("right", "wrong", "swapped", "no_exemplars"):
        assert 0 <= scored[f"val/{word}"] <= 1
        assert f"val/{word}" in recorded
