"""The actions of a session, the states that they led to, and where both are kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from mois.errors import told_where
from mois.geometry import SliceGrid
from mois.records import Volume
from mois.session.header import scan_name
from mois.session.journal import FORMAT_VERSION, PROMPT_ACTIONS, Action, Journal, time_stamp
from mois.session.state import State
from mois.session.store import SessionStore, StateReader, copy_session, read_banks, write_banks
from mois.sharing.bank import ExemplarBank
from mois.sharing.lesion_model import LesionModel


class Apply(Protocol):
    """Computes the state after an action; see `Workbench.apply`."""

    def __call__(self, name: str, state: State, arguments: dict[str, Any]) -> tuple[State, Any]:
        """Return the state after an action, and the result of the action."""


class SessionHistory:
    """What was done in a session. Each action is on the disk before the next action begins.

    Args:
        header: First line of the journal, without its format.
        version: Format of the journal.
        banks: Exemplar banks that were brought in, by name.
        store: The opened folder of the session. None keeps the session in memory.
        actions: Actions that are done, in order.
        states: States that undo and redo can reach, each with the number of the action that led to it. Without any
            the session begins.
        position: Index of the current state among `states`.
    """

    def __init__(
        self,
        header: dict[str, Any],
        version: int = FORMAT_VERSION,
        banks: dict[str, ExemplarBank] | None = None,
        store: SessionStore | None = None,
        actions: Sequence[Action] = (),
        states: Sequence[tuple[int, State]] = (),
        position: int = 0,
    ) -> None:
        self.header = header
        self.version = version
        self.banks = banks if banks is not None else {}
        self.actions = list(actions)
        self.position = position
        self._states = list(states) or [(0, State(type=self.first_type))]
        self._store = store
        self._idle_since = time.perf_counter()

    @classmethod
    def load(cls, folder: Path, journal: Journal, models: Sequence[LesionModel], volume: Volume) -> SessionHistory:
        """Open the folder of a session, and read its states and banks.

        Args:
            folder: Folder of the session.
            journal: Its journal.
            models: The models that the session was made with.
            volume: The scan.

        Raises:
            ValueError: If a file is missing or damaged, or another process has the folder.
        """
        grid = SliceGrid.of(volume.shape, volume.affine, models[0].segmenter.settings.slice_axis)
        store = SessionStore(folder, journal)
        try:
            reader = StateReader(store, journal.actions, grid.stack_shape)
            numbers, position = reachable_states(journal.actions)
            begin = State(type=journal.about.get("type", ""))
            states = [(0, begin), *((number, reader.read(number)) for number in numbers[1:])]
            banks = read_banks(folder, partial(read_bank, models, volume))
        except BaseException:
            store.close()
            raise
        return cls(journal.about, journal.version, banks, store, journal.actions, states, position)

    def begin(self, out: Path | None) -> None:
        """Begin to wait for the reader, and keep the session in a folder from now on.

        Args:
            out: A new or empty folder. None changes nothing about where the session is kept.

        Raises:
            ValueError: If the folder holds a session or results.
        """
        self._idle_since = time.perf_counter()
        if out is not None:
            self._store = SessionStore(out, version=self.version)
            self._store.begin(self.header)
            write_banks(out, self.banks)

    @property
    def state(self) -> State:
        """The current state."""
        return self._states[self.position][1]

    @property
    def folder(self) -> Path | None:
        """Folder of the session; None while it is kept in memory."""
        return None if self._store is None else self._store.folder

    @property
    def first_type(self) -> str:
        """Type of lesions with which the session began; "" has no name."""
        return str(self.header.get("type", ""))

    @property
    def scan_key(self) -> str:
        """Stands for the scan in the keys of its exemplars. It is empty in a session of format 1."""
        return scan_name(self.header) if self.version > 1 else ""

    def add_bank(self, name: str, bank: ExemplarBank) -> None:
        """Keep a bank, so that an action can name it."""
        self.banks[name] = bank
        if self._store is not None:
            write_banks(self._store.folder, {name: bank})

    def act(self, name: str, arguments: dict[str, Any], apply: Apply) -> Any:
        """Do an action, write it down, and return its result.

        Args:
            name: Name of the action.
            arguments: Its arguments, as JSON holds them.
            apply: Computes the next state. `undo` and `redo` do without it.

        Raises:
            ValueError: If the action cannot be done. Then nothing has changed.
        """
        begin, started = time.perf_counter(), time_stamp()
        number = len(self.actions) + 1
        states, position, written = self._states, self.position, ""
        result: Any
        if name in ("undo", "redo"):
            position += -1 if name == "undo" else 1
            result = 0 <= position < len(states)
            position = position if result else self.position
            computed = 0.0
        else:
            state, result = apply(name, self.state, arguments)
            computed = time.perf_counter() - begin
            states, position = [*states[: position + 1], (number, state)], position + 1
            if self._store is not None:
                written = self._store.write(number, state)
        waited = time.perf_counter() - begin
        action = Action(number, name, arguments, result, started, begin - self._idle_since, computed, waited, written)
        if self._store is not None:
            self._store.append(action)
        self.actions.append(action)
        self._states, self.position = states, position
        self._idle_since = time.perf_counter()
        return result

    def repeat(self, actions: Sequence[Action], apply: Apply, journal: Path) -> None:
        """Do the actions of another session again.

        Args:
            actions: Actions of the other session, in order.
            apply: Computes the next state.
            journal: File of the actions, for messages.

        Raises:
            ValueError: If an action cannot be done, or a prompt gives a lesion with another id than before; the message
                names the action.
        """
        for action in actions:
            with told_where(f"{journal}: action {action.number}, {action.name}"):
                result = self.act(action.name, action.arguments, apply)
            if action.name in PROMPT_ACTIONS and result != action.result:
                raise ValueError(
                    f"{journal}: action {action.number}, {action.name}, gave lesion {action.result} and now gives "
                    f"lesion {result}, so later actions would change other lesions; replay it with the packages that "
                    "made it."
                )

    def copy_to(self, folder: Path) -> None:
        """Write the whole session into a new or empty folder. The session goes on in its own folder."""
        copy_session(folder, self.header, self.version, self._states[1:], self.actions, self.banks)

    def close(self) -> None:
        """Let another process open the folder. Later actions are kept in memory only."""
        if self._store is not None:
            self._store.close()
            self._store = None


def read_bank(models: Sequence[LesionModel], volume: Volume, path: Path) -> ExemplarBank:
    """Read a bank of one of the models of a session.

    Raises:
        ValueError: If it suits none of them; the message is that for the first model.
    """
    refused: ValueError | None = None
    for model in models:
        try:
            return model.read_bank(path, volume)
        except ValueError as error:
            refused = refused or error
    raise refused or ValueError(f"{path}: no model was given.")


def reachable_states(actions: Sequence[Action]) -> tuple[list[int], int]:
    """Return which states undo and redo can reach.

    Returns:
        The number of the action before each state, 0 first; and the index of the current state among them.
    """
    numbers, position = [0], 0
    for action in actions:
        if action.name == "undo":
            position = max(0, position - 1)
        elif action.name == "redo":
            position = min(len(numbers) - 1, position + 1)
        else:
            numbers, position = [*numbers[: position + 1], action.number], position + 1
    return numbers, position
