"""A reader and a model over one scan."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mois.inference.segmenter import VolumeSegmenter
from mois.lesions import InstanceMap
from mois.records import Volume
from mois.session.advice import (
    Influence,
    Suggestion,
    coverage_warnings,
    each_left_out,
    influences,
    lesions_on_tiles,
    suggestions,
)
from mois.session.header import about_segmenter, bank_name, check_about, check_origin, history, read_scan, scan_name
from mois.session.journal import FORMAT_VERSION, PROMPTS, Action, Journal, find_journal, read_journal, time_stamp
from mois.session.mask_prompts import checked_mask, pack_mask
from mois.session.output_files import LesionRow, lesion_rows, own_results, write_results
from mois.session.points import as_floats
from mois.session.state import Preview, State
from mois.session.store import SessionStore, StateReader, copy_session, read_banks, write_banks
from mois.session.workbench import Workbench
from mois.sharing.bank import ExemplarBank
from mois.sharing.calibration import Calibration
from mois.sharing.identity import ModelIdentity

Point = Sequence[float] | Tensor


class InteractiveSession:
    """Lesions of one scan, clicked, found and corrected; every action is on the disk before the next one begins.

    Points are LPS millimetres: x to the patient's left, y to the back, z to the head. A slice tile is encoded when it
    is first needed, and once; a click then costs decoding alone. What a session gives depends on scan, model, settings
    and actions alone: replaying its journal gives the same voxels (on the same kind of machine with the same packages).

    Args:
        segmenter: The model, in eval mode.
        volume: The scan; its lesions are not looked at.
        out: Folder of the session, new or empty; None keeps it in memory until it is saved.
        calibration: Of the confidence of found lesions; None takes their highest probability.
        identity: Of the model, where it is known already.

    Raises:
        ValueError: If the folder holds a session already.
    """

    def __init__(
        self,
        segmenter: VolumeSegmenter,
        volume: Volume,
        out: Path | None = None,
        *,
        calibration: Calibration | None = None,
        identity: ModelIdentity | None = None,
    ) -> None:
        who = identity if identity is not None else ModelIdentity.of(segmenter.backbone, segmenter.propagation)
        about = about_segmenter(segmenter, volume, who, calibration)
        about |= {"session": uuid.uuid4().hex, "started": time_stamp()}
        self._start(Workbench(segmenter, volume, calibration, who, scan_name(about)), about)
        if out is not None:
            self._store = SessionStore(Path(out))
            self._store.begin(about)

    def _start(self, bench: Workbench, about: dict[str, Any], version: int = FORMAT_VERSION) -> None:
        self._bench = bench
        self._about = about
        self._version = version
        self._actions: list[Action] = []
        self._history: list[tuple[int, State]] = [(0, State())]
        self._at = 0
        self._idle_since = time.perf_counter()

    _store: SessionStore | None = None

    # -- what the reader does -----------------------------------------------------------------------------------------

    def click(self, point_lps_mm: Point, lesion: int | None = None, positive: bool = True) -> int:
        """Point at a lesion, or at what does not belong to one.

        Args:
            point_lps_mm: Where.
            lesion: Which lesion is corrected; None begins a new one, or takes the found one that lies there.
            positive: Whether the place belongs to it.

        Returns:
            The lesion's id.
        """
        return int(self._act("click", point_lps_mm=as_floats(point_lps_mm), lesion=lesion, positive=positive))

    def box(self, corner_lps_mm: Point, opposite_lps_mm: Point, lesion: int | None = None) -> int:
        """Draw a box around a lesion on a slice, given two opposite corners; returns the lesion's id."""
        corners = [as_floats(corner_lps_mm), as_floats(opposite_lps_mm)]
        return int(self._act("box", corners_lps_mm=corners, lesion=lesion))

    def mask(
        self,
        mask: Tensor | np.ndarray[Any, np.dtype[Any]] | Path | str,
        lesion: int | None = None,
        *,
        affine: Tensor | np.ndarray[Any, np.dtype[Any]] | None = None,
    ) -> int:
        """Give a lesion's mask; returns the lesion's id.

        A mask on one slice is taken as it is there and followed to the other slices; one on several slices is the whole
        lesion.

        Args:
            mask: (I, J, K): bool; 0 and one other whole number; or soft, 0 to 1, inside from 0.5 on. Or an image file
                of these, which lies where its header says: its voxels may be stored in another order than the scan's.
            lesion: Which lesion is corrected; None begins a new one.
            affine: (4, 4), voxel indices of the array to RAS mm; None where it is stored as the scan is.

        Raises:
            ValueError: If the mask is not on the scan's grid, saying by how much; is empty; or is no such mask (several
                labels, logits).
        """
        return int(self._act("mask", mask=pack_mask(checked_mask(mask, self.volume, affine)), lesion=lesion))

    def propagate(self) -> int:
        """Find all that is like the exemplars in the whole scan; returns how many lesions were found besides."""
        return int(self._act("propagate"))

    def accept(self, lesion: int) -> None:
        """Call a lesion right: it is locked, and becomes an exemplar."""
        self._act("accept", lesion=int(lesion))

    def reject(self, lesion: int) -> None:
        """Call a lesion wrong: it goes, is not found again, and becomes a negative exemplar."""
        self._act("reject", lesion=int(lesion))

    def remove(self, lesion: int) -> None:
        """Take a lesion back, with its exemplar, as if it had never been prompted."""
        self._act("remove", lesion=int(lesion))

    def lock(self, lesion: int) -> None:
        """Let nothing change a lesion."""
        self._act("lock", lesion=int(lesion))

    def unlock(self, lesion: int) -> None:
        """Let a lesion be changed again."""
        self._act("unlock", lesion=int(lesion))

    def use_bank(self, bank: ExemplarBank | Path) -> int:
        """Take over the exemplars of another scan, time point or reader; returns how many there are.

        Raises:
            ValueError: If the bank was made by another model, or at another pixel size.
        """
        brought = bank if isinstance(bank, ExemplarBank) else self._bench.read_bank(bank)
        bench = self._bench
        brought.check(bench.identity, bench.segmenter.settings.pixel_mm, bench.normalisation)  # before it is kept
        name = bank_name(brought)
        self._bench.banks[name] = brought
        if self._store is not None:
            write_banks(self._store.folder, {name: brought})
        return int(self._act("use_bank", bank=name))

    def reweigh(self, exemplar: str, weight: float) -> None:
        """Let an exemplar count `weight` times; 0 leaves it out."""
        self._act("reweigh", exemplar=exemplar, weight=float(weight))

    def forget(self, exemplar: str) -> None:
        """Take an exemplar out of the bank; its lesion stays."""
        self._act("forget", exemplar=exemplar)

    def undo(self) -> bool:
        """Go back to the state before the latest action; returns whether there was one."""
        return bool(self._act("undo"))

    def redo(self) -> bool:
        """Take an undo back; returns whether there was one."""
        return bool(self._act("redo"))

    # -- what the reader sees -----------------------------------------------------------------------------------------

    @property
    def volume(self) -> Volume:
        """The scan."""
        return self._bench.volume

    @property
    def state(self) -> State:
        """All that is known now; it never changes, the session takes another one."""
        return self._history[self._at][1]

    @property
    def actions(self) -> tuple[Action, ...]:
        """All that was done, as in the journal."""
        return tuple(self._actions)

    @property
    def bank(self) -> ExemplarBank:
        """The exemplars, as a bank to save; changing it changes nothing here."""
        return self._bench.bank(self.state)

    def label_map(self) -> Tensor:
        """Return the lesions (I, J, K) int32 on the scanner's grid."""
        stack: InstanceMap = self.state.label_map(self._bench.grid.stack_shape)
        return self._bench.grid.to_volume(torch.from_numpy(stack))

    def lesions(self) -> list[LesionRow]:
        """Return the table of lesions, by id."""
        return lesion_rows(self.state, self._bench.grid, self._bench.voxel_ml)

    def preview(self, point_lps_mm: Point, lesion: int | None = None, positive: bool = True) -> Preview:
        """Return what `click` with the same arguments would show on its slice; nothing is followed, kept or changed.

        Raises:
            ValueError: As the click does, but where only the whole lesion tells that others own all of it.
        """
        return self._bench.preview(self.state, as_floats(point_lps_mm), lesion, positive)

    def suggest(self, count: int = 1) -> list[Suggestion]:
        """Return where a click would help most, and why; after `propagate`."""
        return suggestions(self.state, self._bench.grid, self._bench.voxel_ml, count)

    def warnings(self) -> list[str]:
        """Say where the exemplars do not represent what was found: in size, place and looks."""
        return coverage_warnings(self.state, self._bench.grid)

    def attribute(self) -> list[Influence]:
        """Leave out one exemplar after the other: which helps, which harms; the most helpful first.

        All are compared unmerged: 2 s with 20 exemplars, 12 s with 100 (nano, 20 known lesions, one core).
        """
        bench, state = self._bench, self.state
        keys, asked = bench.asked(state)
        known = lesions_on_tiles(bench.encoded, bench.verdicts(state))
        return influences(bench.segmenter, bench.encoded, known, each_left_out(keys, asked), state.exemplars)

    # -- how it is kept -----------------------------------------------------------------------------------------------

    def save(self, folder: Path | None = None) -> Path:
        """Write lesions.nii.gz, confidence.nii.gz, lesions.csv and bank.safetensors; into another folder, all of it.

        Args:
            folder: None takes the session's own. Another one gets the journal as well and can be loaded; the session
                goes on in its own.

        Raises:
            ValueError: If there is no folder, it holds another session or results of none, or results that were edited.
        """
        own = self._store.folder if self._store is not None else None
        if folder is None and own is None:
            raise ValueError("save: the session is in memory alone; name a folder.")
        target = Path(folder) if folder is not None else Path(own or "")
        if own is None or target.resolve() != own.resolve():
            copy_session(target, self._about, self._version, self._history[1:], self._actions, self._bench.banks)
        with own_results(target):
            write_results(target, self.state, self._bench.grid, self.volume.affine, self.lesions())
            self.bank.save(target / "bank.safetensors")
        return target

    def close(self) -> None:
        """Let another process load the session; this one takes no further action to the disk."""
        if self._store is not None:
            self._store.close()
            self._store = None

    @classmethod
    def load(
        cls,
        folder: Path,
        segmenter: VolumeSegmenter,
        volume: Volume | None = None,
        *,
        calibration: Calibration | None = None,
        identity: ModelIdentity | None = None,
    ) -> InteractiveSession:
        """Go on with a session, exactly where its last whole action left it, undo and redo included.

        Args:
            folder: Of the session.
            segmenter: The model that it was made with.
            volume: The scan that it was made on; None reads it from where it was.
            calibration: As at the start.
            identity: Of the model, where it is known already.

        Raises:
            ValueError: If it is no session, is damaged, or is of another scan, model or settings.
        """
        folder = Path(folder)
        journal = read_journal(folder)
        session = cls._of(journal, segmenter, volume, calibration, identity)
        store = SessionStore(folder, journal)
        try:
            reader = StateReader(store, journal.actions, session._bench.grid.stack_shape)
            numbers, at = history(journal.actions)
            session._history = [(0, State()), *((number, reader.read(number)) for number in numbers[1:])]
            session._bench.banks = read_banks(folder, session._bench.read_bank)
        except BaseException:
            store.close()
            raise
        session._at = at
        session._actions = list(journal.actions)
        session._store = store
        return session

    @classmethod
    def replay(
        cls,
        journal: Path,
        segmenter: VolumeSegmenter,
        volume: Volume | None = None,
        out: Path | None = None,
        *,
        calibration: Calibration | None = None,
        identity: ModelIdentity | None = None,
    ) -> InteractiveSession:
        """Do everything again that a journal tells; see `load` for the arguments.

        Args:
            journal: The file, or the folder of the session; what it saved besides is not looked at, but for banks.
            segmenter: The model that it was made with.
            volume: The scan that it was made on; None reads it from where it was.
            out: Folder of the new session, or None.
            calibration: As at the start.
            identity: Of the model, where it is known already.

        Raises:
            ValueError: As `load` does, or if a prompt makes another lesion than it did.
        """
        told = read_journal(Path(journal))
        session = cls._of(told, segmenter, volume, calibration, identity)
        session._bench.banks = read_banks(find_journal(Path(journal)).parent, session._bench.read_bank)
        if out is not None:
            session._store = SessionStore(Path(out), version=session._version)
            session._store.begin(session._about)
            write_banks(session._store.folder, session._bench.banks)
        for action in told.actions:
            result = session._act(action.name, **action.arguments)
            if action.name in PROMPTS and result != action.result:
                session.close()
                raise ValueError(
                    f"{journal}: action {action.number}, {action.name}, gave lesion {action.result} and now gives "
                    f"{result}: what follows would mean other lesions; replay it with the packages that made it."
                )
        return session

    @classmethod
    def _of(
        cls,
        journal: Journal,
        segmenter: VolumeSegmenter,
        volume: Volume | None,
        calibration: Calibration | None,
        identity: ModelIdentity | None,
    ) -> InteractiveSession:
        """Return an empty session as a journal's began."""
        header = {key: value for key, value in journal.header.items() if key not in ("format", "format_version")}
        check_about(journal.header)
        volume = volume if volume is not None else read_scan(header)
        who = identity if identity is not None else ModelIdentity.of(segmenter.backbone, segmenter.propagation)
        check_origin(journal.header, about_segmenter(segmenter, volume, who, calibration))
        session = cls.__new__(cls)
        scan = scan_name(header) if journal.version > 1 else ""
        session._start(Workbench(segmenter, volume, calibration, who, scan), header, journal.version)
        return session

    def _act(self, name: str, **arguments: Any) -> Any:
        """Do something, write it down, and return its result."""
        begin, started = time.perf_counter(), time_stamp()
        number = len(self._actions) + 1
        states, at, written = self._history, self._at, ""
        result: Any
        if name in ("undo", "redo"):
            at += -1 if name == "undo" else 1
            result = 0 <= at < len(states)
            at = at if result else self._at
            computed = 0.0
        else:
            state, result = self._bench.apply(name, self.state, arguments)
            computed = time.perf_counter() - begin
            states, at = [*states[: at + 1], (number, state)], at + 1
            if self._store is not None:
                written = self._store.write(number, state)
        waited = time.perf_counter() - begin
        action = Action(number, name, arguments, result, started, begin - self._idle_since, computed, waited, written)
        if self._store is not None:
            self._store.append(action)
        self._actions.append(action)
        self._history, self._at = states, at
        self._idle_since = time.perf_counter()
        return result
