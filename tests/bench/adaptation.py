"""Adapts by `mois adapt`, without settings, and scores the bundle beside the model before: a table, and a curve.

`MOIS_REAL_DATA=DIR python -m tests.bench.adaptation --out DIR [--sets NAME ...] [--seeds N ...] [--minutes 10]
[--channels T2 FLAIR]`

A row is one adaptation. Its scans are a number of phantoms with two held-back lesion types (tested on 4 others), two of
three MS patients (tested on the third; the lesions, or what changed between two visits), or one half of the slices of a
scan of nuclei (tested on the other half, a nucleus between). The model before has the plan's settings, so it is what
`mois adapt` calls step 0. Rows that are there are not measured again, so the table grows in several sittings.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from scipy.stats import t

from datamodules.phantoms.lesion_types import draw_lesion_types
from datamodules.phantoms.phantom import write_dataset
from mois.backbones import SAM2
from mois.evaluation.protocol import evaluate_volume
from mois.evaluation.reader import Reader
from mois.evaluation.settings import ProtocolSettings
from mois.files.atomic import whole_file, write_text
from mois.inference.segmenter import VolumeSegmenter
from mois.propagation import LearnedMatching
from mois.report.charts import STYLE
from mois.scans.datasets import read_dataset
from mois.sharing.bundle import Bundle
from tests.bench.leave_one_out import PATIENTS, before_and_after

FIGURES = (
    "right", "wrong", "no_exemplars", "unprompted_dice", "lesion_f1", "false_lesions", "prompted_dice"
)  # fmt: skip
SCANS = (1, 2, 5, 10, 20)
"""Numbers of phantoms to adapt on."""

TESTS = 4
CHANGED = ("01", "03", "19")
"""Patients of whom two visits are compared."""

NUCLEI = {"ovule1135": "Dataset605_NucleiPlant", "embryo8": "Dataset606_NucleiMouseEmbryo"}
FOLDERS = ("images", "labels", "instances", "distractors")
BEFORE = {"threshold": 0.5, "peak_threshold": 0.6}
"""Thresholds of the model before; a bundle may have others of its calibration."""


def phantoms(count: int) -> Callable[[Path, int], Path]:
    """Return what writes a dataset of phantoms: `count` to adapt on, and those of the test."""

    def write(out: Path, seed: int) -> Path:
        whole = out / f"phantoms_{seed}"
        if not (whole / "dataset.json").is_file():
            types = draw_lesion_types(np.random.default_rng([seed, 14]), 2, held_back=True)
            options = {"subjects": max(SCANS), "test_subjects": TESTS, "lesions": (20, 60)}
            write_dataset(whole, seed=seed, types=types, **options)  # type: ignore[arg-type]
        train = [f"phantom_{number:04d}" for number in range(count)]
        test = sorted(file.name.partition(".")[0] for file in (whole / "labelsTs").iterdir())
        return _chosen(whole, out / f"phantoms_{seed}_{count}", train, test)

    return write


def patients_but(held_out: str, dataset: str, patients: Sequence[str]) -> Callable[[Path, int], Path]:
    """Return what writes the other patients of a dataset of MS lesions, with this one as the test."""

    def write(out: Path, seed: int) -> Path:
        whole = Path(os.environ["MOIS_REAL_DATA"]) / dataset
        train = [f"patient{name}" for name in patients if name != held_out]
        return _chosen(whole, out / f"{dataset}_{held_out}", train, [f"patient{held_out}"])

    return write


def halves(subject: str) -> Callable[[Path, int], Path]:
    """Return what writes a dataset of the lower half of a scan's slices, with the upper half as the test.

    Slices of the median height of a nucleus are left out between them.
    """

    def write(out: Path, seed: int) -> Path:
        whole, half = Path(os.environ["MOIS_REAL_DATA"]) / NUCLEI[subject], out / f"{subject}_halves"
        instances = nibabel.load(whole / "instancesTr" / f"{subject}.nii.gz")
        ids = np.asanyarray(instances.dataobj)
        shown = np.stack([np.any(ids == one, (0, 1)) for one in np.unique(ids) if one])
        gap = int(np.median(shown.sum(1)))
        middle = shown.shape[1] // 2
        parts = {"Tr": slice(0, middle - gap // 2), "Ts": slice(middle - gap // 2 + gap, None)}
        for folder in FOLDERS:
            for file in (whole / f"{folder}Tr").glob(f"{subject}*.nii.gz"):
                for part, chosen in parts.items():
                    (half / f"{folder}{part}").mkdir(parents=True, exist_ok=True)
                    name = file.name.replace(subject, f"{subject}_{'lower' if part == 'Tr' else 'upper'}")
                    nibabel.save(nibabel.load(file).slicer[:, :, chosen], half / f"{folder}{part}" / name)
        return _described(whole, half, 1)

    return write


SETS = {
    **{f"phantoms {count}": phantoms(count) for count in SCANS},
    **{f"MS {patient}": patients_but(patient, "Dataset501_MSLesions", PATIENTS) for patient in PATIENTS},
    **{f"MS change {patient}": patients_but(patient, "Dataset602_MSChange", CHANGED) for patient in CHANGED},
    **{subject: halves(subject) for subject in NUCLEI},
}
"""By name: what writes the dataset, from the folder of all datasets and the seed."""


def row_of(name: str, seed: int, channels: Sequence[str]) -> str:
    """Return the name of a row."""
    return "_".join([name.replace(" ", "_"), *channels, str(seed)])


def measure(out: Path, name: str, seed: int, minutes: float, channels: Sequence[str] = ()) -> Path:
    """Measure a row, unless its file is there: the figures of the test before and after the adaptation.

    Args:
        out: Folder of rows, datasets and bundles.
        name: Name of a set.
        seed: Seed of phantoms, training and reader.
        minutes: Minutes of the adaptation.
        channels: Channels that are used together; none for the one that is planned.
    """
    row = row_of(name, seed, channels)
    path = out / f"{row}.json"
    if path.is_file():
        return path
    root, bundle = SETS[name](out / "data", seed), out / row
    started = time.monotonic()
    if not bundle.is_dir():
        words = ["adapt", "--data", str(root), "--out", str(bundle), "--minutes", str(minutes), "--seed", str(seed)]
        words += [f"--channels=[{','.join(channels)}]"] if channels else []
        subprocess.run([sys.executable, "-m", "mois", *words], check=True)
    took = (time.monotonic() - started) / 60
    model = Bundle.load(bundle)
    propagation, backbone = LearnedMatching(weights="bundled-2"), SAM2(weights="bundled-2").eval()
    propagation.build(backbone)
    start = VolumeSegmenter(backbone, propagation.eval(), replace(model.inference, **BEFORE))
    after = VolumeSegmenter(model.backbone, model.propagation, model.inference)
    plan = yaml.safe_load((out / f"{row}_training" / "plan.yaml").read_text(encoding="utf-8"))
    channel = int(plan["data"]["init_args"].get("channel", 0))
    figures = {
        "minutes": round(took, 1),
        "before": score(start, root, channel, seed),
        "after": score(after, root, channel, seed),
        "delivered": str(model.provenance.get("delivered", "")),
        "pixel_mm": model.inference.pixel_mm,
    }
    write_text(path, json.dumps(figures, indent=1) + "\n")
    return path


def score(segmenter: VolumeSegmenter, root: Path, channel: int, seed: int) -> dict[str, float | None]:
    """Return the figures of the scans of the test: means over classes and scans."""
    reports = []
    for scan in read_dataset(root):
        if scan.held_out:
            volume = scan.read(channel, channels=segmenter.settings.channels)
            fewest = min(Counter(volume.classes.values()).values())
            protocol = ProtocolSettings(prompted=max(1, min(5, fewest // 2)), reader=Reader(seed=seed))
            reports.append(evaluate_volume(segmenter, volume, protocol))
    found = [[getattr(report.figures, figure) for report in reports] for figure in FIGURES]
    known = [[value for value in values if value is not None] for values in found]
    return {name: round(float(np.mean(each)), 4) if each else None for name, each in zip(FIGURES, known, strict=True)}


def table(out: Path, names: Sequence[str], seeds: Sequence[int], channels: Sequence[str] = ()) -> str:
    """Return the rows that are there as a table in Markdown."""
    lines = [f"| set | seed | | {' | '.join(FIGURES)} | delivered |", "|---" * (4 + len(FIGURES)) + "|"]
    for name in names:
        for seed in seeds:
            path = out / f"{row_of(name, seed, channels)}.json"
            if path.is_file():
                row = json.loads(path.read_text(encoding="utf-8"))
                lines += before_and_after(
                    f"{name} | {seed}", row, FIGURES, dict.fromkeys(("before", "after"), row["delivered"])
                )
    return "\n".join(lines) + "\n"


def curve(out: Path, seeds: Sequence[int], picture: Path) -> None:
    """Draw `right` after the adaptation over the number of phantoms: each seed, the mean and its 95 % interval (t)."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.subplots()
        before = []
        for count in SCANS:
            files = [file for seed in seeds if (file := out / f"phantoms_{count}_{seed}.json").is_file()]
            rows = [json.loads(file.read_text(encoding="utf-8")) for file in files]
            values = [row["after"]["right"] for row in rows]
            before += [row["before"]["right"] for row in rows]
            axes.plot([count] * len(values), values, ".", color="tab:blue", alpha=0.5)
            if len(values) > 1:
                half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
                axes.errorbar(count, np.mean(values), half, fmt="o", color="tab:blue", capsize=3)
        if before:
            axes.axhline(float(np.mean(before)), color="tab:gray", linestyle="--", label="before the adaptation")
        axes.set(xscale="log", xticks=SCANS, xlabel="phantoms to adapt on", ylabel="right", xlim=(0.8, 25), ylim=(0, 1))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        if before:
            axes.legend(loc="lower right")
        with whole_file(picture) as part:
            figure.savefig(part, format="png", dpi=130)


def _chosen(whole: Path, part: Path, train: Sequence[str], test: Sequence[str]) -> Path:
    """Copy some scans of a dataset: those to adapt on, and those of the test, which may be training scans of it."""
    for ending, subjects in (("Tr", train), ("Ts", test)):
        for folder in FOLDERS:
            files = [file for subject in subjects for file in whole.glob(f"{folder}T[rs]/{subject}[._]*")]
            for file in files:
                (part / f"{folder}{ending}").mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, part / f"{folder}{ending}" / file.name)
    return _described(whole, part, len(train))


def _described(whole: Path, part: Path, scans: int) -> Path:
    description = json.loads((whole / "dataset.json").read_text(encoding="utf-8"))
    write_text(part / "dataset.json", json.dumps(description | {"numTraining": scans}, indent=1) + "\n")
    return part


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--channels", nargs="+", default=[], help="channels that are used together, by name")
    asked = parser.parse_args()
    for number in asked.seeds:
        for one in asked.sets:
            print(measure(asked.out.resolve(), one, number, asked.minutes, asked.channels), flush=True)
    print(table(asked.out, asked.sets, asked.seeds, asked.channels))
    curve(asked.out, asked.seeds, asked.out / "curve.png")
