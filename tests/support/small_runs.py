"""Real runs of the command line, so small that one takes two seconds: nano, 64 pixel patches, scans of 40 x 8 x 48."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from mois.cli.arguments import command_line
from mois.cli.train import MoisCLI, main, quieten
from mois.sharing.old_settings import SPLIT
from tests.support.paths import ROOT

BACKBONE = "--model.backbone.init_args."
SMALL = [
    "--data.init_args.patch_px=64",
    "--data.init_args.exemplars=2",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--model.inference.tile_px=64",
    "--model.protocol.prompted=2",
    "--tracking.wandb=disabled",
    "--validate_first=false",
]
SCANS = [*SMALL, "--data.init_args.pixel_mm=2"]
LORA = [
    "--model.backbone=mois.backbones.SAM2",
    f"{BACKBONE}weights=random",
    "--model.adapter=adapters.Lora",
    "--model.propagation=mois.propagation.Similarity",
    "--data=datamodules.NiftiDataModule",
    *SCANS,
    "--data.init_args.batch_size=1",
]


def config(name: str) -> str:
    """Return the argument for a YAML that we ship."""
    return f"--config={ROOT / 'configs' / name}"


def folder(path: Path) -> str:
    """Return the argument that puts a run into this folder."""
    return f"--trainer.default_root_dir={path}"


def train(*arguments: str) -> MoisCLI:
    """Run `python train.py ARGUMENTS` in this process; return what it made."""
    quieten()
    with command_line(arguments):
        return MoisCLI(arguments)


def failing(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command line that has to end with code 2, and return the one line that it says."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if "error" in line.lower()]
    assert said.endswith(line + "\n")
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@contextmanager
def train_apart(*arguments: str, launcher: Sequence[str] = (sys.executable,)) -> Iterator[subprocess.Popen[str]]:
    """Start `LAUNCHER train.py ARGUMENTS`; nothing of it outlives the context."""
    process = subprocess.Popen(
        [*launcher, str(ROOT / "train.py"), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def finish(process: subprocess.Popen[str], timeout_s: float = 600) -> None:
    """Wait for the good end of a process."""
    _, said = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, said


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int, timeout_s: float = 600) -> None:
    """Wait until a run has logged this step."""
    end = time.monotonic() + timeout_s
    while step not in losses(run):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"step {step} was not reached within {timeout_s} s"
        time.sleep(0.02)


def ranks(process: subprocess.Popen[str]) -> list[int]:
    """Return the ids of the ranks that a process started."""
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "train.py"], capture_output=True, encoding="utf-8")
    return [int(number) for number in found.stdout.split()]


def rows(run: Path) -> list[dict[str, str]]:
    """Return metrics.csv; nothing where there is none yet."""
    file = run / "metrics.csv"
    if not file.is_file():
        return []
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def losses(run: Path) -> dict[int, float]:
    """Return the loss of every step."""
    return {int(row["step"]): float(row["train/loss"]) for row in rows(run) if row.get("train/loss")}


def validations(run: Path) -> list[dict[str, float]]:
    """Return the figures of every validation that were measured."""
    figures = [{name: float(value) for name, value in row.items() if "val/" in name and value} for row in rows(run)]
    return [row for row in figures if row]


def last(run: Path) -> dict[str, Any]:
    """Return last.ckpt."""
    checkpoint: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint


def data(root: Path, **options: object) -> Sequence[str]:
    """Return the arguments for a dataset; options are init_args of its datamodule, or fields of its split."""
    given = {
        "root": root,
        **{f"split.{SPLIT.fields[name]}" if name in SPLIT.fields else name: value for name, value in options.items()},
    }
    return [f"--data.init_args.{name}={str(value).replace(chr(39), '')}" for name, value in given.items()]
