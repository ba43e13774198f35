"""Do more exemplars help? Dice of never-prompted lesions over the number of exemplars, as the default ships.

`MOIS_REAL_DATA=DIR python -m tests.bench.exemplar_curves --out DIR [--sets NAME ...] [--seeds N]`

A row is one set and one seed of the reader, and a file. Rows that are there are not measured again, so the curves can
grow in several sittings. The sets and settings are those of `look_alikes`. No lesion is tracked.

Sets whose names differ in their number alone (phantom 0, phantom 1) are a line of the table. Each class of each set is
a type of lesions there, with a curve of each reader, up to as many exemplars as the type has.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr
from scipy.stats import t as student

from mois.evaluation.protocol import evaluate_volume
from mois.evaluation.reader import Reader
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.statistics import slope_per_doubling
from mois.files.atomic import write_text
from tests.bench.look_alikes import SETS, segmenter_for

COUNTS = {"cells3d": (0, 1, 2, 3, 5, 10)}
"""Numbers of exemplars of sets with fewer lesions than `ALL_COUNTS` wants."""

ALL_COUNTS = (0, 1, 2, 3, 5, 10, 20)


Curve = dict[int, float]
"""Number of exemplars used -> Dice of the never-prompted lesions, ascending."""


class Summary(NamedTuple):
    """What the readers of T types say together. Ranks and slopes are without 0 exemplars.

    Attributes:
        right: Number of exemplars to the mean Dice over types, where each curve has this number.
        most: The mean Dice with as many exemplars as each type has.
        ranks: Spearman's rank correlation of number and Dice within a reader's curve, the mean over readers and types.
        rank_of_mean: The same of the mean curve of a type's readers, the mean over types.
        slope: Dice gained by a doubling of the exemplars, the mean over readers and types.
        interval: Half the width of the slope's 95 % interval over types, or over the readers of a single type
            (Student's t); NaN with one of one.
    """

    right: Curve
    most: float
    ranks: float
    rank_of_mean: float
    slope: float
    interval: float


def measure(out: Path, name: str, seed: int) -> Path:
    """Measure a row, unless its file is there: by class, the Dice at each number of exemplars that there was."""
    path = out / f"curve_{name.replace(' ', '_')}_{seed}.json"
    if path.is_file():
        return path
    protocol = ProtocolSettings(prompted=0, counts=COUNTS.get(name, ALL_COUNTS), reader=Reader(seed=seed))
    report = evaluate_volume(segmenter_for(name), SETS[name][0](), protocol)
    rows = {str(each.target_class): [asdict(point) for point in each.curve] for each in report.classes}
    write_text(path, json.dumps(rows) + "\n")
    return path


def curves_of(path: Path) -> dict[str, Curve]:
    """Return the curves of a row by class. They end where the class has no more lesions that may be prompted."""
    classes = json.loads(path.read_text(encoding="utf-8")).items()
    curves = {name: {p["used"]: p["right"] for p in points if p["right"] is not None} for name, points in classes}
    return {name: curve for name, curve in curves.items() if curve}


def mean_of(curves: Sequence[Curve]) -> Curve:
    """Return the mean of curves at the numbers of exemplars that each of them has."""
    shared = sorted(set.intersection(*map(set, curves)))
    return {count: float(np.mean([curve[count] for curve in curves])) for count in shared}


def rank_of(curve: Curve) -> float:
    """Return the rank correlation of number and Dice; 0 if the Dice never changes."""
    counts = [count for count in curve if count]
    values = [curve[count] for count in counts]
    return float(spearmanr(counts, values).statistic) if np.ptp(values) else 0.0


def summary_of(types: Sequence[Sequence[Curve]]) -> Summary:
    """Summarise the curves of the readers of each type. A type with a single exemplar counts in `right` and `most`."""
    means = [mean_of(curves) for curves in types]
    several = [(curves, mean) for curves, mean in zip(types, means, strict=True) if max(mean) > 1]
    slopes = [[slope_per_doubling(list(curve.items())) for curve in curves] for curves, _ in several]
    by_type = [np.mean(np.array(each, dtype=float)) for each in slopes]
    apart = slopes[0] if len(slopes) == 1 else by_type
    interval = float("nan")
    if len(apart) > 1:
        interval = float(student.ppf(0.975, len(apart) - 1) * np.std(apart, ddof=1) / np.sqrt(len(apart)))
    return Summary(
        right=mean_of(means),
        most=float(np.mean([mean[max(mean)] for mean in means])),
        ranks=float(np.mean([np.mean([rank_of(curve) for curve in curves]) for curves, _ in several])),
        rank_of_mean=float(np.mean([rank_of(mean) for _, mean in several])),
        slope=float(np.mean(by_type)),
        interval=interval,
    )


def table(out: Path, sets: list[str], seeds: int) -> str:
    """Return the rows that are there as a table in Markdown."""
    ranks = ["rank correlation of a reader's curve", "of the mean curve"]
    head = ["set", "types", "readers", *map(str, ALL_COUNTS), "most", *ranks, "slope per doubling"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    alike: dict[str, dict[tuple[str, str], list[Curve]]] = defaultdict(lambda: defaultdict(list))
    for name in sets:
        for path in (out / f"curve_{name.replace(' ', '_')}_{seed}.json" for seed in range(seeds)):
            for number, curve in curves_of(path).items() if path.is_file() else ():
                alike[name.rstrip("0123456789 ") if " " in name else name][name, number].append(curve)
    for name, types in alike.items():
        summary = summary_of(list(types.values()))
        readers = " to ".join(str(count) for count in sorted({len(curves) for curves in types.values()}))
        dice = [f"{summary.right[count]:.2f}" if count in summary.right else "-" for count in ALL_COUNTS]
        figures = [f"{figure:.2f}" for figure in (summary.most, summary.ranks, summary.rank_of_mean)]
        slope = f"{summary.slope:+.3f} ± {summary.interval:.3f}"
        lines.append(f"| {' | '.join([name, str(len(types)), readers, *dice, *figures, slope])} |")
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
