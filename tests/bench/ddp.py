"""What a second process brings: `train.py fit` as one process and as two, each of one thread, step by step in turn."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules.phantoms.phantom import write_dataset
from mois.files.atomic import write_text
from tests.bench.measure import Measurement, Outcome, interleaved
from tests.support.paths import ROOT

EPISODES = 2  # of a step, on all processes together
POLL_S = 0.005
START_S = 300
TRAINING = [
    "--model.backbone=mois.backbones.SAM2",
    "--model.backbone.init_args.size=tiny",
    "--model.backbone.init_args.weights=random",
    "--model.backbone.init_args.patch_px=256",
    "--model.adapter=adapters.Lora",
    "--model.propagation=mois.propagation.Similarity",
    "--data=datamodules.NiftiDataModule",
    "--data.init_args.pixel_mm=1.5",
    "--data.init_args.patch_px=256",
    "--data.init_args.exemplars=1",
    "--data.init_args.split.val_subjects=[]",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_checkpointing=false",
    "--tracking.wandb=disabled",
    "--dry_step=false",
]


class Gate(Callback):
    """Holds a training before every step until a file says that it may take it.

    Args:
        folder: As rank 0 gets to a step it lays down at0, at1, ... there, which say how many CPU seconds it has spent;
            all ranks wait for go0, go1, ...
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.step = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.is_global_zero:
            write_text(self.folder / f"at{self.step}", str(time.process_time()))
        while not (self.folder / f"go{self.step}").exists():
            time.sleep(POLL_S)
        self.step += 1


class CountBarriers(Callback):
    """Counts, on rank 0, the barriers and all-reduces that Python asked for between the first batch and an epoch's end.

    Args:
        file: For the counts and the number of steps, as JSON.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.counts = {"barrier": 0, "all_reduce": 0}
        self.counting = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in self.counts:
            setattr(torch.distributed, name, self._counted(name, getattr(torch.distributed, name)))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            self.counts[name] += self.counting
            return call(*given, **named)

        return counted

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.counting = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        pass  # what Lightning does once a batch has ended belongs to it

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.counting = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            write_text(self.file, json.dumps({**self.counts, "steps": trainer.global_step}))


class Gated:
    """A training that takes one step at a time.

    Args:
        process: Of `train.py fit` with a `Gate`.
        folder: The gate's, and that of its run.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process, self.folder = process, folder
        self.step = 0

    def wait(self) -> None:
        """Wait until it has the data of the next step, which is when the step before has ended on all ranks."""
        end = time.monotonic() + START_S
        while not (self.folder / f"at{self.step}").exists():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self.folder / "said").read_text(encoding="utf-8")[-2000:])
            time.sleep(POLL_S)

    def take_step(self) -> None:
        (self.folder / f"go{self.step}").touch()
        self.step += 1
        self.wait()

    def cpu_s(self, first: int) -> float:
        """Return the CPU seconds that rank 0 spent on a step, from this one on."""
        spent = [float((self.folder / f"at{step}").read_text(encoding="utf-8")) for step in (first, self.step)]
        return (spent[1] - spent[0]) / (self.step - first)

    def losses(self) -> list[float]:
        with (self.folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return [float(row["train/loss"]) for row in csv.DictReader(file)]


def processes(repeats: int) -> Outcome:
    """Training throughput of two processes as a multiple of one's, wall clock (Hiera-tiny, LoRA, 256 px).

    Needs two idle cores; where others work on them too, the CPU seconds of a rank show what it would be.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        write_dataset(Path(folder) / "data", subjects=1, test_subjects=0, seed=0)
        arms = {}
        for count, name in ((1, "one"), (2, "two")):
            arguments = [f"--data.init_args.root={folder}/data", f"--data.init_args.batch_size={EPISODES // count}"]
            arguments += [f"--data.init_args.episodes_per_epoch={EPISODES * (repeats + 2)}"]
            arguments += [f"--trainer.devices={count}", *(["--trainer.strategy=ddp"] if count > 1 else [])]
            arms[name] = running.enter_context(gated(Path(folder) / name, arguments))
        for training in arms.values():
            training.wait()
        seconds = interleaved({name: training.take_step for name, training in arms.items()}, repeats, time.perf_counter)
        pairs = zip(*(training.losses()[:repeats] for training in arms.values()), strict=True)
        apart = max(abs(ours - theirs) / ours for ours, theirs in pairs)
        cpu_s = {name: training.cpu_s(first=1) for name, training in arms.items()}
    if apart > 1e-3:
        raise RuntimeError(f"the losses of one and of two processes are up to {100 * apart:.2f} % apart")
    details = {f"{name}_episodes_per_s": EPISODES / spent for name, spent in seconds.items()}
    details |= {f"{name}_cpu_s_of_rank_0_per_step": spent for name, spent in cpu_s.items()}
    details |= {"losses_apart": apart}
    return Outcome({"ddp2_vs_1": seconds["one"] / seconds["two"]}, details)


def barriers(repeats: int) -> Outcome:
    """Barriers that a rank asks for in a training step of two batches, every step being logged (two ranks, nano)."""
    steps = 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder / "data", subjects=1, test_subjects=0, seed=0)
        changes = ["--model.backbone.init_args.size=nano", "--model.backbone.init_args.patch_px=64"]
        changes += ["--data.init_args.patch_px=64", f"--data.init_args.root={folder}/data", "--trainer.devices=2"]
        changes += ["--data.init_args.batch_size=1", f"--data.init_args.episodes_per_epoch={4 * steps}"]
        changes += ["--trainer.strategy=ddp", "--trainer.accumulate_grad_batches=2"]
        count = ["--trainer.callbacks+=tests.bench.ddp.CountBarriers", f"--trainer.callbacks.init_args.file={folder}/n"]
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), "fit", *TRAINING, *changes, *count,
             f"--trainer.default_root_dir={folder}/run"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True, encoding="utf-8", timeout=START_S, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        counts = json.loads((folder / "n").read_text(encoding="utf-8"))
    if counts["steps"] != steps:
        raise RuntimeError(f"{counts['steps']} steps instead of {steps}")
    return Outcome(
        {"barriers_per_step": counts["barrier"] / steps}, {"all_reduces_per_step": counts["all_reduce"] / steps}
    )


@contextmanager
def gated(folder: Path, arguments: Sequence[str]) -> Iterator[Gated]:
    """Start a training behind a gate; nothing of it outlives the context."""
    folder.mkdir()
    gate = ["--trainer.callbacks+=tests.bench.ddp.Gate", f"--trainer.callbacks.init_args.folder={folder}"]
    run = ["fit", *TRAINING, *arguments, *gate, f"--trainer.default_root_dir={folder}"]
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *run],
            stdout=said,
            stderr=said,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
    try:
        yield Gated(process, folder)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


MEASUREMENTS: list[Measurement] = [processes, barriers]
