"""One picture of the answers at several pixel sizes: a row for each size, the same slices in each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mois.evaluation.actions.pixel_trials import Annotated, PixelTrial, match_others
from mois.evaluation.overlays import STYLES, grey_levels, outline, telling_slices
from mois.evaluation.slice_labels import scale_bar
from mois.files.atomic import whole_file
from mois.geometry import SliceGrid
from mois.lesions import InstanceMap, Mask
from mois.records import Volume

SLICES = 4
PANEL_INCHES = 3.6
LEAST_INCHES = 6.5
"""Width that the words above and below the panels need."""
MARGIN = 0.08
"""Room around the body, as a share of the picture."""


def draw_trials(path: Path, volume: Volume, trials: Sequence[PixelTrial], annotated: Annotated | None = None) -> Path:
    """Draw the answers at several pixel sizes as one PNG.

    Args:
        path: PNG to write.
        volume: The scan.
        trials: One answer or more.
        annotated: The annotated lesions, to show which are missed and which are false; None if there are none.
    """
    grid = SliceGrid.of(volume.shape, volume.affine)
    image = grid.to_stack(volume.image.float()).numpy()
    slices = _slices(trials, annotated, len(image))
    rows, columns = _window(image, trials, annotated, slices)
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    aspect = grid.row_mm / grid.column_mm
    width = PANEL_INCHES * min(2.0, shape[1] / (shape[0] * aspect))
    size = (max(LEAST_INCHES, len(slices) * width), len(trials) * (PANEL_INCHES + 0.3) + 0.5)
    figure = Figure(figsize=size, facecolor="black")
    FigureCanvasAgg(figure)
    black, white = grey_levels(image, volume.channel)
    panels = figure.subplots(len(trials), len(slices), squeeze=False)
    for line, trial in zip(panels, trials, strict=True):
        masks = _masks(trial, annotated)
        for axes, index in zip(line, slices, strict=True):
            axes.set_axis_off()
            axes.set_anchor("W")  # at the left, where the words begin
            axes.imshow(image[index][rows, columns], cmap="gray", vmin=black, vmax=white, aspect=aspect)
            for kind, mask in masks.items():
                outline(axes, mask[index][rows, columns], *STYLES[kind], 1.1)
            scale_bar(axes, shape, grid.column_mm)
            label = f"slice {index + 1} of {len(image)}"
            axes.text(0.98, 0.98, label, transform=axes.transAxes, color="white", fontsize=7, ha="right", va="top")
        line[0].set_title(_headline(trial), color="white", fontsize=10, loc="left", pad=5)
    _legend(figure, annotated is not None)
    figure.subplots_adjust(
        left=0.01, right=0.99, bottom=0.4 / size[1], top=1 - 0.35 / size[1], wspace=0.02, hspace=0.12
    )
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=110)
    return path


def _slices(trials: Sequence[PixelTrial], annotated: Annotated | None, count: int) -> list[int]:
    """Return the slices that show most lesions: of the annotation, or of all answers."""
    if annotated is not None:
        known: InstanceMap = annotated.lesions
    else:
        known = np.zeros_like(trials[0].lesions)
        for trial in trials:
            known = np.where(known == 0, trial.lesions, known)
    return telling_slices(known, np.zeros_like(known), SLICES) or [count // 2]


def _window(
    image: npt.NDArray[np.float32], trials: Sequence[PixelTrial], annotated: Annotated | None, slices: Sequence[int]
) -> tuple[slice, slice]:
    """Return the rows and columns around all lesions of the slices, with a margin."""
    shown = [trial.lesions for trial in trials] + ([] if annotated is None else [annotated.lesions])
    there = np.any([(lesions[list(slices)] > 0).any(0) for lesions in shown], axis=0)  # (H, W)
    if not there.any():
        return slice(0, image.shape[1]), slice(0, image.shape[2])
    window = []
    for axis, edge in ((1, image.shape[1]), (0, image.shape[2])):
        places = np.flatnonzero(there.any(axis))
        room = max(4, round(MARGIN * edge))
        window.append(slice(max(0, int(places[0]) - room), min(edge, int(places[-1]) + room + 1)))
    return window[0], window[1]


def _masks(trial: PixelTrial, annotated: Annotated | None) -> Mapping[str, Mask]:
    """Return the masks to outline, by name of their style; prompted lesions last, on top."""
    prompted: Mask = np.isin(trial.lesions, trial.prompted)
    if annotated is None:
        return {"found": trial.found > 0, "prompted": prompted}
    matches = match_others(trial.lesions, trial.prompted, annotated)
    false = np.isin(trial.found, matches.false)
    return {
        "missed": np.isin(annotated.others, matches.missed),
        "false": false,
        "found": (trial.found > 0) & ~false,  # also what lies in a clicked lesion, which counts for nothing
        "prompted": prompted,
    }


def _headline(trial: PixelTrial) -> str:
    found = len(np.unique(trial.found[trial.found > 0]))
    text = f"{trial.pixel_mm:g} mm per pixel: {found} found"
    if trial.figures is None:
        return text
    figures = trial.figures
    return f"{text}, {figures.false_lesions} of them false; Dice of the others {figures.unprompted_dice:.2f}"


def _legend(figure: Figure, annotated: bool) -> None:
    kinds = ("prompted", "found", "missed", "false") if annotated else ("prompted", "found")
    handles = [Line2D([], [], color=STYLES[kind][0], linestyle=STYLES[kind][1], label=kind) for kind in kinds]
    figure.legend(handles=handles, loc="lower center", ncols=4, labelcolor="white", frameon=False, fontsize=9)
