"""Do more exemplars help? Dice of never-prompted lesions over the number of exemplars, as the default ships.

`MOIS_REAL_DATA=DIR python -m tests.bench.exemplar_curves --out DIR [--sets NAME ...] [--seeds N]`

A row is one set and one seed of the reader, and a file. Rows that are there are not measured again, so the curves can
grow in several sittings. The sets and settings are those of `look_alikes`. No lesion is tracked.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr
from scipy.stats import t as student

from mois.backbones import SAM2
from mois.evaluation.protocol import evaluate_volume
from mois.evaluation.reader import Reader
from mois.evaluation.settings import ProtocolSettings
from mois.files.atomic import write_text
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from tests.bench.look_alikes import PROPAGATIONS, SETS

COUNTS = {"cells3d": (0, 1, 2, 3, 5, 10)}
"""Numbers of exemplars of sets with fewer lesions than `ALL_COUNTS` wants."""

ALL_COUNTS = (0, 1, 2, 3, 5, 10, 20)


class Summary(NamedTuple):
    """What the readers of a set say together.

    Attributes:
        right: Number of exemplars to the mean Dice of never-prompted lesions.
        ranks: Spearman's rank correlation of number and Dice, within each reader, on average; without 0 exemplars.
        slope: Dice gained by a doubling of the exemplars, on average over readers; without 0 exemplars.
        interval: Half the width of its 95 % interval over readers (Student's t); NaN with one reader.
    """

    right: dict[int, float]
    ranks: float
    slope: float
    interval: float


def measure(out: Path, name: str, seed: int) -> Path:
    """Measure a row, unless its file is there: by class, the Dice at each number of exemplars that there was."""
    path = out / f"curve_{name.replace(' ', '_')}_{seed}.json"
    if path.is_file():
        return path
    weights, make, settings = PROPAGATIONS["LearnedMatching"]
    backbone, propagation = SAM2(weights=weights).eval(), make()
    propagation.build(backbone)
    read, pixel_mm = SETS[name]
    inference = InferenceSettings(pixel_mm=pixel_mm, overlap=0.25, **settings)  # type: ignore[arg-type]
    protocol = ProtocolSettings(prompted=0, counts=COUNTS.get(name, ALL_COUNTS), reader=Reader(seed=seed))
    report = evaluate_volume(VolumeSegmenter(backbone, propagation.eval(), inference), read(), protocol)
    rows = {str(each.target_class): [asdict(point) for point in each.curve] for each in report.classes}
    write_text(path, json.dumps(rows) + "\n")
    return path


def curve_of(path: Path) -> dict[int, float]:
    """Return the Dice of a row by number of exemplars, the mean over its classes; only where each had so many."""
    classes = json.loads(path.read_text(encoding="utf-8")).values()
    by_class = [{p["count"]: p["right"] for p in points if p["used"] == p["count"]} for points in classes]
    shared = sorted(set.intersection(*map(set, by_class)))
    return {count: float(np.mean([each[count] for each in by_class])) for count in shared}


def summary_of(curves: list[dict[int, float]]) -> Summary:
    """Summarise the curves of several readers, at least one."""
    shared = sorted(set.intersection(*map(set, curves)))
    right = {count: float(np.mean([curve[count] for curve in curves])) for count in shared}
    counts = [count for count in shared if count]
    values = np.array([[curve[count] for count in counts] for curve in curves])
    ranks = [float(spearmanr(counts, row).statistic) if np.ptp(row) else 0.0 for row in values]  # flat: no order
    slopes = [float(np.polyfit(np.log2(counts), row, 1)[0]) for row in values]
    interval = float("nan")
    if len(slopes) > 1:
        interval = float(student.ppf(0.975, len(slopes) - 1) * np.std(slopes, ddof=1) / np.sqrt(len(slopes)))
    return Summary(right, float(np.mean(ranks)), float(np.mean(slopes)), interval)


def table(out: Path, sets: list[str], seeds: int) -> str:
    """Return the rows that are there as a table in Markdown."""
    head = ["set", "readers", *map(str, ALL_COUNTS), "rank correlation", "slope per doubling"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in sets:
        paths = [out / f"curve_{name.replace(' ', '_')}_{seed}.json" for seed in range(seeds)]
        curves = [curve_of(path) for path in paths if path.is_file()]
        if curves:
            summary = summary_of(curves)
            dice = [f"{summary.right[count]:.2f}" if count in summary.right else "-" for count in ALL_COUNTS]
            slope = f"{summary.slope:+.3f} ± {summary.interval:.3f}"
            lines.append(f"| {' | '.join([name, str(len(curves)), *dice, f'{summary.ranks:.2f}', slope])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["cells3d", "ovule1135"])
    parser.add_argument("--seeds", type=int, default=10)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for seed in range(asked.seeds):
        for name in asked.sets:
            print(measure(asked.out, name, seed), flush=True)
    print(table(asked.out, asked.sets, asked.seeds))
