"""Whatever befalls a training, it ends soon and with one line, and goes on as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from mois.cli.train import main
from mois.training.module import ExemplarSegmenter
from tests.support.datasets import write_dataset
from tests.support.paths import ROOT
from tests.support.small_runs import (
    LORA,
    SMALL,
    data,
    failing,
    folder,
    last,
    losses,
    ranks,
    train,
    train_apart,
    validations,
    wait_for_step,
)

STEPS = 10
TWO_RANKS = ["--trainer.devices=2", "--trainer.strategy=lightning.pytorch.strategies.DDPStrategy"]
TWO_RANKS += ["--trainer.strategy.init_args.timeout=0:02:00", "--data.init_args.batch_size=1"]
END_S = 600
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("same_process")]


class Whole(NamedTuple):
    """A training of two epochs of five steps that nothing happened to.

    Attributes:
        arguments: Its command line, but for the folder.
        losses: By step.
        validations: After each epoch.
        after_6: Its checkpoint after step 6.
    """

    arguments: Sequence[str]
    losses: dict[int, float]
    validations: list[dict[str, float]]
    after_6: Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    root = tmp_path_factory.mktemp("whole")
    scans = data(write_dataset(root / "Dataset001_Cubes"), val_subjects="[p1]", episodes_per_epoch=STEPS, batch_size=2)
    arguments = ["fit", *LORA, *scans, "--trainer.max_epochs=2", "--checkpoints.every_n_steps=3"]
    arguments.append("--dry_step=false")
    train(*arguments, "--checkpoints.every_n_steps=6", folder(root / "run"))
    assert list(losses(root / "run")) == list(range(STEPS))
    assert len(validations(root / "run")) == 2
    return Whole(arguments, losses(root / "run"), validations(root / "run"), root / "run/checkpoints/previous.ckpt")


@pytest.fixture
def at_step() -> Iterator[Callable[..., None]]:
    """Return what lets something happen once, in the training or validation step that follows so many steps."""
    with pytest.MonkeyPatch.context() as patch:

        def arrange(hook: str, step: int, happen: Callable[[], object]) -> None:
            patch.undo()
            usual, waiting = getattr(ExemplarSegmenter, hook), [happen]

            def unusual(self: ExemplarSegmenter, *args: Any) -> Any:
                result = usual(self, *args)
                if self.global_step == step and waiting:
                    waiting.pop()()
                return result

            patch.setattr(ExemplarSegmenter, hook, unusual)

        yield arrange


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def stopped(capsys: pytest.CaptureFixture[str], number: signal.Signals, *arguments: str) -> int:
    """Run a command line that a signal ends; return the step after which it says that it was."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 128 + number
    return step_in(capsys.readouterr().err, number)


def step_in(said: str, number: signal.Signals) -> int:
    """Return the step of the one line on a training that a signal ended."""
    line = rf"^stopped by {number.name} after step (\d+); go on with --ckpt_path last"
    (step,) = re.findall(line, said, re.MULTILINE)
    return int(step)


