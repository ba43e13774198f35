"""Command lines of tests: a training of the stand-in model, its and its losses."""

from __future__ import annotations

import csv
from pathlib import Path

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


def train(*arguments: str) -> MoisCLI:
    with command_line(arguments):
        return MoisCLI(arguments, Model)


def losses(folder: str) -> dict[int, float]:
    with Path(folder, "metrics.csv").open(encoding="utf-8") as file:
        return {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}
