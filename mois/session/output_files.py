"""The result files of a session: lesions.nii.gz, lesions.seg.nrrd, confidence.nii.gz and lesions.csv."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import mois
from mois.errors import DataError
from mois.files.atomic import file_sha256, write_text
from mois.files.csv_tables import csv_text
from mois.files.json_records import read_record
from mois.geometry import SliceGrid
from mois.records import Volume
from mois.scans.dicom_segments import can_write, is_series, write_dicom_segments
from mois.scans.image_files import write_volume
from mois.scans.segments import Segment, write_segments
from mois.session.state import Lesion, State

RESULTS = (
    "lesions.nii.gz",
    "lesions.seg.nrrd",
    "lesions.dcm",
    "confidence.nii.gz",
    "lesions.csv",
    "lesions.png",
    "lesions.html",
    "bank.safetensors",
)
"""Result files of a session, beside its journal."""
RECORD = "results.json"
"""File with the SHA-256 of each result file, as it was written."""


@dataclass(frozen=True)
class LesionRow:
    """One row of lesions.csv: a lesion.

    Attributes:
        id: Value of the lesion in lesions.nii.gz.
        volume_ml: Volume in millilitres.
        x_lps_mm: Centre of mass, mm to the patient's left.
        y_lps_mm: Centre of mass, mm to the back.
        z_lps_mm: Centre of mass, mm to the head.
        confidence: Probability that it is a lesion, 0 to 1; 1 if the reader prompted or accepted it.
        origin: `prompted` or `found`.
        status: `open`, `accepted` or `locked`.
        exemplar: Key of the lesion's own exemplar, or of the exemplar that the lesion is most like.
        clicks: Number of prompts of all kinds.
        type: Type of the lesion. The file has this column if the session has several models.
    """

    id: int
    volume_ml: float
    x_lps_mm: float
    y_lps_mm: float
    z_lps_mm: float
    confidence: float
    origin: str
    status: str
    exemplar: str
    clicks: int
    type: str = ""


def lesion_rows(state: State, grid: SliceGrid, voxel_ml: float) -> list[LesionRow]:
    """Return the rows of lesions.csv, by id."""
    return [_row(number, state.lesions[number], grid, voxel_ml) for number in sorted(state.lesions)]


def _row(number: int, lesion: Lesion, grid: SliceGrid, voxel_ml: float) -> LesionRow:
    x, y, z = grid.to_lps_mm(torch.tensor([lesion.mask.centre()], dtype=torch.float64))[0].tolist()
    status = "accepted" if lesion.accepted else "locked" if lesion.locked else "open"
    return LesionRow(
        number,
        lesion.mask.voxels * voxel_ml,
        x,
        y,
        z,
        lesion.confidence,
        lesion.origin,
        status,
        lesion.explained_by,
        len(lesion.prompts),
        lesion.type,
    )


def check_free(folder: Path) -> None:
    """Refuse a folder that holds result files without a session.

    Raises:
        ValueError: If it does; the message names the file that would be overwritten.
    """
    for name in RESULTS:
        if (folder / name).exists():
            raise ValueError(
                f"out={folder} holds {name}, but no session; choose another folder, or move the file away."
            )


def check_unchanged(folder: Path) -> None:
    """Refuse to overwrite result files that were edited after they were written.

    Sessions of earlier versions have no digests of their files. Their files are overwritten.

    Raises:
        ValueError: If a file was edited; the message names the file.
    """
    if not (folder / RECORD).exists():
        return
    for name, sha256 in read_record(folder / RECORD, dict[str, str], "remove it to write the results anew").items():
        path = folder / name
        if name in RESULTS and path.is_file() and not path.is_symlink() and file_sha256(path) != sha256:
            raise ValueError(
                f"{path} was changed after it was written; move it away to have it written anew, or choose another "
                "folder."
            )


@contextmanager
def recorded_results(folder: Path) -> Iterator[None]:
    """Write result files in a `with` block; their digests are recorded after it.

    Raises:
        ValueError: If a result file was edited after it was written.
    """
    check_unchanged(folder)
    (folder / RECORD).unlink(missing_ok=True)  # a killed process leaves files without digests
    try:
        yield
    finally:
        written = [name for name in RESULTS if (folder / name).is_file()]
        write_text(folder / RECORD, json.dumps({name: file_sha256(folder / name) for name in written}, indent=2) + "\n")


def segments_of(rows: Sequence[LesionRow]) -> list[Segment]:
    """Return a segment for each lesion, for viewers."""
    return [Segment(row.id, f"{row.type or 'lesion'} {row.id}", finished=row.status == "accepted") for row in rows]


def _write_for_series(folder: Path, labels: NDArray[Any], volume: Volume, segments: Sequence[Segment]) -> None:
    """Write lesions.dcm for a scan from DICOM. Where that cannot be, a warning says why; the other files are there."""
    path = folder / "lesions.dcm"
    path.unlink(missing_ok=True)
    if not segments or not volume.path or not is_series(Path(volume.path)):
        return
    if not can_write():
        warnings.warn("lesions.dcm (DICOM-SEG) is not written: install mois[dicom].", stacklevel=2)
        return
    try:
        write_dicom_segments(labels, Path(volume.path), segments, path, mois.__version__)
    except (DataError, OSError) as error:
        warnings.warn(f"lesions.dcm (DICOM-SEG) is not written: {error}", stacklevel=2)


def write_lesion_files(folder: Path, state: State, grid: SliceGrid, volume: Volume, rows: Sequence[LesionRow]) -> None:
    """Write the lesions on the scanner's grid, and lesions.csv.

    lesions.nii.gz (int32) and lesions.seg.nrrd hold the ids of lesions, confidence.nii.gz (float32) their confidence.
    A scan from DICOM gets lesions.dcm (DICOM-SEG), too.

    Args:
        folder: Folder of the files.
        state: State with the lesions.
        grid: Grid of the scan.
        volume: The scan.
        rows: Rows of lesions.csv.
    """
    labels = grid.to_volume(torch.from_numpy(state.label_map(grid.stack_shape)))
    confidence = np.zeros(grid.stack_shape, dtype=np.float32)
    for lesion in state.lesions.values():
        lesion.mask.paint(confidence, lesion.confidence)
    affine, segments = volume.affine, segments_of(rows)
    write_volume(labels, affine, folder / "lesions.nii.gz")
    write_segments(labels.numpy(), affine, segments, folder / "lesions.seg.nrrd")
    _write_for_series(folder, labels.numpy(), volume, segments)
    write_volume(grid.to_volume(torch.from_numpy(confidence)), affine, folder / "confidence.nii.gz")
    typed = any(row.type for row in rows)
    columns = [field.name for field in fields(LesionRow) if typed or field.name != "type"]
    lines = []
    for row in rows:
        plain = {name: value for name, value in asdict(row).items() if name in columns}
        for name in ("volume_ml", "x_lps_mm", "y_lps_mm", "z_lps_mm", "confidence"):
            plain[name] = f"{plain[name]:.4f}"
        lines.append(plain)
    write_text(folder / "lesions.csv", csv_text(columns, lines))
