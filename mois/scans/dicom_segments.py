"""Writes lesions as DICOM-SEG that refers to the series of the scan; needs the extra `dicom` (highdicom)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mois.errors import DataError
from mois.files.atomic import open_regular, write_bytes
from mois.scans.dicom import PREAMBLE, headers_in_order, is_dicom
from mois.scans.segments import Segment

_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
"""Entries that every DICOM file has, with or without a value. Programs that take names away may drop them."""


def can_write() -> bool:
    """Return whether highdicom is installed."""
    return find_spec("highdicom") is not None


def is_series(path: Path) -> bool:
    """Return whether a scan was read from DICOM: a folder, or a file that begins like DICOM."""
    if not path.is_file():
        return path.is_dir()
    with open_regular(path) as file:
        return is_dicom(file.read(PREAMBLE))


def write_dicom_segments(
    labels: NDArray[Any], series: Path, segments: Sequence[Segment], path: Path, version: str
) -> None:
    """Write a label map as DICOM-SEG, one segment a lesion, whole or not at all.

    Args:
        labels: (I, J, K) integers on the grid of the series, as `read_image` reads it.
        series: The folder or file of the scan.
        segments: The segments, one or more. Their order numbers them 1, 2, ...; names and colours stay.
        path: The file; an existing file is replaced.
        version: Version of this program.

    Raises:
        DataError: If the series lacks what a DICOM-SEG must repeat (FrameOfReferenceUID, StudyInstanceUID), or has
            another shape.
    """
    headers, places = headers_in_order(series)
    shape = (int(headers[0].Columns), int(headers[0].Rows), len(places))
    if labels.shape != shape:
        raise DataError(f"{series}: the series has {shape} voxels, the label map {labels.shape}; read the scan again.")
    for header in headers:
        _complete(series, header)
    numbers = np.zeros(max([int(labels.max(initial=0)), *(segment.value for segment in segments)]) + 1, np.uint16)
    for number, segment in enumerate(segments, start=1):
        numbers[segment.value] = number
    frames = np.ascontiguousarray(numbers[labels][:, :, places].transpose(2, 1, 0))
    with warnings.catch_warnings(action="ignore"):  # highdicom's would show the patient's name
        written = _segmentation(headers, frames, segments, version)
    content = io.BytesIO()
    written.save_as(content)
    write_bytes(path, content.getvalue())


def _complete(series: Path, header: Any) -> None:
    """Add entries that may be empty.

    Raises:
        DataError: If an entry is missing that must have a value.
    """
    for name in ("FrameOfReferenceUID", "StudyInstanceUID"):
        if not header.get(name):
            raise DataError(f"{series}: has no {name}, which a DICOM-SEG must repeat; export the series again.")
    for name in _MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, "")


def _segmentation(headers: Sequence[Any], frames: NDArray[np.uint16], segments: Sequence[Segment], version: str) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    by = highdicom.AlgorithmIdentificationSequence("MOIS", codes.DCM.ArtificialIntelligence, version)
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=" ".join(segment.name.split())[:64],
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=highdicom.sr.CodedConcept("52988006", "SCT", "Lesion"),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
            algorithm_identification=by,
            tracking_uid=generate_uid(),
            tracking_id=f"lesion {segment.value}",
            display_color=highdicom.color.CIELabColor.from_rgb(*(round(255 * part) for part in segment.colour)),
        )
        for number, segment in enumerate(segments, start=1)
    ]
    return highdicom.seg.Segmentation(
        source_images=headers,
        pixel_array=frames,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(),
        series_number=9001,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="MOIS",
        manufacturer_model_name="mois",
        software_versions=version,
        device_serial_number="0",
        content_label="LESIONS",
    )
