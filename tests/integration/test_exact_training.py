"""However a training is cut up, in processes or in time, it is the same training."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mois.records import Episode, Volume
from mois.training.module import ExemplarSegmenter
from tests.support.datasets import save_nifti, scan_with_lesions
from tests.support.small_runs import (
    LORA,
    SCANS,
    config,
    data,
    failing,
    finish,
    folder,
    last,
    losses,
    train,
    train_apart,
    validations,
    wait_for_step,
)


@pytest.mark.ci
def test_two_processes_train_as_one(
    make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_dataset(subjects=4)
    for number, lesions in ((1, 6), (2, 9)):  # scans that score differently: one that counts twice moves the mean
        save_nifti(root / "labelsTr" / f"p{number}.nii.gz", scan_with_lesions(number, lesions)[1])
    demo = [config("demo.yaml"), *SCANS, "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
    demo += [
        "--model.inference.threshold=0.05",
        "--model.inference.peak_threshold=0",
        *data(root, val_subjects="[p1,p2,p3]", episodes_per_epoch=20),
    ]
    with train_apart("fit", *demo, *data(root, batch_size=2), folder(tmp_path / "two")) as process:
        monkeypatch.setattr("mois.training.callbacks.step_seed", lambda *numbers: 7)  # an episode brings its own chance
        one = ["--trainer.devices=1", "--trainer.strategy=auto", *data(root, batch_size=4)]
        train("fit", *demo, *one, folder(tmp_path / "one"))
        finish(process)

    assert len(list((tmp_path / "two" / "prepared").glob("*.scan"))) == 1  # both map it
    assert not (tmp_path / "one" / "prepared").exists()
    assert list(losses(tmp_path / "one")) == [0, 1, 2, 3, 4]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0, abs=1e-4)
    ours, theirs = (last(tmp_path / name)["state_dict"] for name in ("one", "two"))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4
    (scored,), (shared,) = validations(tmp_path / "one"), validations(tmp_path / "two")
    assert scored["val/scan_dice"] > 0
    assert shared == pytest.approx(scored, rel=2e-3, abs=2e-3)  # rounding may turn a voxel


@pytest.mark.ci
def test_a_training_that_is_killed_goes_on_as_if_it_had_not_been(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = ["fit", *LORA, "--trainer.max_epochs=3", "--checkpoints.every_n_steps=3"]
    run += data(make_dataset(subjects=3), val_subjects="[p2]", episodes_per_epoch=4)  # epochs end at 4, 8 and 12
    done = []
    for num_workers, step in ((1, 4), (0, 8)):  # from 3 or 6, and from 6 or 9
        again = [*data(tmp_path / "Dataset001_Cubes", num_workers=num_workers), "--ckpt_path=last", folder(killed)]
        with train_apart(*run, *again) as process:
            wait_for_step(process, killed, step)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        done.append(last(killed)["global_step"])
    train(*run, *data(tmp_path / "Dataset001_Cubes", num_workers=1), "--ckpt_path=last", folder(killed))
    train(*run, folder(whole))

    assert 3 <= done[0] <= done[1] < 12
    assert list(losses(killed)) == list(range(12))
    assert losses(killed) == pytest.approx(losses(whole), rel=0, abs=1e-6)
    assert validations(killed) == validations(whole)
    ours, theirs = (last(path)["state_dict"] for path in (whole, killed))
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-6) for name in ours)


@pytest.mark.ci
def test_a_training_goes_on_with_batches_of_half_as_many_episodes_and_twice_as_many_of_them_a_step(
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("mois.training.callbacks.step_seed", lambda *numbers: 7)  # an episode brings its own chance
    step, seen = ExemplarSegmenter.training_step, []

    def listened(self: ExemplarSegmenter, episode: Episode, batch_idx: int) -> torch.Tensor:
        loss = step(self, episode, batch_idx)
        seen.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(ExemplarSegmenter, "training_step", listened)
    run = ["fit", *LORA, "--trainer.max_epochs=1", "--checkpoints.every_n_steps=2", "--dry_step=false"]
    run += data(make_dataset(subjects=2), episodes_per_epoch=16)  # 4 steps of 4
    train(*run, *data(tmp_path / "Dataset001_Cubes", batch_size=4), folder(tmp_path / "whole"))
    whole, seen[:] = seen[:], []
    half = [
        "--trainer.accumulate_grad_batches=2",
        f"--ckpt_path={tmp_path / 'whole' / 'checkpoints' / 'previous.ckpt'}",
    ]
    train(*run, *data(tmp_path / "Dataset001_Cubes", batch_size=2), *half, folder(tmp_path / "half"))

    assert len(whole) == 4
    assert [(seen[0] + seen[1]) / 2, (seen[2] + seen[3]) / 2] == pytest.approx(whole[2:], rel=0, abs=1e-4)
    ours, theirs = (last(tmp_path / name) for name in ("whole", "half"))
    assert ours["global_step"] == theirs["global_step"] == 4
    ours, theirs = ours["state_dict"], theirs["state_dict"]
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4
    said = failing(capsys, *run, *data(tmp_path / "Dataset001_Cubes", batch_size=4), *half, folder(tmp_path / "no"))
    assert said.startswith(
        "the checkpoint was trained with 4 episodes a step, this run has 8; set data.init_args.batch"
    )


@pytest.mark.ci
def test_a_training_that_dies_while_it_validates_validates_when_it_goes_on(
    make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["fit", *LORA, "--trainer.max_epochs=2", "--checkpoints.every_n_steps=2"]  # steps 2 and 4 end an epoch
    run += data(make_dataset(subjects=2), val_subjects="[p1]", episodes_per_epoch=2)
    train(*run, folder(tmp_path / "whole"))
    validate = ExemplarSegmenter.validation_step

    def dying(self: ExemplarSegmenter, volume: Volume, batch_idx: int) -> None:
        if self.global_step == 4:
            raise RuntimeError("power cut")
        validate(self, volume, batch_idx)

    monkeypatch.setattr(ExemplarSegmenter, "validation_step", dying)
    with pytest.raises(RuntimeError, match="power cut"):
        train(*run, folder(tmp_path / "cut"))
    monkeypatch.undo()
    train(*run, folder(tmp_path / "cut"), "--ckpt_path=last")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert len(validations(tmp_path / "whole")) == 2
    assert validations(tmp_path / "cut") == validations(tmp_path / "whole")
