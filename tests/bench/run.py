"""`make bench`: every measurement, as a table and as bench.json, beside the last run's, or else docs/bench.json's.

python -m tests.bench.run --out runs/bench [--only clicks,...] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mois.files.atomic import write_text
from tests.bench import accelerator, ddp, inference, price, quality, scaling, scoring, swap, training, units
from tests.bench.measure import Outcome
from tests.support.paths import ROOT

MODULES = (inference, swap, quality, training, ddp, scaling, units, accelerator, price, scoring)
LOUD = 0.2  # a figure that got worse by more than this share is marked
BETTER_WHEN_HIGH = (
    "tracking_batched_vs_serial", "train_frozen_cached_vs_full", "train_late_lora_vs_full", "ddp2_vs_1",
    "dice_merged_vs_all", "dice_foreground_vs_dense", "cache_hits_half_room",
)  # fmt: skip
PACKAGES = ("torch", "lightning", "sam2", "peft", "torchio", "numpy")
NOTES = ("repeats", "machine", "versions")
NO_FIGURES = ("details", "groups", *NOTES)  # what bench.json holds besides figures
STORED = ROOT / "docs" / "bench.json"  # the full run that docs/performance.md tells of


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure what things cost, as ratios within one run.")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--only", default="", help="names of measurements, with commas between them")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of every arm; their median counts")
    given = parser.parse_args(arguments)
    known = {measurement.__name__: measurement for module in MODULES for measurement in module.MEASUREMENTS}
    wanted = [name for name in given.only.split(",") if name] or list(known)
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        parser.error(f"--only={','.join(unknown)}: there are {', '.join(known)}")
    torch.set_num_threads(1)
    console = Console()
    own, unfinished = given.out / "bench.json", given.out / "unfinished.json"
    beside = own if own.is_file() else STORED
    console.print(f"last run: {beside}")
    last, kept = read(beside), read(own) if given.only else {}
    before, figures = figures_of(last), figures_of(kept)
    details: dict[str, dict[str, float]] = dict(kept.get("details", {}))
    groups: dict[str, dict[str, Any]] = dict(kept.get("groups", {}))
    notes = {"repeats": given.repeats, "machine": machine(), "versions": versions()}
    for name in wanted:
        measurement = known[name]
        console.print(f"[bold]{name}[/bold]: {(measurement.__doc__ or '').splitlines()[0]}")
        outcome: Outcome = measurement(given.repeats)
        figures |= outcome.figures
        details[name], groups[name] = outcome.details, notes
        show(console, outcome, before)
        if other := differences(notes_of(last, name), notes):
            console.print(f"  not as in the last run: {', '.join(other)}", style="yellow")
        record = {**figures, "details": details, "groups": groups, **(notes_of(kept) or notes)}
        write_text(unfinished, json.dumps(record, indent=2) + "\n")  # the last run's figures stand until all are there
    unfinished.replace(own)
    console.print(f"figures: {own}")


def read(path: Path) -> dict[str, Any]:
    """Return a run; none where there was none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def figures_of(run: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in run.items() if name not in NO_FIGURES}


def notes_of(run: dict[str, Any], group: str = "") -> dict[str, Any]:
    """Return repeats, machine and versions of a measurement; what has none of its own was measured as the run was."""
    return run.get("groups", {}).get(group) or {name: run[name] for name in NOTES if name in run}


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return in words which of repeats, machine and versions are others now."""
    if not then:
        return []
    before, after = ({"repeats": notes["repeats"], **notes["machine"], **notes["versions"]} for notes in (then, now))
    return [f"{name} {after.get(name)} instead of {was}" for name, was in before.items() if was != after.get(name)]


def change(name: str, now: float, before: float | None) -> tuple[str, bool]:
    """Return how a figure compares with that of the last run, in words, and whether it got much worse."""
    if not before:
        return "-", False
    grown = now / before - 1
    return f"{grown:+.0%}", (-grown if name in BETTER_WHEN_HIGH else grown) > LOUD


def show(console: Console, outcome: Outcome, before: dict[str, float]) -> None:
    table = Table("figure", box=None)
    for column in ("now", "last run", "change"):
        table.add_column(column, justify="right")
    for name, now in outcome.figures.items():
        words, worse = change(name, now, before.get(name))
        said = f"{before[name]:.4g}" if name in before else "-"
        table.add_row(
            name, f"{now:.4g}", said, f"{words} WORSE" if worse else words, style="bold red" if worse else None
        )
    for name, value in outcome.details.items():
        table.add_row(f"  {name}", f"{value:.4g}", "", "", style="dim")
    console.print(table)


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "processor": platform.machine(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "cores": os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "torch_threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Return what the figures were measured with."""
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


if __name__ == "__main__":
    main()
