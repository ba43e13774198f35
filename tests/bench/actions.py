"""What do suggestions and corrections save a reader? Figures over the number of actions, as the default ships.

`python -m tests.bench.actions --out DIR [--phantoms N] [--seeds N]`

A row is one phantom of two held-back types and one seed of the readers, and a file. Rows that are there are not
measured again, so the table can grow in several sittings. The phantoms, weights and settings are those of
`look_alikes`. The class with more lesions is scored.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mois.evaluation.protocol import evaluate_volume
from mois.evaluation.reader import Reader
from mois.evaluation.settings import ProtocolSettings
from mois.files.atomic import write_text
from mois.records import Volume
from tests.bench.look_alikes import SETS, segmenter_for

ACTIONS = (1, 2, 3, 4, 5, 6, 8, 10)
FIGURES = ("right", "lesion_f1", "shown_f1", "lesions", "rejected")


def measure(out: Path, number: int, seed: int) -> Path:
    """Measure a row, unless its file is there: the points of each strategy, and what a negative exemplar changes."""
    path = out / f"actions_{number}_{seed}.json"
    if path.is_file():
        return path
    name = f"phantom {number}"
    volume = SETS[name][0]()
    protocol = ProtocolSettings(actions=ACTIONS, reader=Reader(seed=seed), target_class=most_frequent_class(volume))
    report = evaluate_volume(segmenter_for(name), volume, protocol)
    scored = report.classes[0]
    row = {
        "points": [asdict(each) for each in scored.actions],
        "negatives": [asdict(each) for each in scored.negatives],
    }
    write_text(path, json.dumps(row) + "\n")
    return path


def most_frequent_class(volume: Volume) -> int:
    """Return the class with the most lesions; the first of equal ones."""
    classes = sorted(set(volume.classes.values()))
    return max(classes, key=lambda each: list(volume.classes.values()).count(each))


def table(rows: Sequence[Sequence[dict[str, Any]]]) -> str:
    """Return the means over rows as a table in Markdown: a line for each strategy and figure."""
    lines = [f"| {len(rows)} curves | | {' | '.join(map(str, ACTIONS))} |", "|---" * (2 + len(ACTIONS)) + "|"]
    for strategy in dict.fromkeys(point["strategy"] for row in rows for point in row):
        for figure in FIGURES:
            cells = [f"{np.mean(_at(rows, strategy, actions, figure)):.2f}" for actions in ACTIONS]
            lines.append(f"| {strategy} | {figure} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def table_of_negatives(rows: Sequence[Sequence[dict[str, Any]]]) -> str:
    """Return what one rejected false lesion changes elsewhere, as a table: a line for each number of exemplars."""
    figures = ("right", "right_after", "false_lesions", "false_after")
    lines = [f"| exemplars | curves | {' | '.join(figures)} |", "|---" * (2 + len(figures)) + "|"]
    for count in sorted({each["exemplars"] for row in rows for each in row}):
        here = [each for row in rows for each in row if each["exemplars"] == count]
        cells = [f"{np.mean([each[figure] for each in here]):.2f}" for figure in figures]
        lines.append(f"| {count} | {len(here)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def actions_saved(rows: Sequence[Sequence[dict[str, Any]]]) -> dict[str, int | None]:
    """Return after how many actions the mean Dice of each strategy reaches that of ten random clicks; None if never."""
    wanted = np.mean(_at(rows, "random", ACTIONS[-1], "right"))
    reached: dict[str, int | None] = {}
    for strategy in dict.fromkeys(point["strategy"] for row in rows for point in row):
        enough = [n for n in ACTIONS if np.mean(_at(rows, strategy, n, "right")) >= wanted]
        reached[strategy] = min(enough, default=None)
    return reached


def _at(rows: Sequence[Sequence[dict[str, Any]]], strategy: str, actions: int, figure: str) -> list[float]:
    """Return a figure of each row after a number of actions."""
    return [p[figure] for row in rows for p in row if p["strategy"] == strategy and p["actions"] == actions]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--phantoms", type=int, nargs="+", default=list(range(6)))
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    paths = [measure(asked.out, number, seed) for seed in range(asked.seeds) for number in asked.phantoms]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    points = [row["points"] for row in found]
    print(table(points))
    print(f"actions until the Dice of {ACTIONS[-1]} random clicks: {actions_saved(points)}")
    print(table_of_negatives([row["negatives"] for row in found]))
