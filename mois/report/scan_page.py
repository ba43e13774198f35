"""A picture and a page of the lesions found in one scan; no true lesions are needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mois.evaluation.overlays import STYLES, grey_levels, outline, telling_slices
from mois.evaluation.slice_labels import number_lesions, scale_bar
from mois.files.atomic import whole_file
from mois.geometry import SliceGrid
from mois.lesions import InstanceMap
from mois.records import Volume
from mois.report.html_page import KeyFigure, Page, Picture, Section, Table, picture_uri, write_page
from mois.session.output_files import LesionRow

PICTURE, PAGE = "lesions.png", "lesions.html"
KINDS = ("prompted", "found")
PANELS = 6
PANEL_INCHES = 4.2
WIDE_SLICE = 0.8
"""If a slice is wider than this share of its height, two rows of three panels are used instead of one row of six."""


def write_scan_page(
    folder: Path, volume: Volume, rows: Sequence[LesionRow], remarks: Sequence[str] = (), advice: Sequence[str] = ()
) -> list[Path]:
    """Write `lesions.png` and `lesions.html` into a folder, each whole or not at all.

    Args:
        folder: Folder to write into.
        volume: The scan, with the found lesions as its lesions.
        rows: A row for each lesion.
        remarks: Warnings for the top of the page.
        advice: Advice on what to do next.

    Returns:
        Paths of both files.
    """
    grid = SliceGrid.of(volume.shape, volume.affine)
    lesions: InstanceMap = grid.to_stack(volume.lesions).numpy()
    image = grid.to_stack(volume.image.float().cpu()).numpy()
    picture = folder / PICTURE
    with whole_file(picture) as part:
        draw_lesions(image, lesions, rows, (grid.row_mm, grid.column_mm), volume.channel).savefig(
            part, format="png", dpi=120
        )
    page = Page(
        f"Lesions in {volume.subject}",
        f"{_count(rows, 'prompted')} prompted, {_count(rows, 'found')} found. For research; not a medical device.",
        [
            Section("Where they are", [Picture(picture_uri(picture), _caption(lesions))]),
            *([Section("Each lesion", [_table(rows)], "Numbers are those of lesions.nii.gz.")] if rows else []),
            *([Section("What to do next", [], " ".join(advice))] if advice else []),
        ],
        [
            KeyFigure("Lesions", str(len(rows)), "", ""),
            KeyFigure("Volume", f"{sum(row.volume_ml for row in rows):.3g}", "ml", ""),
        ],
        list(remarks),
    )
    return [picture, write_page(folder / PAGE, page)]


def draw_lesions(
    image: npt.NDArray[np.float32],
    lesions: InstanceMap,
    rows: Sequence[LesionRow],
    pixel_mm: tuple[float, float],
    channel: str = "",
) -> Figure:
    """Draw the slices that show most lesions, with the outline and the number of each lesion.

    Args:
        image: (S, H, W) raw intensities.
        lesions: (S, H, W) int32, numbers of the lesions.
        rows: A row for each lesion.
        pixel_mm: Height and width of a pixel.
        channel: Name of the image in dataset.json.
    """
    pixel_aspect = pixel_mm[0] / pixel_mm[1]
    of_kind = {kind: [row.id for row in rows if row.origin == kind] for kind in KINDS}
    maps = {kind: np.where(np.isin(lesions, ids), lesions, 0) for kind, ids in of_kind.items()}
    slices = telling_slices(maps["prompted"], maps["found"], PANELS) or [len(image) // 2]
    width = image.shape[2] / (image.shape[1] * pixel_aspect)
    columns = min(len(slices), 3 if width > WIDE_SLICE and len(slices) > 3 else PANELS)
    lines = math.ceil(len(slices) / columns)
    size = (max(6.0, columns * PANEL_INCHES * width), lines * PANEL_INCHES + 0.9)
    figure = Figure(figsize=size, facecolor="black")
    FigureCanvasAgg(figure)
    black, white = grey_levels(image, channel)
    panels = figure.subplots(lines, columns, squeeze=False).reshape(-1)
    for axes in panels:
        axes.set_axis_off()
    for axes, index in zip(panels, slices, strict=False):  # the last row may have empty panels
        axes.imshow(image[index], cmap="gray", vmin=black, vmax=white, aspect=pixel_aspect, interpolation="nearest")
        for kind, kind_map in reversed(maps.items()):  # prompted lesions on top
            colour, style = STYLES[kind]
            for lesion in np.unique(kind_map[index][kind_map[index] > 0]):
                outline(axes, kind_map[index] == lesion, colour, style, 1.1)
        scale_bar(axes, image.shape[1:], pixel_mm[1])
        axes.set_title(f"slice {index + 1} of {len(image)}", color="white", fontsize=8)
    handles = [
        Line2D([], [], color=STYLES[kind][0], linestyle=STYLES[kind][1], label=f"{len(of_kind[kind])} {kind}")
        for kind in KINDS
    ]
    figure.legend(handles=handles, loc="lower center", ncols=2, labelcolor="white", frameon=False, fontsize=9)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.4 / size[1], top=1 - 0.3 / size[1], wspace=0.02, hspace=0.1)
    known = maps["prompted"] + maps["found"]
    for axes, index in zip(panels, slices, strict=False):
        number_lesions(figure, axes, known[index])
    return figure


def _caption(lesions: InstanceMap) -> str:
    shown = telling_slices(lesions, np.zeros_like(lesions), PANELS)
    hidden = len(np.unique(lesions[lesions > 0])) - len(np.unique(lesions[shown][lesions[shown] > 0]))
    return f"{hidden} more lesions lie on other slices." if hidden else "Every lesion is on one of these slices."


def _table(rows: Sequence[LesionRow]) -> Table:
    columns = ("number", "origin", "ml", "confidence", "left, back, head in mm (LPS)", "status", "most like")
    cells = [
        [
            str(row.id),
            row.origin,
            f"{row.volume_ml:.3g}",
            f"{row.confidence:.2f}",
            f"{row.x_lps_mm:.1f}, {row.y_lps_mm:.1f}, {row.z_lps_mm:.1f}",
            row.status,
            row.exemplar,
        ]
        for row in sorted(rows, key=lambda row: (row.origin != "prompted", -row.confidence, row.id))
    ]
    return Table(columns, cells, words=(1, 5, 6))


def _count(rows: Sequence[LesionRow], origin: str) -> int:
    return sum(row.origin == origin for row in rows)
