"""Command lines of tests: a training of the stand-in model, its tables, and the line of a failure."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from stand_in import Model

from mois.cli.arguments import command_line
from mois.cli.train import MoisCLI

SMALL = [
    "--model.layer=stand_in.Layer",
    "--data=stand_in.Data",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--tracking.wandb=disabled",
]
FIT = ["fit", *SMALL, "--trainer.default_root_dir=run"]
RUN = Path("run")


def train(*arguments: str) -> MoisCLI:
    with command_line(arguments):
        return MoisCLI(arguments, Model)


def losses(folder: str) -> dict[int, float]:
    with Path(folder, "metrics.csv").open(encoding="utf-8") as file:
        return {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}


def rows(folder: Path = RUN) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def steps() -> list[int]:
    return [int(row["step"]) for row in rows() if row["train/loss"]]


def failing_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a training that has to end with code 2 without a traceback, and return its error line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train(*arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")
