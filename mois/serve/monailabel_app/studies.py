"""A folder of scans as MONAI Label serves it: image ids, the session of each image, and saved labels."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mois.files.atomic import refuse_links
from mois.geometry import SliceGrid
from mois.grid import Grid
from mois.records import Volume
from mois.scans.labels import whole_numbers
from mois.scans.volumes import read_images, read_on_grid
from mois.serve.monailabel_app.lesion_names import LesionNames
from mois.session import InteractiveSession
from mois.session.journal import NAME, has_begun
from mois.sharing.lesion_model import LesionModel

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Endings of the scans that are served."""
SESSIONS = "sessions"
"""Folder, beside the scans, of the sessions."""
_NAME = re.compile(r"[^\x00-\x1f/\\:.~-][^\x00-\x1f/\\:]{0,199}")
"""A name of a scan: one part of a path. It begins with no dot, and with nothing that a program takes for an option."""

Result = TypeVar("Result")


def checked_id(name: object, what: str = "image") -> str:
    """Return the id of an image, or the tag of a label.

    Raises:
        ValueError: If it could lead out of the folder of the scans.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"{what} must be a plain name without folders; got {str(name)[:40]!a}.")
    return name


@dataclass
class OpenScan:
    """A scan with its session.

    Attributes:
        session: The session.
        names: The reader's names of its lesions.
        grid: Grid of the scan, as the session uses it.
    """

    session: InteractiveSession
    names: LesionNames
    grid: SliceGrid


@dataclass
class Studies:
    """The folder of scans.

    Attributes:
        folder: The folder. Sessions lie in `sessions`, each under the id of its image.
        model: The model of all sessions.
    """

    folder: Path
    model: LesionModel
    _open: dict[str, OpenScan] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        (self.folder / SESSIONS).mkdir(parents=True, exist_ok=True)
        refuse_links(self.folder, ("", SESSIONS))

    def do(self, image: str, action: Callable[[OpenScan], Result], path: Path | None = None) -> Result:
        """Do an action in the session of an image. Actions of all images wait for each other.

        Args:
            image: Id of the image.
            action: What to do.
            path: File of the image; None: the file with this id in the folder.

        Raises:
            ValueError: If there is no such image, or the action cannot be done.
        """
        with self._lock:
            scan = self._opened(image, path)
            result = action(scan)
            scan.names.save(self._names_file(image))
            return result

    def gain(self, image: str) -> float | None:
        """Return the benefit of the next action on an image, as of its latest propagation; None if there is none."""
        with self._lock:
            return LesionNames.load(self._names_file(image)).gain

    def file(self, image: str) -> Path:
        """Return the file of an image.

        Raises:
            ValueError: If there is none.
        """
        name = checked_id(image)
        found = next((file for end in ENDINGS if (file := self.folder / f"{name}{end}").is_file()), None)
        if found is None:
            raise ValueError(f"image={image}: there is no such image in the folder of the studies; upload it first.")
        return found

    def read_label(self, scan: OpenScan, path: Path) -> npt.NDArray[np.int32]:
        """Read a label that lies on the grid of a scan, (I, J, K).

        Raises:
            ValueError: If it lies on another grid, or holds no whole numbers.
        """
        volume = scan.session.volume
        values = read_on_grid(path, Grid.of(volume.shape, volume.affine), "the image", "the label")
        return whole_numbers(values, "the label")

    def close(self) -> None:
        """Close all sessions. Their folders hold everything."""
        with self._lock:
            for scan in self._open.values():
                scan.session.close()
            self._open.clear()

    def _opened(self, image: str, path: Path | None) -> OpenScan:
        if image not in self._open:
            volume = read_images({"": path or self.file(image)}, subject=image, patient=image)
            session = self._session(image, volume)
            grid = SliceGrid.of(volume.shape, volume.affine, self.model.segmenter.settings.slice_axis)
            self._open[image] = OpenScan(session, LesionNames.load(self._names_file(image)), grid)
        return self._open[image]

    def _session(self, image: str, volume: Volume) -> InteractiveSession:
        folder = self.folder / SESSIONS / image
        if has_begun(folder / NAME):
            return InteractiveSession.load(folder, self.model, volume)
        return InteractiveSession(self.model, volume, folder)

    def _names_file(self, image: str) -> Path:
        return self.folder / SESSIONS / f"{image}.labels.json"
