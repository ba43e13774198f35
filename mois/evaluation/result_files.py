"""Writes the result files: metrics.json and its tables, predictions and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mois.evaluation.actions.points import ActionPoint
from mois.evaluation.actions.statistics import summarise_actions
from mois.evaluation.figures import ClassReport, CountPoint, SubjectReport, TrueLesionRow
from mois.evaluation.overlays import grey_levels, save_overlay
from mois.evaluation.result_records import read_rows
from mois.evaluation.scoring import ClassResult
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.statistics import summarise
from mois.evaluation.true_lesions import TrueLesions
from mois.files.atomic import write_text
from mois.files.csv_tables import csv_text
from mois.geometry import SliceGrid
from mois.lesions import InstanceMap, LesionVoxels
from mois.metrics.surface import SURFACE_MM
from mois.records import Volume
from mois.scans.image_files import write_volume
from mois.sharing.calibration import Calibration


def write_result_files(
    out: Path,
    reports: Sequence[SubjectReport],
    provenance: Mapping[str, Any] | None = None,
    *,
    protocol: ProtocolSettings | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write `metrics.json`, `subjects.csv`, `lesions.csv`, `candidates.csv` and `curve.csv`, each whole or not at all.

    `actions.csv` is written too if there are curves over actions.

    Args:
        out: Folder of the results; it is made if missing.
        reports: One per scan.
        provenance: Record of what made the result, for metrics.json.
        protocol: How the scans were prompted and scored, for metrics.json.
        seed: Seed of the bootstrap.

    Returns:
        The content of metrics.json.
    """
    settings = {} if protocol is None else asdict(protocol)
    content = summarise(reports, protocol=settings, provenance=provenance, seed=seed)
    text = json.dumps({**content, **summarise_actions(reports, seed=seed)}, indent=2, allow_nan=False)
    write_text(out / "metrics.json", text + "\n")
    write_text(out / "subjects.csv", _table([report.row(settings.get("surface_mm", SURFACE_MM)) for report in reports]))
    write_text(out / "lesions.csv", _table(_class_rows(reports, attrgetter("lesions"))))
    write_text(out / "curve.csv", _table(_class_rows(reports, attrgetter("curve"))))
    if actions := _class_rows(reports, attrgetter("actions")):
        write_text(out / "actions.csv", _table(actions))
    write_text(
        out / "candidates.csv",
        _table([{"subject": report.subject, **asdict(row)} for report in reports for row in report.candidates]),
    )
    result: dict[str, Any] = json.loads(text)
    return result


def _class_rows(
    reports: Sequence[SubjectReport], parts: Callable[[ClassReport], Sequence[TrueLesionRow | CountPoint | ActionPoint]]
) -> list[dict[str, Any]]:
    """Return a row for each part of the report on each class."""
    return [
        {"subject": report.subject, "target_class": one.target_class, **asdict(part)}
        for report in reports
        for one in report.classes
        for part in parts(one)
    ]


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV, with the columns of all rows. A cell is empty if its value was not measured."""
    return csv_text(list(dict.fromkeys(name for row in rows for name in row)), rows)


Row = dict[str, str]
"""A line of a CSV; an empty cell was not measured."""


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write one or more lines as CSV, whole or not at all."""
    write_text(path, csv_text(list(rows[0]), rows))


def add_confidence(path: Path, calibration: Calibration) -> None:
    """Add the calibrated confidence to candidates.csv."""
    rows = read_rows(path, ["peak"], shares=["peak"])
    if rows:
        confidences = calibration.confidence([float(row["peak"]) for row in rows])
        write_rows(path, [{**row, "confidence": f"{value:.6f}"} for row, value in zip(rows, confidences, strict=True)])


@dataclass(frozen=True)
class ScanFiles:
    """Writes the results of one scan on its own grid, and pictures of them.

    Attributes:
        volume: The scan.
        grid: Its slices.
        lesions: Its true lesions.
        out: Folder of the results.
    """

    volume: Volume
    grid: SliceGrid
    lesions: TrueLesions
    out: Path

    @cached_property
    def image(self) -> npt.NDArray[np.float32]:
        """Raw intensities (S, H, W)."""
        return self.grid.to_stack(self.volume.image.float().cpu()).numpy()

    @cached_property
    def grey(self) -> tuple[float, float]:
        """Intensities that are drawn black and white."""
        return grey_levels(self.image, self.volume.channel)

    def write_class(self, report: ClassReport, result: ClassResult, final: InstanceMap) -> None:
        """Write the final result and the prompted lesions of a class, and a picture of the final result."""
        name = f"{self.volume.subject}_class{report.target_class}"
        self._write_map(final, self.out / "predictions" / f"{name}.nii.gz")
        if result.tracked is not None and result.prompted:
            prompted = np.array([0, *result.prompted], dtype=np.int32)[result.tracked]
            self._write_map(prompted, self.out / "prompted" / f"{name}.nii.gz")
        true = self.lesions.only([row.lesion for row in report.lesions])
        edges_mm = (self.grid.row_mm, self.grid.column_mm)
        path = self.out / "overlays" / f"{name}.png"
        save_overlay(path, self.image, true, final, report, edges_mm, self.volume.channel, self.grey)

    def _write_map(self, lesions: InstanceMap, path: Path) -> None:
        array = torch.zeros(self.grid.shape, dtype=torch.int32)
        voxels = LesionVoxels.of(lesions)
        self.grid.view(array)[np.unravel_index(voxels.where, lesions.shape)] = voxels.lesion
        write_volume(array, self.volume.affine, path)
