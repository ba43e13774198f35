"""Draw the pictures of docs/reading_a_run.md from an offline run of W&B.

python docs/site/draw_run.py runs/demo/fit    # a training with --tracking.wandb offline
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

IMAGES = Path(__file__).parents[1] / "images"
PANELS: dict[str, tuple[str, ...]] = {
    "figures of the validations": ("val/unprompted_dice", "val/right", "val/no_exemplars", "val/prompted_dice"),
    "loss": ("train/loss",),
    "gradient norms": ("train/gradient_norm_adapter", "train/gradient_norm_propagation"),
    "learning rate": ("train/learning_rate",),
}
PARTS = ("data", "forward", "backward", "optimiser", "validation")


def history(run: Path) -> list[dict[str, Any]]:
    """Return what a training logged at each of its steps, as W&B's own reader gives it."""
    (record,) = (run / "wandb").glob("offline-run-*")
    wandb = Path(sys.executable).with_name("wandb")
    command = [wandb, "leet", "inspect", "--json", record]
    lines = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=True).stdout
    records = [json.loads(line) for line in lines.splitlines()]
    return [one["history"]["item"] for one in records if "history" in one]


def draw_curves(items: list[dict[str, Any]], path: Path) -> None:
    """Draw figures, loss, gradient norms, learning rate, and the shares of the time over the steps."""
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).flat
    for axis, (title, names) in zip(axes, PANELS.items(), strict=False):
        for name in names:
            points = [(item["trainer/global_step"], item[name]) for item in items if name in item]
            axis.plot(*zip(*points, strict=True), label=name, marker="o" if name.startswith("val/") else None)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("trainer/global_step", fontsize=8)
        axis.legend(fontsize=7)
        if title == "gradient norms":
            axis.set_yscale("log")
    axis = list(figure.axes)[4]
    timed = [item for item in items if "time/data" in item]
    steps = [item["trainer/global_step"] for item in timed]
    axis.stackplot(steps, [[item[f"time/{part}"] for item in timed] for part in PARTS], labels=PARTS)
    axis.set_title("shares of the time", fontsize=10)
    axis.set_xlabel("trainer/global_step", fontsize=8)
    axis.legend(fontsize=7, loc="lower left")
    list(figure.axes)[5].set_axis_off()
    figure.savefig(path, dpi=90)


def main(run: Path) -> None:
    """Write the three pictures into docs/images."""
    draw_curves(history(run), IMAGES / "run_curves.png")
    shutil.copy(sorted((run / "pictures" / "val").glob("scan1_*.png"))[-1], IMAGES / "run_masks.png")
    shutil.copy(sorted((run / "tables" / "val").glob("lesions_*.png"))[-1], IMAGES / "run_lesions.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
