"""Finds what looks alike: every propagation without adaptation, on phantoms and on real scans. A table by rows.

`MOIS_REAL_DATA=DIR python -m tests.bench.look_alikes --out DIR [--sets NAME ...] [--propagations NAME ...] [--seeds N]`

Each row (set, propagation, seed of the reader) is a file. Rows that are there are not measured again, so the table can
grow in several sittings. The settings are those of configs/zero_shot.yaml; only `pixel_mm` differs between sets.
DIR/gallery.html shows a picture of each class of a set: the shipped model with the first reader.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from datamodules.phantoms.lesion_types import draw_lesion_types
from datamodules.phantoms.phantom import make_phantom
from datamodules.pretraining import as_volume, held_back_volume
from mois.backbones import SAM2
from mois.evaluation.protocol import evaluate_volume
from mois.evaluation.reader import Reader
from mois.evaluation.settings import ProtocolSettings
from mois.files.atomic import write_text
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.interfaces import Propagation
from mois.propagation import Attention, LearnedMatching, Matching, Prototype, Sam2Only, Similarity
from mois.records import Volume
from mois.scans.datasets import read_dataset
from tests.bench.gallery import pictures_of, write_gallery

FIGURES = ("right", "wrong", "no_exemplars", "unprompted_dice", "lesion_f1", "prompted_dice", "false_lesions")
SEED = 7
"""Of the phantoms. Pretraining and its validation have other seeds."""

SHOWN = ("LearnedMatching", 0)
"""Propagation and reader of the pictures."""

PROPAGATIONS: dict[str, tuple[str, Callable[[], Propagation], dict[str, float | str | None]]] = {
    "LearnedMatching": (
        "bundled-2",
        lambda: LearnedMatching(weights="bundled-2"),
        {
            "threshold": 0.5,
            "peak_threshold": 0.6,
            "level": "moderate",
            "rejections": "vetoes",
            "split_prominence_mm": None,
            "clicks": "near",
        },
    ),
    "Matching": (
        "bundled-2",
        Matching,
        {"threshold": 0.5, "peak_threshold": 0.6, "level": "exemplars", "clicks": "near"},
    ),
    "Similarity": ("bundled", lambda: Similarity(weights="bundled"), {}),
    "Attention": ("bundled", lambda: Attention(weights="bundled"), {}),
    "Prototype": ("bundled", Prototype, {}),
    "Sam2Only": ("bundled-2", Sam2Only, {}),
}
"""By name: weights of the backbone, the propagation, and its settings."""


def _real(folder: str, subject: str) -> Callable[[], Volume]:
    def read() -> Volume:
        scans = read_dataset(Path(os.environ["MOIS_REAL_DATA"]) / folder)
        return next(scan for scan in scans if scan.subject == subject).read(0)

    return read


def _phantom(number: int, types: int) -> Callable[[], Volume]:
    def make() -> Volume:
        if types == 2:
            return held_back_volume(SEED, number)
        rng = np.random.default_rng([SEED, types, number])
        phantom = make_phantom(rng, draw_lesion_types(rng, types, held_back=True), lesions=(40, 60))
        return as_volume(phantom, f"types_{types}_{number:02d}")

    return make


SETS: dict[str, tuple[Callable[[], Volume], float]] = {
    "cells3d": (_real("Dataset604_NucleiHuman", "cells3d"), 0.5),
    "ovule1135": (_real("Dataset605_NucleiPlant", "ovule1135"), 0.25),
    "embryo8": (_real("Dataset606_NucleiMouseEmbryo", "embryo8"), 0.8),
    **{f"MS {n}": (_real("Dataset501_MSLesions", f"patient{n}"), 0.25) for n in ("07", "19", "26")},
    **{f"MS change {n}": (_real("Dataset602_MSChange", f"patient{n}"), 0.25) for n in ("01", "03", "19")},
    **{f"phantom {n}": (_phantom(n, 2), 1.5) for n in range(6)},
    **{f"four types {n}": (_phantom(n, 4), 1.5) for n in range(3)},
}
"""By name: how to read or make the scan, and the edge of a pixel in mm."""


def segmenter_for(name: str, propagation: str = "LearnedMatching") -> VolumeSegmenter:
    """Return a propagation with its weights and settings, at the pixel size of a set."""
    weights, make, settings = PROPAGATIONS[propagation]
    backbone, module = SAM2(weights=weights).eval(), make()
    module.build(backbone)
    inference = InferenceSettings(pixel_mm=SETS[name][1], overlap=0.25, **settings)  # type: ignore[arg-type]
    return VolumeSegmenter(backbone, module.eval(), inference)


def row_of(out: Path, name: str, propagation: str, seed: int) -> Path:
    """Return the file of a row."""
    return out / f"{name.replace(' ', '_')}_{propagation}_{seed}.json"


def measure(out: Path, name: str, propagation: str, seed: int) -> Path:
    """Measure a row, unless its file is there: the figures of each class."""
    path = row_of(out, name, propagation, seed)
    if path.is_file():
        return path
    protocol = ProtocolSettings(reader=Reader(seed=seed))
    pictures = pictures_of(path) if (propagation, seed) == SHOWN else None
    report = evaluate_volume(segmenter_for(name, propagation), SETS[name][0](), protocol, pictures)
    write_text(path, json.dumps({str(c.target_class): asdict(c.figures) for c in report.classes}) + "\n")
    return path


def table(out: Path, sets: list[str], propagations: list[str], seeds: int) -> str:
    """Return the rows that are there as a table in Markdown: means over classes and seeds."""
    lines = [f"| set | propagation | readers | {' | '.join(FIGURES)} |", "|---" * (3 + len(FIGURES)) + "|"]
    for name in sets:
        for propagation in propagations:
            paths = [row_of(out, name, propagation, seed) for seed in range(seeds)]
            there = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
            if there:
                classes = [figures for row in there for figures in row.values()]
                cells = [_mean([each[figure] for each in classes]) for figure in FIGURES]
                lines.append(f"| {name} | {propagation} | {len(there)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.2f}" if known else "-"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--propagations", nargs="+", choices=PROPAGATIONS, default=list(PROPAGATIONS))
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.sets:
        for propagation in asked.propagations:
            for seed in range(asked.seeds):
                print(measure(asked.out, name, propagation, seed), flush=True)
    print(table(asked.out, asked.sets, asked.propagations, asked.seeds))
    print(write_gallery(asked.out, {name: row_of(asked.out, name, *SHOWN) for name in asked.sets}))
