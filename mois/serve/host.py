"""The host of all sessions: one session for each scan, one client that writes to it, others that watch."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from mois.inference.feature_store import FeatureBudget
from mois.machine.steps import Steps
from mois.records import Volume
from mois.scans.channels import named_images
from mois.scans.image_files import name_of
from mois.scans.volumes import read_images
from mois.serve.device_queue import DeviceQueue, Urgency
from mois.serve.refusals import Cancelled, Watching
from mois.serve.served_models import ServedModels
from mois.serve.studies import Study, study_folder
from mois.session import InteractiveSession
from mois.session.state import Preview
from mois.sharing.bundle_record import is_shipped
from mois.sharing.lesion_model import LesionModel

Result = TypeVar("Result")

NEARLY = 0.99
"""Share of a propagation that is done before its lesions are there."""


class Host:
    """Keeps the sessions of all clients in a folder, and does their work on one device.

    - A scan has one session, by its voxels and grid. It is found again after a restart, where its last action left it.
    - The first client of a scan writes. The others watch, until the writer leaves or does nothing for ten minutes.
    - All scans share one budget of memory for features. While nobody waits, the tiles of open scans are encoded.
    - At most `most_open` sessions are open. The session that was not used for longest is closed; its folder holds it.

    Args:
        studies: Folder of all sessions. It is made if it is missing, for this user alone.
        models: The model, or the models of several types of lesions.
        memory_gib: Features that all scans keep in memory together, in GiB.
        most_open: Largest number of open sessions.
    """

    def __init__(
        self, studies: Path, models: LesionModel | ServedModels, memory_gib: float = 4.0, most_open: int = 8
    ) -> None:
        self.studies = studies
        self.models = models if isinstance(models, ServedModels) else ServedModels(models)
        self.model = self.models.first
        self.queue = DeviceQueue()
        self._most_open = most_open
        self._lock = threading.Lock()
        self._known: dict[str, Study] = {}
        studies.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._budget = FeatureBudget(memory_gib)
        for model in self.models.all:
            model.segmenter.budget = self._budget

    def open(self, client: str, scan: Volume | Path, *, subject: str = "", patient: str = "") -> Seat:
        """Open the session of a scan for a client.

        Args:
            client: Name of the client, as other clients of the scan read it.
            scan: The scan, or its file or DICOM folder. A scan without a file is kept in the folder of its session.
            subject: Name of a scan that is read from a file; by default the name of the file.
            patient: Name of its patient; by default the subject.

        Raises:
            ValueError: If the file is no scan, or the session on the disk is damaged.
        """
        volume = scan if isinstance(scan, Volume) else self.read(scan, subject, patient)
        folder = self.folder_of(volume)
        with self._lock:
            study = self._known.setdefault(folder.name, Study(folder, self.models))
        self._make_room(study)
        study.opened(volume)
        seat = Seat(self, study, client)
        study.claim(seat)
        self.queue.submit_steps(partial(_encode, study), Urgency.IDLE)
        return seat

    def folder_of(self, volume: Volume) -> Path:
        """Return the folder of a scan's session, whether it has begun or not."""
        return study_folder(self.studies, self.model, volume)

    def read(self, scan: Path, subject: str = "", patient: str = "") -> Volume:
        """Read a scan from a file or a DICOM folder."""
        images = named_images([str(scan)], self.model.segmenter.settings.channels)
        name = subject or name_of(scan)
        return read_images(images, subject=name, patient=patient or name)

    def load_model(self, bundle: Path) -> LesionModel:
        """Return the model of a bundle that a reader adds.

        Raises:
            ValueError: If the folder is no bundle, or this server takes none.
        """
        if self.models.load is None:
            raise ValueError("this server takes no further bundles.")
        try:
            model = self.models.load(bundle)
        except OSError as error:
            raise ValueError(f"bundle={str(bundle)[:80]} cannot be read ({error.strerror}).") from error
        model.segmenter.budget = self._budget
        return model

    def _make_room(self, wanted: Study) -> None:
        """Close the sessions that were not used for longest, so that one more can be opened."""
        with self._lock:
            others = [study for study in self._known.values() if study is not wanted and study.session is not None]
        others.sort(key=lambda study: study.used)
        for study in others[: max(0, len(others) + 1 - self._most_open)]:
            study.close()

    def close(self) -> None:
        """End the work, and close all sessions."""
        self.queue.close()
        with self._lock:
            for study in self._known.values():
                study.close()


def _encode(study: Study) -> Steps[None]:
    """Encode the tiles of a scan, one after another, as long as its session is open."""
    session = study.session
    if session is None:
        return
    encoded = session.encoded
    for row in range(encoded.shown):
        if study.session is not session:
            return
        if row not in encoded.store:
            encoded.select(np.array([row]))
            yield None


