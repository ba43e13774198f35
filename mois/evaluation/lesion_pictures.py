"""Pictures of single lesions: the worst of an evaluation, each with what was found there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mois.evaluation.overlays import STYLES
from mois.evaluation.results import Row, read_rows, write_text
from mois.evaluation.sections import worst_first
from mois.geometry import SliceGrid
from mois.interfaces import Volume
from mois.io import read_image
from mois.metrics import InstanceMap

COUNT = 8
WIDE_MM = 70.0


def draw_worst_lesions(out: Path, read: Callable[[str], Volume], count: int = COUNT) -> list[Path]:
    """Draw the worst lesions of lesions.csv, with the maps in `predictions`, as `overlays/worst/*.png`.

    `captions.json` beside them says what each shows, in their order.

    Args:
        out: Folder of the results.
        read: Returns the scan of a name.
        count: How many at most.
    """
    folder = out / "overlays" / "worst"
    for old in folder.glob("*.png"):
        old.unlink()
    rows = worst_first(read_rows(out / "lesions.csv"))[:count]
    made: dict[int, tuple[Path, str]] = {}
    for subject in dict.fromkeys(row["subject"] for row in rows):
        volume = read(subject)
        for place, row in enumerate(rows):
            found = out / "predictions" / f"{subject}_class{row['target_class']}.nii.gz"
            if row["subject"] == subject and found.is_file():
                path = folder / f"{place:02d}_{subject}_lesion{row['lesion']}.png"
                result = torch.from_numpy(read_image(found)[0].astype(np.int32))
                _save(path, _draw(volume, result, row))
                made[place] = path, _caption(volume, result, row)
    captions = [{"file": path.name, "caption": caption} for _, (path, caption) in sorted(made.items())]
    write_text(folder / "captions.json", json.dumps(captions, indent=2) + "\n")
    return [path for _, (path, _) in sorted(made.items())]


def _caption(volume: Volume, found: torch.Tensor, row: Row) -> str:
    name = f"{row['subject']}, lesion {row['lesion']}, {float(row['volume_ml']):.1f} ml"
    if row["found"].lower() == "true":
        return f"{name}: Dice {float(row['dice']):.2f}"
    covered = float((found[volume.lesions == int(row["lesion"])] > 0).float().mean())
    return f"{name}: missed" + (f"; {covered:.0%} of it lies in a find that counts for another" if covered else "")


def _draw(volume: Volume, found: torch.Tensor, row: Row) -> Figure:
    """Draw a square of the slice on which a lesion is largest, with its outline and that of what was found."""
    shape = (volume.image.shape[0], volume.image.shape[1], volume.image.shape[2])
    grid = SliceGrid.of(shape, volume.affine)
    image = grid.to_stack(volume.image.float().cpu()).numpy()
    lesion = grid.to_stack(volume.lesions.cpu()).numpy() == int(row["lesion"])
    index = int(lesion.sum((1, 2)).argmax())
    y, x = (int(at.mean()) for at in np.nonzero(lesion[index]))
    half = (round(WIDE_MM / 2 / grid.row_mm), round(WIDE_MM / 2 / grid.column_mm))
    top, left = max(0, y - half[0]), max(0, x - half[1])
    window = (slice(top, y + half[0] + 1), slice(left, x + half[1] + 1))
    result: InstanceMap = grid.to_stack(found).numpy()[index][window]
    figure = Figure(figsize=(2.4, 2.4), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    white = float(np.percentile(image[image != 0], 99.5)) if image.any() else 1.0
    axes.imshow(image[index][window], cmap="gray", vmin=0, vmax=white, aspect=grid.row_mm / grid.column_mm)
    kind = "found" if row["found"].lower() == "true" else "missed"
    for mask, (colour, style) in ((lesion[index][window], STYLES[kind]), (result > 0, ("#FFFFFF", "dotted"))):
        if mask.any():
            padded = np.pad(mask, 1).astype(np.float32)
            rows, columns = np.arange(-1, mask.shape[0] + 1), np.arange(-1, mask.shape[1] + 1)
            axes.contour(columns, rows, padded, levels=[0.5], colors=[colour], linestyles=[style], linewidths=1.3)
    axes.set_axis_off()
    return figure


def _save(path: Path, figure: Figure) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    figure.savefig(unfinished, format="png", dpi=100)
    unfinished.replace(path)
