"""Pictures of the worst lesions of an evaluation, with outlines of the true and the found lesion."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mois.evaluation.overlays import STYLES, grey_levels
from mois.evaluation.result_files import Row
from mois.evaluation.slice_labels import scale_bar
from mois.files.atomic import whole_file, write_text
from mois.geometry import SliceGrid
from mois.lesions import InstanceMap, Mask
from mois.records import Volume
from mois.report.results import read_lesions
from mois.report.sections import worst_first
from mois.scans.labels import whole_numbers
from mois.scans.volumes import read_on_grid

COUNT = 8
WIDTH_MM = 70.0
"""Width and height of a picture in mm."""


def draw_worst_lesions(out: Path, read: Callable[[str], Volume], count: int = COUNT) -> list[Path]:
    """Draw the worst lesions of lesions.csv, with the maps in `predictions`, as `overlays/worst/*.png`.

    `captions.json` beside them holds the captions, in the same order.

    Args:
        out: Folder of the results.
        read: Returns the scan with a given name.
        count: Largest number of pictures.
    """
    folder = out / "overlays" / "worst"
    for old in folder.glob("*.png"):
        old.unlink()
    pictures: dict[int, tuple[Path, str]] = {}
    by_map: dict[str, dict[str, list[tuple[int, Row]]]] = {}  # subject -> class -> rank and line
    for rank, row in enumerate(worst_first(read_lesions(out))[:count]):
        by_map.setdefault(row["subject"], {}).setdefault(row["target_class"], []).append((rank, row))
    for subject, by_class in by_map.items():
        volume = read(subject)
        scan = _Scan.of(volume)
        for target_class, rows in by_class.items():
            map_path = out / "predictions" / f"{subject}_class{target_class}.nii.gz"
            if not map_path.is_file():
                continue
            result = scan.grid.to_stack(torch.from_numpy(_read_map(map_path, volume))).numpy()
            for rank, row in rows:
                lesion = scan.lesions == int(row["lesion"])
                path = folder / f"{rank:02d}_{subject}_lesion{row['lesion']}.png"
                with whole_file(path) as part:
                    _draw(scan, lesion, result, row).savefig(part, format="png", dpi=100)
                pictures[rank] = path, _caption(lesion, result, row)
    captions = [{"file": path.name, "caption": caption} for _, (path, caption) in sorted(pictures.items())]
    write_text(folder / "captions.json", json.dumps(captions, indent=2) + "\n")
    return [path for _, (path, _) in sorted(pictures.items())]


def _read_map(path: Path, volume: Volume) -> InstanceMap:
    return whole_numbers(read_on_grid(path, volume.grid, f"scan {volume.subject}"), path)


class _Scan(NamedTuple):
    """A scan as stacks (S, H, W), raw intensities and lesion ids, and the intensities drawn black and white."""

    grid: SliceGrid
    image: npt.NDArray[np.float32]
    lesions: InstanceMap
    black: float
    white: float

    @classmethod
    def of(cls, volume: Volume) -> _Scan:
        grid = SliceGrid.of(volume.shape, volume.affine)
        image = grid.to_stack(volume.image.float().cpu()).numpy()
        levels = grey_levels(image, volume.channel)
        return cls(grid, image, grid.to_stack(volume.lesions.cpu()).numpy(), *levels)


def _caption(lesion: Mask, result: InstanceMap, row: Row) -> str:
    name = f"{row['subject']}, lesion {row['lesion']}, {float(row['volume_ml']):.1f} ml"
    if row["found"].lower() == "true":
        return f"{name}: Dice {float(row['dice']):.2f}"
    covered = float((result[lesion] > 0).mean())
    return f"{name}: missed" + (f"; {covered:.0%} of it lies in a found lesion that matches another" if covered else "")


def _draw(scan: _Scan, lesion: Mask, result: InstanceMap, row: Row) -> Figure:
    """Draw a square of the slice on which a lesion is largest, with the outlines of the true and the found lesion."""
    grid = scan.grid
    index = int(lesion.sum((1, 2)).argmax())
    y, x = (int(at.mean()) for at in np.nonzero(lesion[index]))
    half = (round(WIDTH_MM / 2 / grid.row_mm), round(WIDTH_MM / 2 / grid.column_mm))
    top, left = max(0, y - half[0]), max(0, x - half[1])
    window = (index, slice(top, y + half[0] + 1), slice(left, x + half[1] + 1))
    figure = Figure(figsize=(2.4, 2.4), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(scan.image[window], cmap="gray", vmin=scan.black, vmax=scan.white, aspect=grid.row_mm / grid.column_mm)
    kind = "found" if row["found"].lower() == "true" else "missed"
    for mask, (colour, style) in ((lesion[window], STYLES[kind]), (result[window] > 0, ("#FFFFFF", "dotted"))):
        if mask.any():
            padded = np.pad(mask, 1).astype(np.float32)
            rows, columns = np.arange(-1, mask.shape[0] + 1), np.arange(-1, mask.shape[1] + 1)
            axes.contour(columns, rows, padded, levels=[0.5], colors=[colour], linestyles=[style], linewidths=1.3)
    scale_bar(axes, lesion[window].shape, grid.column_mm)
    axes.set_axis_off()
    return figure
