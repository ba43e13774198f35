"""The images of a folder as MONAI Label serves them: their ids, and the session of each."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mois.errors import DataError, as_text
from mois.geometry import SliceGrid
from mois.grid import Grid
from mois.records import Volume
from mois.scans.channels import sequence_names
from mois.scans.labels import whole_numbers
from mois.scans.volumes import read_on_grid
from mois.serve.host import Host, Seat
from mois.serve.monailabel_app.lesion_names import LesionNames
from mois.session import InteractiveSession

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Endings of the images that are served."""
_NAME = re.compile(r"[^\x00-\x1f/\\:.~-][^\x00-\x1f/\\:]{0,199}")
"""A name of an image: one part of a path, which begins neither with a dot nor with the sign of an option."""

Result = TypeVar("Result")
Action = Callable[[InteractiveSession, LesionNames], Result]


def checked_id(name: object, what: str = "image") -> str:
    """Return the id of an image, or the tag of a label.

    Raises:
        ValueError: If it could lead out of the folder of the images.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"{what} must be a plain name without folders; got {str(name)[:40]!a}.")
    return name


@dataclass(frozen=True)
class OpenImage:
    """An image, opened by a client.

    Attributes:
        seat: The client at the session of the image.
        names: The reader's names of the lesions. All clients share them; they change on the device's thread alone.
        volume: The image.
        grid: Its grid, as the session uses it.
    """

    seat: Seat
    names: LesionNames
    volume: Volume
    grid: SliceGrid

    def do(self, action: Action[Result]) -> Result:
        """Do an action that may change the session.

        Raises:
            Watching: If another client writes to the image.
            ValueError: As the action raises it.
        """
        return self.seat.do(lambda session: self._named(session, action))

    def ask(self, question: Action[Result]) -> Result:
        """Ask for something that leaves the session as it is."""
        return self.seat.ask(lambda session: self._named(session, question))

    def _named(
        self, session: InteractiveSession, action: Callable[[InteractiveSession, LesionNames], Result]
    ) -> Result:
        self.names.follow(session.state.lesions)
        try:
            return action(session, self.names)
        finally:
            self.names.follow(session.state.lesions)
            self.names.save(names_file(self.seat))

    def read_label(self, path: Path) -> npt.NDArray[np.int32]:
        """Read a label that lies on the grid of the image, (I, J, K).

        Raises:
            ValueError: If it lies on another grid, or holds no whole numbers.
        """
        grid = Grid.of(self.volume.shape, self.volume.affine)
        return whole_numbers(read_on_grid(path, grid, "the image", "the label"), "the label")


def names_file(seat: Seat) -> Path:
    """Return the file of the reader's names, beside the session."""
    return seat.folder.parent / "labels.json"


@dataclass
class Images:
    """The images of a folder, and who has opened them.

    Attributes:
        folder: The folder.
        host: Keeps the sessions.
    """

    folder: Path
    host: Host
    _names: dict[str, LesionNames] = field(default_factory=dict)
    _seats: dict[tuple[str, str], Seat] = field(default_factory=dict)
    _open: dict[tuple[str, Path, int, int], OpenImage] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if len(sequences := sequence_names(self.host.model.segmenter.settings.channels)) > 1:
            raise ValueError(f"the model sees {', '.join(sequences)}, but MONAI Label knows one file for an image.")

    def open(self, client: object, image: object) -> OpenImage:
        """Open an image for a client.

        Args:
            client: Name of the client, or None.
            image: Id of an image in the folder.

        Raises:
            ValueError: If there is no such image, or it cannot be read.
        """
        return self.open_file(client, self.file(image), str(image))

    def open_file(self, client: object, file: Path, subject: str, *, passing: bool = False) -> OpenImage:
        """Open the image of a file for a client.

        Args:
            client: Name of the client, or None.
            file: The file.
            subject: Name of the image.
            passing: Whether the file will be removed. The image is then kept with its session.
        """
        about = file.stat()
        name = as_text(str(client))[:100] if client else "reader"
        key = (name, file, about.st_mtime_ns, about.st_size)
        with self._lock:
            if key not in self._open:
                volume = self.read(file, subject)
                seat = self.host.open(name, volume._replace(path="") if passing else volume)
                seat = self._seats.setdefault((name, seat.key), seat)  # two files may hold the same image
                names = self._names.setdefault(seat.key, LesionNames.load(names_file(seat)))
                grid = SliceGrid.of(volume.shape, volume.affine, self.host.model.segmenter.settings.slice_axis)
                self._open[key] = OpenImage(seat, names, volume, grid)
            return self._open[key]

    def read(self, file: Path, subject: str) -> Volume:
        """Read an image.

        Raises:
            ValueError: If the file is no image; the message does not say where the file lies.
        """
        try:
            return self.host.read(file, subject)
        except DataError as error:
            raise DataError(str(error).replace(str(file), "the image")) from error

    def file(self, image: object) -> Path:
        """Return the file of an image.

        Raises:
            ValueError: If there is none.
        """
        name = checked_id(image)
        found = next((file for end in ENDINGS if (file := self.folder / f"{name}{end}").is_file()), None)
        if found is None:
            raise ValueError(f"image={name}: there is no such image in the folder of the server; upload it first.")
        if not found.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"image={name}: is a link out of the folder of the server; put the image itself there.")
        return found
