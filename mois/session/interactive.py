"""The session of a reader and a model on one scan: its actions, what it shows, and how it is saved and loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mois.inference.segmenter import VolumeSegmenter
from mois.records import Volume
from mois.session.header import bank_name, checked_origin, new_header
from mois.session.history import SessionHistory, read_bank
from mois.session.journal import find_journal, read_journal
from mois.session.masks import checked_mask, pack_mask
from mois.session.models.prepared_propagation import prepare_propagation
from mois.session.models.typed_workbench import TypedWorkbench
from mois.session.output_files import recorded_results, write_lesion_files
from mois.session.points import as_floats
from mois.session.session_view import Point, SessionView
from mois.session.store import read_banks
from mois.sharing.bank import ExemplarBank
from mois.sharing.bundle import Bundle
from mois.sharing.calibration import Calibration
from mois.sharing.identity import ModelIdentity
from mois.sharing.lesion_model import LesionModel, one_model
from mois.sharing.merged_banks import each_once


class InteractiveSession(SessionView):
    """Lesions of one scan, clicked, found and corrected. Each action is on the disk before the next action begins.

    Points are LPS millimetres: x to the patient's left, y to the back, z to the head. A tile of a slice is encoded
    once, when it is first needed. A later click only decodes. The voxels depend on scan, model, settings and actions
    alone. A replay of the journal gives the same voxels, on the same kind of machine with the same packages.

    Args:
        model: The model, as `Bundle.model` returns it.
        volume: The scan. Its lesions are not read.
        out: Folder of the session, new or empty. None keeps the session in memory until it is saved.
        history: A session to go on with, as `load` reads it. None begins a new session.
        models: Models of further types of lesions, by type; see `use`.
        type: Name of the type that `model` finds, in a session of several types. `history` has its own.
        calibration: Old form, works for one more version: a field of `model`.
        identity: Old form, works for one more version: a field of `model`.

    Raises:
        ValueError: If the folder holds a session or results.
    """

    def __init__(
        self,
        model: LesionModel | VolumeSegmenter,
        volume: Volume,
        out: Path | None = None,
        *,
        history: SessionHistory | None = None,
        models: Mapping[str, LesionModel] | None = None,
        type: str = "",
        calibration: Calibration | None = None,
        identity: ModelIdentity | None = None,
    ) -> None:
        model = one_model(model, calibration, identity)
        history = history if history is not None else SessionHistory(new_header(model, volume, type))
        types = TypedWorkbench(model, volume, history.scan_key, history.banks, models, history.first_type)
        super().__init__(types, history)
        self._types.check(history.actions)
        history.begin(None if out is None else Path(out))

    # -- actions of the reader -----------------------------------------------------------------------------------------

    def click(self, point_lps_mm: Point, lesion: int | None = None, positive: bool = True) -> int:
        """Click a place that belongs to a lesion, or a place that does not.

        Args:
            point_lps_mm: The place, LPS mm.
            lesion: Id of the lesion to correct. None takes the found lesion at this place, or begins a new lesion.
            positive: Whether the place belongs to the lesion.

        Returns:
            The id of the lesion.

        Raises:
            ValueError: If the point lies outside the scan; if the lesion does not exist or is locked; or if the click
                does not say which lesion it is for.
        """
        return int(self._act("click", point_lps_mm=as_floats(point_lps_mm), lesion=lesion, positive=positive))

    def box(
        self, corner_lps_mm: Point, opposite_lps_mm: Point, lesion: int | None = None, positive: bool = True
    ) -> int:
        """Draw a box on one slice: around a lesion, or around voxels that do not belong to one.

        Args:
            corner_lps_mm: A corner, LPS mm.
            opposite_lps_mm: The opposite corner, LPS mm, on the same slice.
            lesion: Id of the lesion to correct. None takes the found lesion in the middle, or begins a new lesion; for
                a negative box see `scribble`.
            positive: Whether the lesion lies in the box. The voxels in a negative box leave the lesion.

        Returns:
            The id of the lesion.

        Raises:
            ValueError: If a corner lies outside the scan, the corners lie on two slices, or the lesion does not exist
                or is locked, or nothing of it would be left.
        """
        corners = [as_floats(corner_lps_mm), as_floats(opposite_lps_mm)]
        return int(self._act("box", corners_lps_mm=corners, lesion=lesion, **_negative(positive)))

    def scribble(self, points_lps_mm: Sequence[Point], lesion: int | None = None, positive: bool = True) -> int:
        """Draw a line on one slice: through a lesion, or through voxels that do not belong to one.

        The drawn voxels are inside the lesion, or outside it. The model gets up to 8 places along the line as clicks.

        Args:
            points_lps_mm: The line, in the order drawn: two points or more, LPS mm, on one slice.
            lesion: Id of the lesion to correct. None takes the found lesion that has most of the drawn voxels, or
                begins a new lesion. A negative scribble rejects this found lesion, or corrects a prompted one. Where
                no lesion is, its voxels become a negative exemplar.
            positive: Whether the line belongs to the lesion.

        Returns:
            The id of the lesion, or of the negative exemplar.

        Raises:
            ValueError: If a point lies outside the scan, the points lie on two slices, there is only one, the lesion
                does not exist or is locked, nothing of it would be left, or it is not clear which lesion is meant.
        """
        points = [as_floats(point) for point in points_lps_mm]
        return int(self._act("scribble", points_lps_mm=points, lesion=lesion, positive=positive))

    def lasso(self, points_lps_mm: Sequence[Point], lesion: int | None = None, positive: bool = True) -> int:
        """Draw an outline on one slice: around a lesion, or around voxels that do not belong to one.

        On its slice, the lesion is what the model sees in a positive lasso; nothing lies further outside than a pixel.
        The voxels in a negative lasso leave the lesion. Voxels are inside by their centres and the even-odd rule.

        Args:
            points_lps_mm: Corners of the outline: three points or more, LPS mm, on one slice. The last is joined to
                the first.
            lesion: Id of the lesion to correct. None takes the found lesion that has most of the voxels inside, or
                begins a new lesion; for a negative lasso see `scribble`.
            positive: Whether the lesion lies inside the outline.

        Returns:
            The id of the lesion, or of the negative exemplar.

        Raises:
            ValueError: As `scribble` raises it; or if the outline holds no centre of a voxel.
        """
        points = [as_floats(point) for point in points_lps_mm]
        return int(self._act("lasso", points_lps_mm=points, lesion=lesion, positive=positive))

    def mask(
        self,
        mask: Tensor | np.ndarray[Any, np.dtype[Any]] | Path | str,
        lesion: int | None = None,
        positive: bool = True,
        *,
        affine: Tensor | np.ndarray[Any, np.dtype[Any]] | None = None,
    ) -> int:
        """Give the mask of a lesion.

        A mask on one slice is taken as it is on this slice, and tracked to the other slices. A mask on several slices
        is the whole lesion.

        Args:
            mask: Array (I, J, K): bool; 0 and one other whole number; or soft, 0 to 1, inside from 0.5 on. Or an image
                file with such an array, whose header states its position and the order of its voxels.
            lesion: Id of the lesion to correct. None begins a new lesion; for a negative mask see `scribble`.
            positive: Whether the mask is that of the lesion. The voxels of a negative mask leave the lesion.
            affine: From voxel indices of the array to RAS mm, (4, 4). None: the array is stored as the scan is.

        Returns:
            The id of the lesion.

        Raises:
            ValueError: If the mask is not on the scan's grid, is empty, or is not a mask (several labels, logits).
        """
        packed = pack_mask(checked_mask(mask, self.volume, affine))
        return int(self._act("mask", mask=packed, lesion=lesion, **_negative(positive)))

    def propagate(self) -> int:
        """Find all lesions like the exemplars of the current type, and return the number of found lesions."""
        return int(self._act("propagate"))

    def prepare_propagation(self) -> Iterator[float]:
        """Compute the next `propagate` in steps, and yield the share that is done after each. Nothing changes.

        Actions can be done between two steps. If one changes the exemplars, the steps end early; begin again.
        """
        return prepare_propagation(self._types, lambda: self.state)

    def propagate_all(self) -> dict[str, int]:
        """Propagate for each type that has an exemplar, the current type last; return the number found by type.

        Each step is an action of its own, which undo takes back.
        """
        current, found = self.state.type, dict[str, int]()
        for name in sorted(self.types, key=lambda each: each == current):
            if self.state.of_type(name).exemplars:
                if name != self.state.type:
                    self.use(name)
                found[name] = self.propagate()
        if self.state.type != current:
            self.use(current)
        return found

    def accept(self, lesion: int) -> None:
        """Accept a lesion as right. It is locked, and becomes an exemplar."""
        self._act("accept", lesion=int(lesion))

    def reject(self, lesion: int) -> None:
        """Reject a lesion as wrong. It is removed, is not found again, and becomes a negative exemplar."""
        self._act("reject", lesion=int(lesion))

    def remove(self, lesion: int) -> None:
        """Remove a lesion and its exemplar. It may be found again."""
        self._act("remove", lesion=int(lesion))

    def lock(self, lesion: int) -> None:
        """Lock a lesion: no action changes it any more."""
        self._act("lock", lesion=int(lesion))

    def unlock(self, lesion: int) -> None:
        """Unlock a lesion: actions can change it again."""
        self._act("unlock", lesion=int(lesion))

    def use_bank(self, bank: ExemplarBank | Path) -> int:
        """Add the exemplars of another scan, time point or reader. What is there already is not added again.

        Args:
            bank: The bank, or its file.

        Returns:
            The number of exemplars that came in.

        Raises:
            ValueError: If the bank is of another model, pixel size or rule of normalisation.
        """
        bench = self._bench
        brought = bank if isinstance(bank, ExemplarBank) else bench.model.read_bank(bank, bench.volume)
        bench.on_scan.check(brought)
        brought = each_once(brought, self.bank).bank  # not in `Workbench`, which replays journals of before
        self._history.add_bank(name := bank_name(brought), brought)
        return int(self._act("use_bank", bank=name))

    def use(self, type: str, model: LesionModel | Bundle | None = None) -> None:
        """Go on with the lesions of a type, which a model of their own finds.

        Each type has its own exemplars, bank, thresholds and calibration. A tile is encoded again only if the model
        has another backbone. Prompts that name no lesion, `propagate`, `suggest` and `bank` are for this type from now
        on. Lesions that other types have keep their voxels.

        Args:
            type: Name of the type, such as plexiform. "" is that of the model with which the session began, if it was
                given no name.
            model: Its model. None: the session has it already.

        Raises:
            ValueError: If the session has no model of this type, or another one.
        """
        if model is not None:
            self._types.add(type, model.model() if isinstance(model, Bundle) else model)
        self._act("use", type=type, model=self._types.digest(type))

    def reweigh(self, exemplar: str, weight: float) -> None:
        """Give an exemplar a weight: a weight of 2 counts as two equal exemplars, a weight of 0 leaves it out."""
        self._act("reweigh", exemplar=exemplar, weight=float(weight))

    def forget(self, exemplar: str) -> None:
        """Remove an exemplar. Its lesion stays."""
        self._act("forget", exemplar=exemplar)

    def undo(self) -> bool:
        """Go back to the state before the latest action, and return whether there was such a state."""
        return bool(self._act("undo"))

    def redo(self) -> bool:
        """Undo the latest undo, and return whether there was an undo."""
        return bool(self._act("redo"))

    # -- on the disk -----------------------------------------------------------------------------------------------

    def save(self, folder: Path | None = None) -> Path:
        """Write lesions.nii.gz, lesions.seg.nrrd, confidence.nii.gz, lesions.csv, bank.safetensors; return the folder.

        Args:
            folder: None: the folder of the session. Another folder gets the journal and states too, and can be loaded;
                the session goes on in its own folder.

        Raises:
            ValueError: If there is no folder; or if the folder holds another session, other results or edited results.
        """
        own = self._history.folder
        target = Path(folder) if folder is not None else own
        if target is None:
            raise ValueError("save: the session is in memory alone; name a folder.")
        if own is None or target.resolve() != own.resolve():
            self._history.copy_to(target)
        with recorded_results(target):
            write_lesion_files(target, self.state, self._bench.grid, self.volume, self.lesions())
            for name in self.types:
                bank = self._types.of(name).on_scan.bank(self.state.of_type(name))
                bank.save(target / (f"bank.{name}.safetensors" if name else "bank.safetensors"))
        return target

    def close(self) -> None:
        """Let another process load the session. Later actions of this session are not written to the disk."""
        self._history.close()

    @classmethod
    def load(
        cls,
        folder: Path,
        model: LesionModel | VolumeSegmenter,
        volume: Volume | None = None,
        *,
        models: Mapping[str, LesionModel] | None = None,
        calibration: Calibration | None = None,
        identity: ModelIdentity | None = None,
    ) -> InteractiveSession:
        """Go on with a session where its last whole action left it. Undo and redo work as before.

        Args:
            folder: Folder of the session.
            model: The model that the session was made with.
            volume: The scan that the session was made on. None reads it from the path that the journal states.
            models: Models of the further types of the session, by type.
            calibration: Old form, works for one more version: a field of `model`.
            identity: Old form, works for one more version: a field of `model`.

        Raises:
            ValueError: If the folder holds no session, the session is damaged, or it is of another scan, model or
                settings.
        """
        folder, model = Path(folder), one_model(model, calibration, identity)
        journal = read_journal(folder)
        model, models, volume = checked_origin(journal, model, models, volume)
        history = SessionHistory.load(folder, journal, [model, *models.values()], volume)
        try:
            return cls(model, volume, history=history, models=models)
        except BaseException:
            history.close()
            raise

    @classmethod
    def replay(
        cls,
        journal: Path,
        model: LesionModel | VolumeSegmenter,
        volume: Volume | None = None,
        out: Path | None = None,
        *,
        models: Mapping[str, LesionModel] | None = None,
        calibration: Calibration | None = None,
        identity: ModelIdentity | None = None,
    ) -> InteractiveSession:
        """Do all actions of a journal again, in a new session.

        Args:
            journal: The journal, or the folder of its session. Of the other files there, only banks are read.
            model: The model that the session was made with.
            volume: The scan that the session was made on. None reads it from the path that the journal states.
            out: Folder of the new session, new or empty. None keeps it in memory.
            models: Models of the further types of the session, by type.
            calibration: Old form, works for one more version: a field of `model`.
            identity: Old form, works for one more version: a field of `model`.

        Raises:
            ValueError: As `load` raises it; or if a prompt gives a lesion with another id than the journal states.
        """
        model = one_model(model, calibration, identity)
        recorded = read_journal(Path(journal))
        model, models, volume = checked_origin(recorded, model, models, volume)
        known = partial(read_bank, [model, *models.values()], volume)
        history = SessionHistory(
            recorded.about, recorded.version, read_banks(find_journal(Path(journal)).parent, known)
        )
        session = cls(model, volume, out, history=history, models=models)
        try:
            session._history.repeat(recorded.actions, session._types.apply, journal)
        except BaseException:
            session.close()
            raise
        return session

    def _act(self, name: str, **arguments: Any) -> Any:
        """Do an action, write it down, and return its result."""
        return self._history.act(name, arguments, self._types.apply_new)


def _negative(positive: bool) -> dict[str, bool]:
    """Return the argument of boxes and masks that earlier versions did not have: it is written where it matters."""
    return {} if positive else {"positive": False}