class Seat:
    """A client at the session of a scan. `Host.open` returns it.

    Attributes:
        client: Name of the client.
    """

    def __init__(self, host: Host, study: Study, client: str) -> None:
        self.client = client
        self._host = host
        self._study = study

    @property
    def key(self) -> str:
        """Name of the scan's folder: digests of scan and model."""
        return self._study.folder.name

    @property
    def folder(self) -> Path:
        """Folder of the session."""
        return self._study.session_folder

    @property
    def role(self) -> str:
        """`writer` or `watcher`."""
        return "writer" if self._study.writer is self else "watcher"

    @property
    def writer(self) -> str:
        """Name of the client that writes; empty if nobody does."""
        return "" if self._study.writer is None else self._study.writer.client

    def do(self, action: Callable[[InteractiveSession], Result], urgency: Urgency = Urgency.CLICK) -> Result:
        """Do an action of the session on the device, and return its result: `seat.do(lambda s: s.click(point))`.

        Raises:
            Watching: If another client writes.
            ValueError: As the action raises it.
        """
        self._write()
        return self._host.queue.submit(partial(self._held, action), urgency).result()

    def ask(self, question: Callable[[InteractiveSession], Result], urgency: Urgency = Urgency.CLICK) -> Result:
        """Ask the session something that needs the device but changes nothing, such as `suggest`. Watchers may ask."""
        return self._host.queue.submit(partial(self._held, question), urgency).result()

    def look(self, question: Callable[[InteractiveSession], Result]) -> Result:
        """Look at the session without waiting for the device: `state`, `lesions()`, `label_map()`, `actions`."""
        return question(self._study.opened())

    def preview(
        self, point_lps_mm: tuple[float, float, float], lesion: int | None = None, positive: bool = True
    ) -> Preview:
        """Return what a click would show; see `InteractiveSession.preview`."""
        return self.ask(lambda session: session.preview(point_lps_mm, lesion, positive))

    def propagate(
        self, progress: Callable[[float], None] | None = None, cancelled: Callable[[], bool] | None = None
    ) -> int:
        """Find all lesions like the exemplars; actions of all clients are done meanwhile. Return their number.

        An action that changes the exemplars makes it begin again, behind the propagations of other clients. So it ends
        once no such action comes for as long as one search takes.

        Args:
            progress: Is told the share that is done, 0 to 1. It goes back to 0 if an action changed the exemplars.
            cancelled: Asked after each step whether to stop.

        Raises:
            Watching: If another client writes.
            Cancelled: If it was cancelled. Then nothing has changed.
        """
        self._write()
        found = None
        while found is None:
            if progress is not None:
                progress(0.0)
            found = self._host.queue.submit_steps(partial(self._propagated, progress, cancelled)).result()
        if progress is not None:
            progress(1.0)
        return found

    def _propagated(
        self, progress: Callable[[float], None] | None, cancelled: Callable[[], bool] | None
    ) -> Steps[int | None]:
        """Propagate, and return the number of found lesions; None if the propagation must begin again."""
        session = self._study.opened()
        for share in session.prepare_propagation():
            if progress is not None:
                progress(min(share, NEARLY))
            if cancelled is not None and cancelled():
                raise Cancelled
            self._study.touch()
            yield share
            if session is not self._study.session:  # closed meanwhile
                return None
            if self._study.writer is self:
                self._study.claim(self)  # it is at work
            elif self._study.writer is not None:  # its client left
                raise Watching(self.writer)
        with self._study.held() as now:
            return now.propagate() if now is session and now.is_prepared else None

    def add_type(self, name: str, bundle: Path) -> None:
        """Go on with a new type of lesions, which the model of a bundle finds.

        Raises:
            Watching: If another client writes.
            ValueError: If the folder is no bundle, the name cannot be one, or the type has another model.
        """
        self._write()
        folder = bundle
        if not is_shipped(bundle):
            folder = Path(os.path.abspath(os.path.expanduser(bundle)))  # noqa: PTH100, PTH111 - these never fail
        model = self._host.load_model(folder)
        self._host.queue.submit(partial(self._study.add_type, name, folder, model), Urgency.CLICK).result()

    def ask_to_write(self) -> bool:
        """Become the writer if nobody writes, or the writer did nothing for ten minutes. Return whether it worked."""
        return self._study.claim(self)

    def leave(self) -> None:
        """Leave the scan. Another client can write then. The session stays on the disk."""
        self._study.leave(self)

    def _held(self, action: Callable[[InteractiveSession], Result]) -> Result:
        with self._study.held() as session:
            return action(session)

    def _write(self) -> None:
        if not self._study.claim(self):
            raise Watching(self.writer or "another client")
        self._study.touch()