@pytest.mark.ci
def test_a_training_that_meets_one_fault_after_another_is_the_same_training(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str], at_step: Callable[..., None]
) -> None:
    run = [*whole.arguments, folder(tmp_path)]
    file = tmp_path / "checkpoints" / "last.ckpt"

    at_step("training_step", 4, lambda: [worker.kill() for worker in multiprocessing.active_children()])
    line = failing(capsys, *run, "--data.init_args.num_workers=1")
    assert re.match(
        r"DataLoader worker .* (killed by signal: Killed|exited unexpectedly), maybe for want of memory; .*--ckpt_path",
        line,
    )
    assert last(tmp_path)["global_step"] == 3

    run.append("--ckpt_path=last")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_step("training_step", 5, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard)))
    try:
        line = failing(capsys, *run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert line.startswith(f"{file}: File too large, so that no checkpoint was written; the one before it stands")
    assert {left.name for left in file.parent.iterdir()} == {"start.ckpt", "best.ckpt", "last.ckpt"}
    assert last(tmp_path)["global_step"] == 3

    at_step("training_step", 4, terminate)  # the validation that follows is not waited for
    assert stopped(capsys, signal.SIGTERM, *run) == 5
    assert last(tmp_path)["global_step"] == 3

    at_step("validation_step", 5, terminate)
    assert stopped(capsys, signal.SIGTERM, *run) == 5
    assert last(tmp_path)["global_step"] == 5

    at_step("training_step", 7, terminate)
    assert stopped(capsys, signal.SIGTERM, *run) == 8
    assert last(tmp_path)["global_step"] == 8

    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    line = failing(capsys, *run)
    assert re.match(rf"ckpt_path={file}: it is damaged \(.*\); go on .* with --ckpt_path previous$", line)

    train(*run, "--ckpt_path=previous")
    assert losses(tmp_path) == pytest.approx(whole.losses, rel=0, abs=1e-6)
    assert validations(tmp_path) == whole.validations


@pytest.mark.ci
def test_a_job_that_slurm_takes_away_is_requeued_and_goes_on(
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at_step: Callable[..., None],
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho $@ >> {tmp_path / 'asked'}\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    job = {"JOB_ID": 7, "JOB_NAME": "mois", "NNODES": 1, "NTASKS": 1, "NTASKS_PER_NODE": 1, "PROCID": 0, "LOCALID": 0}
    for name, value in {**job, "NODEID": 0, "NODELIST": "localhost"}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    run = [*whole.arguments, f"--trainer={ROOT / 'configs/trainer/ddp_slurm.yaml'}", *SMALL, "--trainer.devices=1"]
    run += ["--trainer.max_epochs=2", "--ckpt_path=last", folder(tmp_path / "run")]

    at_step("training_step", 4, lambda: os.kill(os.getpid(), signal.SIGUSR1))  # a validation follows
    assert stopped(capsys, signal.SIGUSR1, *run) == 5
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert last(tmp_path / "run")["global_step"] == 3

    torch.distributed.destroy_process_group()
    at_step("training_step", 6, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert stopped(capsys, signal.SIGUSR1, *run) == 7
    assert (tmp_path / "asked").read_text() == "requeue 7\n" * 2
    assert last(tmp_path / "run")["global_step"] == 7
    assert not list((tmp_path / "run").glob("*.ckpt"))  # Lightning's copy, which it would test with unasked

    torch.distributed.destroy_process_group()
    train(*run)
    assert losses(tmp_path / "run") == pytest.approx(whole.losses, rel=0, abs=1e-6)
    assert validations(tmp_path / "run") == whole.validations


@pytest.mark.parametrize(("at", "saved"), [pytest.param(2, 2, id="before it"), pytest.param(3, 3, id="after it")])
@pytest.mark.ci
def test_a_validation_within_an_epoch_is_made_once_whenever_the_training_stops(
    make_dataset: Callable[..., Path], tmp_path: Path, at_step: Callable[..., None], at: int, saved: int
) -> None:
    scans = data(make_dataset(subjects=2), val_subjects="[p1]", episodes_per_epoch=6, batch_size=1)
    run = ["fit", *LORA, *scans, "--trainer.max_epochs=1", "--trainer.val_check_interval=3", "--dry_step=false"]
    run.append("--checkpoints.every_n_steps=1")
    train(*run, folder(tmp_path / "whole"))
    again = [*run, "--ckpt_path=last", folder(tmp_path / "again")]

    def fail() -> None:
        raise ZeroDivisionError

    at_step("training_step", at, (lambda: os.kill(os.getpid(), signal.SIGINT)) if at == 2 else fail)
    with pytest.raises(SystemExit if at == 2 else ZeroDivisionError):
        main(again)
    assert last(tmp_path / "again")["global_step"] == saved
    train(*again)
    assert losses(tmp_path / "again") == pytest.approx(losses(tmp_path / "whole"), rel=0, abs=1e-6)
    assert validations(tmp_path / "again") == validations(tmp_path / "whole")
    assert len(validations(tmp_path / "whole")) == 2


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, TWO_RANKS), (signal.SIGINT, [])])
@pytest.mark.ci  # make test has tests/unit/training/test_signals.py
def test_a_signal_to_all_processes_stops_them_at_one_step_and_one_process_goes_on(
    whole: Whole, tmp_path: Path, number: signal.Signals, processes: list[str]
) -> None:
    with train_apart(*whole.arguments, *processes, "--data.init_args.num_workers=1", folder(tmp_path)) as process:
        wait_for_step(process, tmp_path, 0)
        os.killpg(process.pid, number)  # as a terminal, torchrun and SLURM do: the data workers get it too
        _, said = process.communicate(timeout=END_S)
    assert process.returncode == 128 + number, said
    step = step_in(said, number)
    assert step == len(losses(tmp_path)) < STEPS
    assert last(tmp_path)["global_step"] == (3 if step == 5 else step)  # what a validation follows is not saved
    train(*whole.arguments, "--ckpt_path=last", folder(tmp_path))
    assert losses(tmp_path) == pytest.approx(whole.losses, rel=0, abs=1e-4)
    assert validations(tmp_path)[-1] == pytest.approx(whole.validations[-1], rel=2e-3, abs=2e-3)  # or a voxel turns


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.ci
def test_a_rank_that_is_killed_ends_the_training_with_one_line(whole: Whole, tmp_path: Path, rank: int) -> None:
    with train_apart(*whole.arguments, *TWO_RANKS, "--trainer.max_epochs=99", folder(tmp_path)) as process:
        wait_for_step(process, tmp_path, 3)
        (other,) = ranks(process)
        os.kill(other if rank else process.pid, signal.SIGKILL)
        _, said = process.communicate(timeout=END_S)  # which returns when nobody is left who could say something
    assert process.returncode == (1 if rank else -signal.SIGKILL)
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if "error" in line.lower()]
    assert line.startswith("error: rank 1 was killed by SIGKILL" if rank else "error: rank 0 died")
    assert line.endswith(f"go on with --ckpt_path last ({tmp_path / 'checkpoints' / 'last.ckpt'})")


@pytest.mark.ci
def test_torchrun_goes_on_with_two_ranks_and_ends_when_one_is_killed(whole: Whole, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(whole.after_6, tmp_path / "checkpoints" / "last.ckpt")
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc_per_node=2"]
    run = [*whole.arguments, *TWO_RANKS, "--ckpt_path=last", folder(tmp_path)]
    with train_apart(*run, launcher=torchrun) as process:
        wait_for_step(process, tmp_path, 7)
        os.kill(ranks(process)[1], signal.SIGKILL)
        _, said = process.communicate(timeout=END_S)
    assert process.returncode == 1
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: another rank died")
    assert line.endswith(f"go on with --ckpt_path last ({tmp_path / 'checkpoints' / 'last.ckpt'})")
    again = losses(tmp_path)
    assert again == pytest.approx({step: whole.losses[step] for step in again}, rel=0, abs=1e-4)
    assert {6, 7} <= again.keys()
