"""A scan with its lesions: a time point of a patient, and where it is read from."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import cc3d
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.errors import DataError
from mois.records import Volume
from mois.scans.image_files import name_of
from mois.scans.labels import whole_numbers
from mois.scans.volumes import read_images, read_on_grid
from mois.session.header import read_scan
from mois.session.journal import NAME, find_journal, read_journal


class TimePoint(NamedTuple):
    """A scan with its lesions.

    Attributes:
        volume: The scan.
        labels: Lesion ids on its grid, (I, J, K) int32.
    """

    volume: Volume
    labels: Tensor

    @property
    def lesion_count(self) -> int:
        """Number of lesions."""
        return int(np.count_nonzero(np.unique(self.labels.numpy())))


PIECES = 3
"""A map whose values lie in as many pieces each, in the mean, looks like one of classes."""


class HasLesions(Protocol):
    """A session, or anything else with a scan and its lesions."""

    @property
    def volume(self) -> Volume:
        """The scan."""

    def label_map(self) -> Tensor:
        """Return the lesion ids on the grid of the scan, (I, J, K) int32."""


def time_point_of(source: HasLesions | TimePoint | Path) -> TimePoint:
    """Return a time point, given it, a session, or the folder of a saved session."""
    if isinstance(source, TimePoint):
        return source
    return read_time_point(source) if isinstance(source, Path) else TimePoint(source.volume, source.label_map())


def read_time_point(lesions: Path, image: Path | None = None, patient: str | None = None) -> TimePoint:
    """Read a time point from files.

    Args:
        lesions: Folder of a saved session, or a label map.
        image: Image of the scan. None takes the image that the session was made on; a label map needs it.
        patient: Name of the patient. None takes that of the session, or the name of the label map.

    Raises:
        DataError: If a file is missing, or the label map is not on the grid of its scan.
    """
    if lesions.is_dir():
        header: Mapping[str, str] = read_journal(find_journal(lesions)).header
        labels, name = lesions / "lesions.nii.gz", str(header["patient"])
        if not labels.is_file():
            raise DataError(f"{lesions}: the session has no lesions.nii.gz; save it first.")
    else:
        header, labels, name = {}, lesions, name_of(lesions)
        if not lesions.exists():
            raise DataError(f"{lesions}: no such file or folder; correct the path.")
        if image is None:
            raise DataError(f"{lesions}: a label map does not say its scan ({NAME} does); give the image of the scan.")
    subject, who = str(header.get("subject", name)), patient or name
    if image is None:
        volume = read_scan({**header, "patient": who})
    else:
        volume = read_images({"": image}, subject=subject, patient=who)
    values = whole_numbers(read_on_grid(labels, volume.grid, "its scan", "the label map"), labels)
    if not header:
        _warn_of_classes(values, labels)
    return TimePoint(volume, torch.from_numpy(np.ascontiguousarray(values, np.int32)))


def _warn_of_classes(values: npt.NDArray[np.int32], file: Path) -> None:
    """Warn of a map whose values look like classes: all lesions of a class would be one lesion."""
    count = int(np.count_nonzero(np.unique(values)))
    pieces = int(cc3d.connected_components(values.astype(np.uint32), return_N=True)[1])
    if count and pieces >= PIECES * count:
        what = f"its {count} values lie" if count > 1 else "its single value lies"
        warnings.warn(
            f"{file}: {what} in {pieces} pieces, so it looks like a map of classes; a follow-up needs lesion ids, such "
            "as those of instancesTr",
            stacklevel=3,
        )
