"""The demo: adapt the bundled nano to a lesion type that it has never seen, and show the difference.

The demo runs three commands that a user can also run: `test` before, `fit`, `test` after. It skips a command that has
its result already. The training goes on from its last checkpoint. So an interrupted demo goes on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mois.cli.terminal import PlainConsole
from mois.evaluation.figures import KEYS
from mois.evaluation.result_records import read_metrics
from mois.evaluation.statistics import SCHEMA, paired_gain
from mois.files.atomic import write_text
from mois.files.json_records import as_record, read_json, read_record
from mois.files.text import read_text
from mois.machine.interrupts import GIVE_COMMAND_AGAIN, HOW_TO_GO_ON
from mois.sharing.bundle import copy_bundle

WORDS = ("right", "wrong", "swapped", "no_exemplars", "unprompted_dice", "lesion_f1")


def claim_demo(out: Path, seed: int, config: Path) -> None:
    """Write seed and config of the demo into its folder. Refuse a folder with another demo.

    Raises:
        ValueError: If seed or config differ from those of the demo in the folder.
    """
    mine = {"seed": seed, "config": read_text(config)}
    path = out / "demo.json"
    if path.is_file():
        theirs = as_record(read_json(path, "choose another folder"), _Asked, str(path), "choose another folder")
        for name, value in mine.items():
            if getattr(theirs, name) != value:
                there, now = (theirs.seed, seed) if name == "seed" else ("another one", config)
                raise ValueError(f"out={out} holds a demo of {name}={there}, now it is {now}; choose another folder.")
    elif (out / "minutes.json").is_file():
        warnings.warn(f"out={out} holds a demo that does not say its seed and config: unverified", stacklevel=2)
    write_text(path, json.dumps(mine, indent=2) + "\n")


@dataclass(frozen=True)
class _Asked:
    """The content of demo.json."""

    seed: int
    config: str


def run_demo(out: Path, seed: int, config: Path) -> dict[str, Any]:
    """Test, adapt, and test again.

    Args:
        out: Folder of the demo, with the scans in `data`. It gets `before`, `fit`, `after`, `bundle` and summary.json.
        seed: Seed of the training and of the simulated reader.
        config: Config of the training.

    Returns:
        The content of summary.json.

    Raises:
        SystemExit: With the exit code of a command that failed; the command has written why.
    """
    console = PlainConsole()
    minutes = _Minutes(out / "minutes.json")
    common = ["--config", str(config), "--seed_everything", str(seed), "--data.init_args.root", str(out / "data")]

    def step(name: str, arguments: list[str], result: str) -> None:
        done = out / name / result
        if done.is_file():
            console.print(f"{name}: done already, {done}", style="dim")
            return
        command = [*arguments, *common, "--trainer.default_root_dir", str(out / name)]
        console.rule(f"{name}: mois {' '.join(command)}")
        with minutes.of(name):
            failed = run_command([sys.executable, "-m", "mois", *command])
        if failed:
            raise SystemExit(failed)
        if name == "fit":
            done.touch()

    step("before", ["test"], "test/metrics.json")
    step("fit", ["fit", "--ckpt_path", "last"], "done")
    kept = out / "fit" / "checkpoints"
    delivered = kept / "best.ckpt" if (kept / "best.ckpt").is_file() else kept / "last.ckpt"  # as the bundle has it
    step("after", ["test", "--ckpt_path", str(delivered)], "test/metrics.json")
    copy_bundle(out / "fit" / "bundle", out / "bundle")
    before, after = (read_metrics(out / name / "test" / "metrics.json", SCHEMA) for name in ("before", "after"))
    summary = {
        "before": _words(before),
        "after": _words(after),
        "gain_unprompted_dice": _gain(before, after),
        "trainable_fraction": after["provenance"]["trainable_fraction"],
        "minutes": minutes.total(),
        "seed": seed,
    }
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    _show(console, summary, out)
    return summary


def run_command(command: Sequence[str]) -> int:
    """Run a command, and return its exit code. After Ctrl-C, wait until the command has ended its step."""
    hint = {HOW_TO_GO_ON: f"{GIVE_COMMAND_AGAIN}: the demo goes on where it was"}
    with subprocess.Popen(command, env={**os.environ, **hint}) as process:
        # a terminal sends Ctrl-C to both processes, other senders only to this process
        before = signal.signal(signal.SIGINT, lambda number, _: process.send_signal(number))
        try:
            return process.wait()
        finally:
            signal.signal(signal.SIGINT, before)


class _Minutes:
    """Wall minutes of each step. They are stored in a file, so that an interrupted step counts too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spent = read_record(path, dict[str, float], "remove it") if path.exists() else {}
        self.name, self.start = "", 0.0

    def of(self, name: str) -> _Minutes:
        self.name = name
        return self

    def __enter__(self) -> None:
        self.start = time.monotonic()

    def __exit__(self, *failure: object) -> None:
        self.spent[self.name] = self.spent.get(self.name, 0.0) + (time.monotonic() - self.start) / 60
        write_text(self.path, json.dumps(self.spent) + "\n")

    def total(self) -> float:
        return round(sum(self.spent.values()), 2)


def _words(metrics: dict[str, Any]) -> dict[str, float | None]:
    return {name: _at(metrics["summary"], name)["mean"] for name in WORDS}


def _gain(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    first, second = ({row["subject"]: row for row in metrics["subjects"]} for metrics in (before, after))
    return paired_gain(
        [(first[name]["patient"], *(_at(rows[name], "unprompted_dice") for rows in (first, second))) for name in first]
    )


def _at(tree: dict[str, Any], name: str) -> Any:
    """Return a figure by its name in `Figures`: an estimate in a summary, a number in a subject."""
    for part in KEYS[name]:
        tree = tree[part]
    return tree


def _show(console: Console, summary: dict[str, Any], out: Path) -> None:
    table = Table(title="A lesion type that the backbone has never seen, on scans that the training has never seen")
    table.add_column("")
    for column in ("before", "after"):
        table.add_column(column, justify="right")
    for word in WORDS:
        cells = [summary[column][word] for column in ("before", "after")]
        table.add_row(word, *("-" if cell is None else f"{cell:.2f}" for cell in cells))
    console.print(table)
    gain = summary["gain_unprompted_dice"]
    low, high = gain["ci95"] or (float("nan"), float("nan"))
    console.print(
        f"unprompted Dice rose by {gain['mean']:.2f} (95 % interval {low:.2f} to {high:.2f}, {gain['n']} scans); "
        f"{100 * summary['trainable_fraction']:.1f} % of the parameters were trained; {summary['minutes']:.1f} minutes"
    )
    reports = " and ".join(str(out / name / "test" / "report.html") for name in ("before", "after"))
    lines = (f"figures: {out / 'summary.json'}", f"reports: {reports}", f"model: {out / 'bundle'}")
    console.print("\n".join(lines), soft_wrap=True)
