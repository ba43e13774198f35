"""A scan with its session, its folder and its clients.

STUDIES/SCAN-MODEL/            digests of the scan and of the model
    scan.nii                   the scan, if a client sent it; otherwise the session names its file
    types.json                 bundles of the types of lesions that a reader added
    session/                   the session, as `InteractiveSession` writes it
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mois.files.atomic import refuse_links
from mois.records import Volume
from mois.scans.image_files import write_volume
from mois.serve.served_models import ServedModels, write_added_type
from mois.session import InteractiveSession
from mois.session.header import about_model, checked_origin, model_digest
from mois.session.journal import NAME, has_begun, read_journal
from mois.sharing.lesion_model import LesionModel

if TYPE_CHECKING:
    from mois.serve.host import Seat

SESSION = "session"
"""Folder of the session in that of its study."""

WRITER_IDLE_S = 600.0
"""After so many seconds without an action, another client may write."""


def study_key(model: LesionModel, volume: Volume) -> str:
    """Return the name of a scan's folder: a digest of its voxels and grid, and one of model and settings."""
    about = about_model(model, volume)
    return f"{about['scan_sha256'][:16]}-{model_digest(about)[:8]}"


def study_folder(studies: Path, model: LesionModel, volume: Volume) -> Path:
    """Return the folder of a scan's study.

    After an update of the program, a model that follows sessions has other settings, so the folder has another name.
    Where none of today's name has a session, the latest session that the model can go on with is taken.

    Args:
        studies: Folder of all studies.
        model: The model of the server.
        volume: The scan.
    """
    key = study_key(model, volume)
    if not model.follows_sessions or has_begun(studies / key / SESSION / NAME):
        return studies / key
    scan = key.partition("-")[0]
    earlier = [folder for folder in studies.glob(f"{scan}-*") if _goes_on(folder, model, volume)]
    return max(earlier, key=lambda folder: (folder / SESSION / NAME).stat().st_mtime_ns, default=studies / key)


def _goes_on(folder: Path, model: LesionModel, volume: Volume) -> bool:
    """Return whether a folder holds a session of a scan that a model can go on with."""
    session = folder / SESSION
    if folder.is_symlink() or session.is_symlink() or not has_begun(session / NAME):
        return False
    try:
        with warnings.catch_warnings(action="ignore"):  # it is loaded afterwards, with the same warnings
            journal = read_journal(session)
            checked_origin(journal, model, None, _as_recorded(volume, journal.header))
    except (ValueError, OSError):  # a damaged one stays where it is
        return False
    return True


def _as_recorded(volume: Volume, header: dict[str, Any]) -> Volume:
    """Return a scan with the names and, if it is still there, the file of its session: it is the same scan."""
    path = header["path"] if Path(header["path"]).exists() else volume.path
    return volume._replace(subject=header["subject"], patient=header["patient"], path=path)


class Study:
    """A scan with its session. The session is opened when it is needed, where its last action left it.

    Args:
        folder: Folder of the study.
        models: The models of the server.

    Attributes:
        used: Time of the latest use, as `time.monotonic` gives it.
        writer: The client that writes; None if nobody does.
    """

    def __init__(self, folder: Path, models: ServedModels) -> None:
        self.folder = folder
        self.used = time.monotonic()
        self.writer: Seat | None = None
        self._wrote = 0.0
        self._models = models
        self._session: InteractiveSession | None = None
        self._session_lock = threading.RLock()
        self._writer_lock = threading.Lock()

    @property
    def session_folder(self) -> Path:
        """Folder of the session."""
        return self.folder / SESSION

    @property
    def session(self) -> InteractiveSession | None:
        """The session, if it is open."""
        return self._session

    def opened(self, volume: Volume | None = None) -> InteractiveSession:
        """Return the session; it is loaded or begun if it is not open.

        Args:
            volume: The scan. None reads it from where the session says.

        Raises:
            ValueError: If the session on the disk is damaged, or another process has opened it.
        """
        self.touch()
        if (session := self._session) is not None:
            return session
        with self._session_lock:
            if self._session is None:
                for folder in (self.folder, self.session_folder):
                    if folder.is_symlink():
                        raise ValueError("the folder of this scan is a link, which no server makes; remove the link.")
                refuse_links(self.folder)
                self._session = self._load(volume) if has_begun(self.session_folder / NAME) else self._begin(volume)
            return self._session

    @contextmanager
    def held(self) -> Iterator[InteractiveSession]:
        """Return the session for an action. It is not closed before the action is over."""
        with self._session_lock:
            yield self.opened()

    def _load(self, volume: Volume | None) -> InteractiveSession:
        header = read_journal(self.session_folder).header
        volume = None if volume is None else _as_recorded(volume, header)
        models = self._models.beside(str(header.get("type", "")), self.folder)
        return InteractiveSession.load(self.session_folder, self._models.first, volume, models=models)

    def _begin(self, volume: Volume | None) -> InteractiveSession:
        if volume is None:
            raise ValueError("the session of this scan is gone from its folder; open the scan again.")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not volume.path:
            file = self.folder / "scan.nii"
            write_volume(volume.image, volume.affine, file)
            volume = volume._replace(path=str(file))
        of, models = self._models, self._models.beside(self._models.type, self.folder)
        return InteractiveSession(of.first, volume, self.session_folder, type=of.type, models=models)

    def add_type(self, name: str, bundle: Path, model: LesionModel) -> None:
        """Go on with a new type of lesions. After a restart, its bundle is loaded again.

        Raises:
            ValueError: If the name cannot be one, or the type has another model.
        """
        with self.held() as session:
            session._types.add(name, model)
            write_added_type(self.folder, name, bundle)  # first: without it, the session could not be opened again
            session.use(name)

    def touch(self) -> None:
        """Note that the session is in use."""
        self.used = time.monotonic()

    def close(self) -> None:
        """Close the session. Its folder holds everything."""
        with self._session_lock:
            if self._session is not None:
                self._session.close()
                self._session = None

    def claim(self, seat: Seat) -> bool:
        """Make a client the writer, if nobody writes or the writer is idle. Return whether it is the writer."""
        with self._writer_lock:
            now = time.monotonic()
            if self.writer is None or now - self._wrote > WRITER_IDLE_S:
                self.writer = seat
            if self.writer is seat:
                self._wrote = now
            return self.writer is seat

    def leave(self, seat: Seat) -> None:
        """Take a client away."""
        with self._writer_lock:
            if self.writer is seat:
                self.writer = None
