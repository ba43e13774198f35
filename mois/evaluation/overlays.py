"""Pictures of a result: outlines of prompted, found, missed and false lesions on the slices that show most lesions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mois.evaluation.figures import ClassReport
from mois.evaluation.slice_labels import scale_bar
from mois.files.atomic import whole_file
from mois.intensities import is_ct, levels
from mois.lesions import InstanceMap, Mask
from mois.metrics.overlap import match_lesions

# The palette of Okabe and Ito, for readers with any colour vision. Outlines of the model are also dashed or dotted.
STYLES: dict[str, tuple[str, Literal["solid", "dashed", "dotted"]]] = {
    "prompted": ("#56B4E9", "solid"),
    "found": ("#009E73", "solid"),
    "missed": ("#E69F00", "solid"),
    "false": ("#CC79A7", "dashed"),
    "model's outline": ("#FFFFFF", "dotted"),
}
PANELS = 4


def lesion_kinds(true_map: InstanceMap, result_map: InstanceMap, report: ClassReport) -> dict[str, Mask]:
    """Return the masks to outline, (S, H, W) bool, by name of the style.

    Args:
        true_map: Instance map (S, H, W) int32 of the class.
        result_map: Instance map of the reader's final result.
        report: Which true lesions were prompted and found.
    """
    return _kinds(true_map, result_map, report, match_lesions(result_map, true_map).false)


def _kinds(
    true_map: InstanceMap, result_map: InstanceMap, report: ClassReport, false: Sequence[int]
) -> dict[str, Mask]:
    """Return the masks to outline, if the false lesions are known; the maps may be some slices of the scan."""
    kinds = {
        row.lesion: "prompted" if row.role == "prompted" else "found" if row.found else "missed"
        for row in report.lesions
    }
    masks = {
        kind: np.isin(true_map, [lesion for lesion, style in kinds.items() if style == kind])
        for kind in list(STYLES)[:3]
    }
    masks["false"] = np.isin(result_map, false)
    masks["model's outline"] = (result_map > 0) & ~masks["false"]
    return masks


def telling_slices(true_map: InstanceMap, result_map: InstanceMap, count: int = PANELS) -> list[int]:
    """Return up to `count` slices, ascending, that show most of the true and found lesions."""
    covered: set[int] = set()
    lesions_on_slice = [
        set(np.unique(t[t != 0]).tolist()) | {-lesion for lesion in np.unique(r[r != 0]).tolist()}
        for t, r in zip(true_map, result_map, strict=True)
    ]
    chosen: list[int] = []
    while len(chosen) < count:
        best = max(range(len(lesions_on_slice)), key=lambda index: len(lesions_on_slice[index] - covered))
        if not lesions_on_slice[best] - covered:
            break
        covered |= lesions_on_slice[best]
        chosen.append(best)
    return sorted(chosen)


def grey_levels(image: npt.NDArray[np.float32], channel: str = "") -> tuple[float, float]:
    """Return the intensities that are drawn black (the background) and white (1 after normalisation).

    A background in the midst of the intensities, such as 0 around the difference of two scans, is drawn grey.

    Args:
        image: Raw intensities.
        channel: Name of the image in dataset.json; CT is drawn in its window.
    """
    outside, low, high, _ = levels(torch.from_numpy(image), channel=channel)
    black = low if outside is None or is_ct(channel) else min(low, float(image[outside.numpy()].max()))
    return black, high if high > black else black + 1.0


def draw_overlay(
    image: npt.NDArray[np.float32],
    true_map: InstanceMap,
    result_map: InstanceMap,
    report: ClassReport,
    pixel_mm: tuple[float, float],
    channel: str = "",
    grey: tuple[float, float] | None = None,
) -> Figure:
    """Draw a result.

    Args:
        image: (S, H, W) raw intensities.
        true_map: Instance map (S, H, W) int32 of the class.
        result_map: Instance map of the reader's final result.
        report: Report on this class.
        pixel_mm: Height and width of a pixel.
        channel: Name of the image in dataset.json.
        grey: What `grey_levels` gives for the image, if it is known.
    """
    slices = telling_slices(true_map, result_map) or [len(image) // 2]
    false = match_lesions(result_map, true_map).false
    masks = _kinds(true_map[slices], result_map[slices], report, false)
    panel_inches, pixel_aspect = 5.0, pixel_mm[0] / pixel_mm[1]
    width = panel_inches * image.shape[2] / (image.shape[1] * pixel_aspect)
    figure = Figure(figsize=(max(6.0, width * len(slices)), panel_inches + 1.0), facecolor="black")
    FigureCanvasAgg(figure)
    black, white = grey or grey_levels(image, channel)
    for number, (axes, index) in enumerate(zip(figure.subplots(1, len(slices), squeeze=False)[0], slices, strict=True)):
        axes.imshow(image[index], cmap="gray", vmin=black, vmax=white, aspect=pixel_aspect, interpolation="nearest")
        for kind, mask in masks.items():
            outline(axes, mask[number], *STYLES[kind])
        scale_bar(axes, image.shape[1:], pixel_mm[1])
        axes.set_title(f"slice {index + 1} of {len(image)}", color="white", fontsize=8)
        axes.set_axis_off()
    handles = [Line2D([], [], color=colour, linestyle=style, label=kind) for kind, (colour, style) in STYLES.items()]
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles), labelcolor="white", frameon=False, fontsize=8
    )
    figures = report.figures
    figure.suptitle(
        f"class {report.target_class}   right {_text(figures.right)}   wrong {_text(figures.wrong)}   "
        f"no exemplars {_text(figures.no_exemplars)}   scan Dice {_text(figures.scan_dice)}",
        color="white",
        fontsize=9,
    )
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.08, top=0.87, wspace=0.02)
    return figure


def save_overlay(
    path: Path,
    image: npt.NDArray[np.float32],
    true_map: InstanceMap,
    result_map: InstanceMap,
    report: ClassReport,
    pixel_mm: tuple[float, float],
    channel: str = "",
    grey: tuple[float, float] | None = None,
) -> None:
    """Write `draw_overlay` as PNG, whole or not at all."""
    with whole_file(path) as part:
        draw_overlay(image, true_map, result_map, report, pixel_mm, channel, grey).savefig(part, format="png", dpi=120)


def outline(
    axes: Axes, mask: Mask, colour: str, style: Literal["solid", "dashed", "dotted"], width: float = 0.8
) -> None:
    """Draw the outline of a mask (H, W) bool; nothing for an empty mask."""
    if not mask.any():
        return
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    # a contour keeps several copies of its input: 16 MB for a whole picture, and a figure has twenty contours
    padded = np.pad(mask[top:bottom, left:right], 1).astype(np.float32)  # so that the outline closes at the border
    across, down = np.arange(left - 1, right + 1), np.arange(top - 1, bottom + 1)
    axes.contour(across, down, padded, levels=[0.5], colors=[colour], linestyles=[style], linewidths=width)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
