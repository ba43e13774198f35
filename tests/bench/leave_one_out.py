"""Adapts to MS lesions on two patients and tests on the third. A table by rows: patients and seeds.

`MOIS_REAL_DATA=DIR python -m tests.bench.leave_one_out --out DIR [--only PATIENT ...] [--seeds N ...] [OPTION ...]`

A row is a training by configs/ms_lesions.yaml without companions, a test before and after it, and phantoms of held-back
types before and after it: what is forgotten of other types. Rows that are there are not measured again, so the table
grows in several sittings. The seed is that of the training; the test before and the simulated reader have the same for
all rows. Every other OPTION goes to `python train.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mois.evaluation.figures import KEYS
from mois.evaluation.protocol import evaluate_volume
from mois.evaluation.reader import Reader
from mois.evaluation.settings import ProtocolSettings
from mois.files.atomic import write_text
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.sharing.bundle import Bundle
from tests.bench import look_alikes

ROOT = Path(__file__).parents[2]
PATIENTS = ("07", "19", "26")
PHANTOMS = 2
FIGURES = (
    "right", "no_exemplars", "unprompted_dice", "lesion_f1", "false_apart", "false_lesions", "prompted_dice",
    "scan_dice",
)  # fmt: skip


def measure(out: Path, patient: str, seed: int, options: Sequence[str] = ()) -> Path:
    """Measure a row, unless its file is there: figures of the test before and after, and of phantoms.

    Args:
        out: Folder of rows and runs.
        patient: Patient of the test; the other two train.
        seed: Seed of the training.
        options: Further options of `python train.py fit`.
    """
    path = out / f"MS_{patient}_{seed}.json"
    if path.is_file():
        return path
    run = out / f"run_{patient}_{seed}"
    others = ",".join(f"patient{name}" for name in PATIENTS if name != patient)
    common = ["--config", "configs/ms_lesions.yaml", "--model.companions=[]", *options]
    common += [f"--data.init_args.split.train_subjects=[{others}]"]
    common += [f"--data.init_args.split.test_subjects=[patient{patient}]"]
    before = _tested(out / f"before_{patient}", common)
    started = time.monotonic()
    _run("fit", *common, f"--seed_everything={seed}", f"--trainer.default_root_dir={run}", "--ckpt_path=last")
    minutes = (time.monotonic() - started) / 60
    after = _tested(run, [*common, f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}"])
    row = {
        "before": before,
        "after": after,
        "delivered": _delivered(run),
        "phantoms": {
            "before": _right_on_phantoms(None, out),
            "after": _right_on_phantoms(Bundle.load(run / "bundle"), out),
        },
        "minutes": round(minutes, 1),
    }
    write_text(path, json.dumps(row, indent=1) + "\n")
    return path


def table(out: Path, patients: Sequence[str], seeds: Sequence[int]) -> str:
    """Return the rows that are there as a table in Markdown."""
    lines = [f"| test | seed | | {' | '.join(FIGURES)} | right on phantoms |", "|---" * (4 + len(FIGURES)) + "|"]
    for patient in patients:
        for seed in seeds:
            path = out / f"MS_{patient}_{seed}.json"
            if path.is_file():
                row = json.loads(path.read_text(encoding="utf-8"))
                last = {when: _cell(value) for when, value in row["phantoms"].items()}
                lines += before_and_after(f"MS {patient} | {seed}", row, FIGURES, last)
    return "\n".join(lines) + "\n"


def before_and_after(
    name: str, row: Mapping[str, Any], figures: Sequence[str], last: Mapping[str, str]
) -> Iterator[str]:
    """Yield two lines of a table in Markdown: the figures of a row before and after a training.

    Args:
        name: First cells of both lines.
        row: Figures `before` and `after`, by name.
        figures: Names of the figures that are shown.
        last: Last cell of the line `before`, and of the line `after`.
    """
    for when in ("before", "after"):
        cells = [_cell(row[when][figure]) for figure in figures]
        yield f"| {name} | {when} | {' | '.join(cells)} | {last[when]} |"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 2 else f"{value:.2f}"


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, str(ROOT / "train.py"), *arguments], cwd=ROOT, check=True)


def _tested(run: Path, options: Sequence[str]) -> dict[str, float | None]:
    """Test in the folder of a run, unless that was done; return the figures of its one scan."""
    result = run / "test" / "metrics.json"
    if not result.is_file():
        _run("test", *options, f"--trainer.default_root_dir={run}")
    (subject,) = json.loads(result.read_text(encoding="utf-8"))["subjects"]
    return {name: _at(subject, KEYS[name]) for name in FIGURES}


def _at(tree: Any, keys: Sequence[str]) -> float | None:
    for key in keys:
        tree = tree[key]
    return None if tree is None else float(tree)


def _delivered(run: Path) -> str:
    """Return which model a training delivered: the start, or a later one."""
    start, best = (
        torch.load(run / "checkpoints" / name, map_location="cpu", weights_only=True)["global_step"]
        for name in ("start.ckpt", "best.ckpt")
    )
    return "start" if start == best else f"step {best}"


def _right_on_phantoms(bundle: Bundle | None, out: Path) -> float:
    """Return the mean `right` of held-back types in phantoms: of a bundle, or of the shipped model."""
    if bundle is None:
        paths = [look_alikes.measure(out, f"phantom {number}", "LearnedMatching", 0) for number in range(PHANTOMS)]
        classes = [figures for path in paths for figures in json.loads(path.read_text(encoding="utf-8")).values()]
        return float(np.mean([figures["right"] for figures in classes]))
    settings = InferenceSettings(pixel_mm=1.5, overlap=0.25, **look_alikes.PROPAGATIONS["LearnedMatching"][2])
    segmenter = VolumeSegmenter(bundle.backbone, bundle.propagation, settings)
    protocol = ProtocolSettings(reader=Reader(seed=0))
    reports = [
        evaluate_volume(segmenter, look_alikes.SETS[f"phantom {number}"][0](), protocol) for number in range(PHANTOMS)
    ]
    return float(np.mean([each.figures.right for report in reports for each in report.classes]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=PATIENTS, default=list(PATIENTS), help="patients of the test")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    asked, options = parser.parse_known_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for seed in asked.seeds:
        for patient in asked.only:
            print(measure(asked.out.resolve(), patient, seed, options), flush=True)
    print(table(asked.out, asked.only, asked.seeds))
