"""Trains each adapter of configs/adapters for as much CPU time, and tests it: the rows of docs/adapters.md.

`python -m tests.bench.adapters [--minutes 6] [--only NAME,...] [--seeds 0,1,2] [--checks]`

A row is a training on the demo's scans (two held-back lesion types, 10 phantoms) and a test on 4 others. Rows that are
in the file of rows are not measured again, so the table grows in several sittings. `--checks` writes which checks of
`mois.testing.check_adapter` each method passes. The page and its plot are drawn anew at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.phantoms.lesion_types import draw_lesion_types
from datamodules.phantoms.phantom import write_dataset
from mois.cli.arguments import command_line
from mois.cli.train import MoisCLI, quieten
from mois.evaluation.figures import KEYS
from mois.interfaces import Adapter
from mois.propagation import Sam2Only
from mois.testing import check_adapter, nano_backbone
from tests.bench.adapters_page import CHECKS, draw, read_rows, write_rows
from tests.support.adapter_methods import METHODS, adapter_of, train_by_two_ranks
from tests.support.cpu_limit import CpuLimit
from tests.support.paths import ROOT

ROWS = ROOT / "docs" / "adapters.json"
TESTS = 4  # scans of the test
WORDS = ("right", "wrong", "no_exemplars", "prompted_dice")


def measure(name: str, seed: int, minutes: float, out: Path) -> dict[str, Any]:
    """Train and test a method; return its row.

    Args:
        name: Name of a config in configs/adapters.
        seed: Seed of the training and of the simulated reader.
        minutes: CPU minutes of the training.
        out: Folder of data and runs.
    """
    run = out / f"{name}_{seed}_{minutes:g}"
    shutil.rmtree(run, ignore_errors=True)  # of a measurement that was broken off
    tests = [f"phantom_{12 + scan:04d}" for scan in range(TESTS)]
    common = [
        *("--config", str(ROOT / "configs" / "demo.yaml"), "--config", str(METHODS[name])),
        *(f"--seed_everything={seed}", f"--data.init_args.root={_data(out)}", "--data.init_args.num_workers=0"),
        *("--trainer.devices=1", "--trainer.strategy=auto", "--trainer.enable_progress_bar=false"),
        *("--trainer.accelerator=cpu", f"--trainer.default_root_dir={run}", "--tracking.wandb=disabled"),
        f"--data.init_args.split.test_subjects=[{','.join(tests)}]",
    ]
    limit = ["--trainer.callbacks+=tests.support.cpu_limit.CpuLimit", f"--trainer.callbacks.minutes={minutes}"]
    length = ["--trainer.max_epochs=-1", "--trainer.max_steps=100000", "--trainer.limit_val_batches=0"]
    fit = _command("fit", *common, *limit, *length, "--dry_step=false", "--validate_first=false")
    (clock,) = (each for each in fit.trainer.callbacks if isinstance(each, CpuLimit))  # type: ignore[attr-defined]
    _command("test", *common, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}")
    summary = json.loads((run / "test" / "metrics.json").read_text(encoding="utf-8"))["summary"]
    trained = sum(tensor.numel() for tensor in fit.model.backbone.parameters() if tensor.requires_grad)
    return {
        "method": name,
        "seed": seed,
        "minutes": minutes,
        "steps": fit.trainer.global_step,
        "cpu_s": round(clock.spent_s, 1),
        "trained": trained,
        "share": round(trained / sum(tensor.numel() for tensor in nano_backbone().parameters()), 5),
        "kb": round((run / "bundle" / "adapter" / "adapter_model.safetensors").stat().st_size / 1000, 1),
        **{word: _at(summary, KEYS[word]) for word in WORDS},
    }


def checks(name: str) -> dict[str, bool | None]:
    """Return which checks a method passes, that of two ranks (made before) among them; None for what it does not have.

    Raises:
        Exception: If a check fails.
    """
    adapter = adapter_of(name)
    check_adapter(adapter)
    passed: dict[str, bool | None] = dict.fromkeys(CHECKS, True)
    if type(adapter).disabled is Adapter.disabled:
        passed["off"] = None
    backbone, fresh = nano_backbone(), adapter_of(name)
    fresh.attach(backbone, Sam2Only())
    try:
        fresh.merge()
    except ValueError:
        passed["merged"] = None
    return passed


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the rows that are missing, and draw the page."""
    parser = argparse.ArgumentParser(description="Train and test each adapter for as much CPU time.")
    parser.add_argument("--out", type=Path, default=Path("runs/adapters"), help="folder of data and runs")
    parser.add_argument("--rows", type=Path, default=ROWS, help="file of the rows; the page lies beside it")
    parser.add_argument("--minutes", type=float, default=6, help="CPU minutes of each training; 0 trains nothing")
    parser.add_argument("--only", default="", help="names of methods, with commas between them")
    parser.add_argument("--seeds", default="0", help="seeds, with commas between them")
    parser.add_argument("--checks", action="store_true", help="also check each method anew")
    given = parser.parse_args(arguments)
    names = [name for name in given.only.split(",") if name] or list(METHODS)
    if unknown := sorted(set(names) - METHODS.keys()):
        parser.error(f"--only={','.join(unknown)}: there are {', '.join(METHODS)}")
    torch.set_num_threads(1)
    stored = read_rows(given.rows)
    if given.checks:
        with tempfile.TemporaryDirectory() as folder:
            train_by_two_ranks(Path(folder), names)
        found = {name: checks(name) for name in names}
        stored = read_rows(given.rows)
        stored["checks"] |= found
        write_rows(stored, given.rows)
    for seed in map(int, given.seeds.split(",") if given.minutes else ()):
        for name in names:
            known = {(row["method"], row["seed"], row["minutes"]) for row in stored["rows"]}
            if (name, seed, given.minutes) not in known:
                row = measure(name, seed, given.minutes, given.out)
                stored = read_rows(given.rows)  # another process may have measured rows meanwhile
                stored["rows"].append(row)
                write_rows(stored, given.rows)
    draw(stored, given.rows.with_suffix(".md"))


def _command(*arguments: str) -> MoisCLI:
    """Run a command of the training's command line in this process."""
    quieten()
    with command_line(arguments):
        return MoisCLI(arguments)


def _data(out: Path) -> Path:
    """Return the folder of the demo's scans: those of `mois demo` for the training, and the first 4 of its test."""
    folder = out / "data"
    if not (folder / "dataset.json").is_file():
        types = draw_lesion_types(np.random.default_rng(0), 2, held_back=True)
        write_dataset(folder, subjects=12, test_subjects=TESTS, seed=0, types=types, lesions=(20, 60))
    return folder


def _at(summary: dict[str, Any], key: Sequence[str]) -> float | None:
    """Return the mean of a figure of a test."""
    value: Any = summary
    for part in key:
        value = value[part]
    return None if value["mean"] is None else round(float(value["mean"]), 4)


if __name__ == "__main__":
    main()
