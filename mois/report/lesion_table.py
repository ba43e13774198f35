"""Small pictures of single lesions, and a slice with the masks of all classes, for tables and loggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy import ndimage

from mois.evaluation.figures import ClassReport, SubjectReport, TrueLesionRow
from mois.evaluation.overlays import STYLES, grey_levels, telling_slices
from mois.geometry import SliceGrid
from mois.lesions import InstanceMap, Mask
from mois.records import Volume
from mois.scans.image_files import read_image
from mois.tracking.pictures import MaskedPicture, Pixels

COLUMNS = ("scan", "type", "lesion", "ml", "Dice", "found", "role", "picture")
"""Columns of the table of lesions."""

CROP_PX = 96
MARGIN_MM = 10.0
MOST_CROPS = 64
"""Number of lesions of a class in a scan that have a picture, the largest ones."""
_SHORTEST_PX, _LONGEST_PX = 256, 512


@dataclass(frozen=True)
class DrawnScan:
    """A scan as grey slices, with its true lesions and what a model found.

    Attributes:
        grey: (S, H, W) uint8.
        true_map: Instance map (S, H, W) int32.
        classes: Lesion id to class.
        results: Class to the instance map (S, H, W) of the model's final result.
        pixel_mm: Height and width of a pixel.
    """

    grey: npt.NDArray[np.uint8]
    true_map: InstanceMap
    classes: Mapping[int, int]
    results: Mapping[int, InstanceMap]
    pixel_mm: tuple[float, float]

    @classmethod
    def of(cls, volume: Volume, report: SubjectReport, folder: Path) -> DrawnScan:
        """Return a scan with the results that an evaluation wrote.

        Args:
            volume: The scan with its true lesions.
            report: Report on the scan.
            folder: Folder of the results, with `predictions/SUBJECT_classN.nii.gz`.
        """
        grid = SliceGrid.of(volume.shape, volume.affine)
        image = grid.to_stack(volume.image.float().cpu()).numpy()
        black, white = grey_levels(image, volume.channel)
        results = {}
        for one in report.classes:
            found, _ = read_image(folder / "predictions" / f"{volume.subject}_class{one.target_class}.nii.gz")
            results[one.target_class] = grid.to_stack(torch.from_numpy(found.astype(np.int32))).numpy()
        return cls(
            np.clip(255 * (image - black) / (white - black), 0, 255).astype(np.uint8),
            grid.to_stack(volume.lesions.cpu()).numpy(),
            volume.classes,
            results,
            (grid.row_mm, grid.column_mm),
        )

    def crop(self, target_class: int, row: TrueLesionRow) -> Pixels:
        """Return a true lesion on its largest slice, (96, 96, 3), with its outline and that of the model's result."""
        lesion = self.true_map == row.lesion
        index = int(lesion.sum((1, 2)).argmax())
        rows, columns = np.nonzero(lesion[index])
        middle = (rows.min() + rows.max() + 1) / 2, (columns.min() + columns.max() + 1) / 2
        extents_mm = np.ptp(rows) * self.pixel_mm[0], np.ptp(columns) * self.pixel_mm[1]
        edge_mm = float(max(extents_mm)) + 2 * MARGIN_MM
        window = [_window(at, edge_mm / mm) for at, mm in zip(middle, self.pixel_mm, strict=True)]
        pixels = np.repeat(_cut(self.grey[index], window)[..., None], 3, axis=2)
        picture = np.asarray(Image.fromarray(pixels).resize((CROP_PX, CROP_PX), Image.Resampling.BILINEAR)).copy()
        kind = "prompted" if row.role == "prompted" else "found" if row.found else "missed"
        outlines = {"model's outline": self.results[target_class][index] > 0, kind: lesion[index]}
        for style, mask in outlines.items():
            colour = STYLES[style][0].lstrip("#")
            picture[_outline(_cut(mask, window))] = [int(colour[at : at + 2], 16) for at in (0, 2, 4)]
        return picture

    def masked(self, names: Mapping[int, str]) -> MaskedPicture:
        """Return the slice with most true lesions, and the classes of the truth and of the model's result on it.

        Args:
            names: Class to its name.
        """
        slices = telling_slices(self.true_map, self.true_map, count=1) or [len(self.grey) // 2]
        index = slices[0]
        truth = np.zeros(self.grey.shape[1:], np.uint8)
        for lesion in np.unique(self.true_map[index][self.true_map[index] > 0]).tolist():
            truth[self.true_map[index] == lesion] = self.classes.get(lesion, 1)
        found = np.zeros_like(truth)
        for target_class, result in self.results.items():
            found[result[index] > 0] = target_class
        shown = sorted({*names, *self.results, *self.classes.values()})
        return MaskedPicture(
            np.repeat(self._square(self.grey[index], Image.Resampling.BILINEAR)[..., None], 3, axis=2),
            {"truth": self._square(truth), "model": self._square(found)},
            {number: names.get(number, f"class {number}") for number in shown},
        )

    def _square(
        self, plane: npt.NDArray[np.uint8], resampling: Image.Resampling = Image.Resampling.NEAREST
    ) -> npt.NDArray[np.uint8]:
        """Return a slice with square pixels."""
        edges_mm = plane.shape[0] * self.pixel_mm[0], plane.shape[1] * self.pixel_mm[1]
        mm = min(max(min(self.pixel_mm), max(edges_mm) / _LONGEST_PX), max(edges_mm) / _SHORTEST_PX)
        height, width = (max(1, round(edge / mm)) for edge in edges_mm)
        return np.asarray(Image.fromarray(plane).resize((width, height), resampling))


def lesion_rows(
    reports: Sequence[SubjectReport], drawn: Mapping[str, DrawnScan], names: Mapping[int, str]
) -> list[list[Any]]:
    """Return the rows of the table of lesions; see `COLUMNS`.

    Args:
        reports: Reports on all scans.
        drawn: Scans whose lesions have pictures, by their name.
        names: Class to its name.
    """
    rows: list[list[Any]] = []
    for report in reports:
        for one in report.classes:
            pictured = _largest(one) if report.subject in drawn else set()
            start = [report.subject, names.get(one.target_class, f"class {one.target_class}")]
            for row in one.lesions:
                crop = drawn[report.subject].crop(one.target_class, row) if row.lesion in pictured else None
                figures = [row.lesion, round(row.volume_ml, 4), round(row.dice, 4), row.found, row.role]
                rows.append([*start, *figures, crop])
    return rows


def _largest(report: ClassReport) -> set[int]:
    by_size = sorted(report.lesions, key=lambda row: (-row.volume_ml, row.lesion))
    return {row.lesion for row in by_size[:MOST_CROPS]}


def _window(middle: float, pixels: float) -> tuple[int, int]:
    start = round(middle - pixels / 2)
    return start, start + max(1, round(pixels))


def _cut(plane: npt.NDArray[Any], window: Sequence[tuple[int, int]]) -> npt.NDArray[Any]:
    """Return a part of a slice; what lies outside of the slice is 0."""
    part = np.zeros([end - start for start, end in window], plane.dtype)
    inside = [slice(max(0, start), min(size, end)) for (start, end), size in zip(window, plane.shape, strict=True)]
    there = [slice(one.start - start, one.stop - start) for one, (start, _) in zip(inside, window, strict=True)]
    part[tuple(there)] = plane[tuple(inside)]
    return part


def _outline(mask: Mask) -> Mask:
    """Return the outline of a mask, one pixel wide, on a picture of 96 x 96 pixels."""
    large = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((CROP_PX, CROP_PX), Image.Resampling.NEAREST)) > 0
    outline: Mask = large & ~ndimage.binary_erosion(large)
    return outline
