"""The folder of a session: the journal, and one file per action with its changes.

    journal.jsonl              actions; an action counts once its line is whole
    states/000012.safetensors  state after action 12; unchanged arrays stay in the older files
    banks/                     exemplar banks that actions used

A process that is killed at any moment loses only the action under way: the state is on the disk before the line of the
journal, and an unfinished line is cut off when the session is loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from mois.errors import DataError
from mois.files.atomic import naming, read_regular, whole_file
from mois.files.folder_lock import FolderLock
from mois.files.json_records import as_record, parse_json
from mois.files.tensor_records import check_features, parse_tensors
from mois.machine.system_calls import open_flags, sync_folder
from mois.session.header import bank_name
from mois.session.journal import FORMAT_VERSION, NAME, Action, Journal, LineWriter, append_line, has_begun
from mois.session.masks import BoxMask
from mois.session.output_files import check_free
from mois.session.state import (
    TYPE_KEYS,
    ExemplarRecord,
    Lesion,
    LesionRecord,
    MaskRecord,
    Prompt,
    PromptRecord,
    State,
    StateRecord,
    UnsureLesion,
)
from mois.sharing.bank import Exemplar, ExemplarBank

STATES, BANKS = "states", "banks"


class SessionStore:
    """The opened folder of one session. Only one process can open it at a time.

    Args:
        folder: The folder. It is made if it is missing.
        journal: Its journal. Anything after the whole lines is cut off. None begins a new session.
        version: Format of the journal of a new session.

    Raises:
        ValueError: If a new session's folder holds a session or results; if the folder holds links; or if another
            process has opened it.
    """

    def __init__(self, folder: Path, journal: Journal | None = None, version: int = FORMAT_VERSION) -> None:
        self.folder = folder
        for name in (STATES, BANKS, NAME):
            if (folder / name).is_symlink():
                raise ValueError(f"{folder / name} is a link, which no session makes; copy what it points to instead.")
        if (folder / NAME).exists() and not (folder / NAME).is_file():
            raise ValueError(f"{folder / NAME} is no regular file; remove it, or choose another folder.")
        self._lock = FolderLock(folder)
        self._file = -1
        try:
            if journal is None and has_begun(folder / NAME):
                raise ValueError(f"{folder}: holds a session already; load it, or choose another folder.")
            if journal is None:
                check_free(folder)
            (folder / STATES).mkdir(exist_ok=True)
            flags = open_flags("O_RDWR", "O_CREAT", "O_APPEND", "O_NOFOLLOW")
            self._file = os.open(folder / NAME, flags, 0o666)
            os.ftruncate(self._file, 0 if journal is None else journal.size)
        except BaseException:
            self.close()
            raise
        os.fsync(self._file)
        sync_folder(folder)
        self._lines = LineWriter(version) if journal is None else LineWriter(journal.version, journal.last)
        self._names: dict[int, tuple[object, str]] = {}  # id of an array's owner -> owner (kept alive), name of array

    def close(self) -> None:
        """Close the journal, and let another process open the folder."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._lock.release()

    def begin(self, about: Mapping[str, Any]) -> None:
        """Write the first line of the journal; `about` as `new_header` returns it."""
        with naming(self.folder / NAME):
            append_line(self._file, self._lines.header(about))

    def append(self, action: Action) -> None:
        """Write the line of an action."""
        with naming(self.folder / NAME):
            append_line(self._file, self._lines.action(action))

    def write(self, number: int, state: State) -> str:
        """Write the file of the state after an action: new arrays, and the names of all arrays of the state.

        Args:
            number: Number of the action.
            state: State after the action.

        Returns:
            SHA-256 of the file.
        """
        new: dict[str, Tensor] = {}

        def mask(box: BoxMask) -> dict[str, Any]:
            bits = lambda: torch.from_numpy(np.packbits(box.inside.ravel()))  # noqa: E731
            return {"corner": box.corner, "shape": box.inside.shape, "bits": self._name(box, number, new, bits)}

        def prompt(given: Prompt) -> dict[str, Any]:
            return {**vars(given), "mask": None if given.mask is None else mask(given.mask)}

        def lesion(kept: Lesion) -> dict[str, Any]:
            plain = {name: value for name, value in vars(kept).items() if name != "type"}
            return {**plain, "mask": mask(kept.mask), "prompts": [prompt(each) for each in kept.prompts]}

        def exemplar(kept: Exemplar) -> dict[str, Any]:
            tokens = {name: self._name(each, number, new, each.contiguous) for name, each in kept.tokens.items()}
            return {**vars(kept), "tokens": tokens}

        content = {
            "lesions": {str(key): lesion(each) for key, each in state.lesions.items()},
            "exemplars": [exemplar(each) for each in state.exemplars.values()],
            "rejected": {key: mask(box) for key, box in state.rejected.items()},
            "maybes": [asdict(each) for each in state.unsure],
            "next_id": state.next_id,
            "propagated": state.propagated,
            **_types(state),
        }
        path = _path(self.folder, number)
        data = save(new, {"state": json.dumps(content, allow_nan=False)})
        with whole_file(path) as part, part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
        return hashlib.sha256(data).hexdigest()

    def _name(self, owner: object, number: int, new: dict[str, Tensor], make: Any) -> str:
        """Return the name of an array. An array that no file has yet is added to `new`."""
        if id(owner) not in self._names:
            name = f"{number:06d}/{len(new)}"
            new[str(len(new))] = make()
            self._names[id(owner)] = (owner, name)
        return self._names[id(owner)][1]


class StateReader:
    """Reads states from the folder of a session. Arrays that several states share are read once.

    Args:
        store: Opened folder of the session. Arrays that are read are not written again.
        actions: Actions of its journal.
        shape: Shape of the scan's stack, (S, H, W).
    """

    def __init__(self, store: SessionStore, actions: Sequence[Action], shape: tuple[int, int, int]) -> None:
        self._store = store
        self._actions = actions
        self._shape = shape
        self._files: dict[int, tuple[dict[str, Tensor], StateRecord]] = {}
        self._owners: dict[str, object] = {}

    def read(self, number: int) -> State:
        """Return the state after action `number`.

        Raises:
            ValueError: If a file is missing, damaged or not of this session.
        """
        content = self._file(number)[1]
        return State(
            {
                int(key): self._lesion(entry, content.lesion_types.get(key, ""))
                for key, entry in content.lesions.items()
            },
            {entry.key: self._exemplar(entry) for entry in content.exemplars},
            {key: self._mask(entry) for key, entry in content.rejected.items()},
            tuple(UnsureLesion(**vars(entry)) for entry in content.maybes),
            content.next_id,
            content.propagated,
            content.type,
            content.exemplar_types,
        )

    def _file(self, number: int) -> tuple[dict[str, Tensor], StateRecord]:
        if number not in self._files:
            path = _path(self._store.folder, number)
            try:
                if path.is_symlink() or not 0 < number <= len(self._actions):
                    raise DataError("is none of this session's files")
                data = read_regular(path)
                recorded = self._actions[number - 1].state
                if recorded and recorded != hashlib.sha256(data).hexdigest():
                    raise DataError("was changed after it was written")
                tensors, metadata = parse_tensors(data, path.name)
                content = as_record(
                    parse_json(metadata.get("state", ""), path.name), StateRecord, path.name, later=TYPE_KEYS
                )
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{path}: is missing or damaged ({error}); replay the session's {NAME} into another folder."
                ) from error
            self._files[number] = tensors, content
        return self._files[number]

    def _array(self, name: str) -> Tensor:
        number, _, key = name.partition("/")
        tensors = self._file(int(number))[0]
        if key not in tensors:
            raise DataError(f"{_path(self._store.folder, int(number))} lacks array {key}; replay the session's {NAME}.")
        return tensors[key]

    def _mask(self, entry: MaskRecord) -> BoxMask:
        if entry.bits not in self._owners:
            where = f"{self._store.folder}: mask {entry.bits}"
            ends = [start + count for start, count in zip(entry.corner, entry.shape, strict=True)]
            if min(*entry.corner, *entry.shape) < 0 or any(a > b for a, b in zip(ends, self._shape, strict=True)):
                raise DataError(f"{where} lies outside the scan; replay the session's {NAME} into another folder.")
            bits, voxels = self._array(entry.bits), math.prod(entry.shape)
            if bits.dtype != torch.uint8 or bits.shape != (-(-voxels // 8),):
                raise DataError(f"{where} has other bits than its shape; replay the session's {NAME}.")
            inside = np.unpackbits(bits.numpy(), count=voxels).astype(bool).reshape(entry.shape)
            self._remember(entry.bits, BoxMask(entry.corner, inside))
        owner = self._owners[entry.bits]
        if not isinstance(owner, BoxMask) or (owner.corner, owner.inside.shape) != (entry.corner, entry.shape):
            raise DataError(f"{self._store.folder}: mask {entry.bits} is there twice, with different content.")
        return owner

    def _prompt(self, entry: PromptRecord) -> Prompt:
        if not 0 <= entry.slice_index < self._shape[0]:
            raise DataError(f"{self._store.folder}: a prompt on slice {entry.slice_index} lies outside the scan.")
        return Prompt(**{**vars(entry), "mask": None if entry.mask is None else self._mask(entry.mask)})

    def _lesion(self, entry: LesionRecord, kind: str) -> Lesion:
        prompts = tuple(self._prompt(prompt) for prompt in entry.prompts)
        return Lesion(**{**vars(entry), "mask": self._mask(entry.mask), "prompts": prompts}, type=kind)

    def _exemplar(self, entry: ExemplarRecord) -> Exemplar:
        tokens = {name: self._array(array) for name, array in entry.tokens.items()}
        check_features(tokens, f"{self._store.folder}: exemplar {entry.key}", f"replay the session's {NAME}")
        exemplar = Exemplar(**{**vars(entry), "tokens": tokens})
        for name, array in entry.tokens.items():
            self._remember(array, exemplar.tokens[name])
        return exemplar

    def _remember(self, name: str, owner: object) -> None:
        self._owners[name] = owner
        self._store._names[id(owner)] = (owner, name)


def read_banks(folder: Path, read: Callable[[Path], ExemplarBank]) -> dict[str, ExemplarBank]:
    """Return the banks in the folder of a session, by name. `read` reads the file of a bank.

    Raises:
        DataError: If a bank is a link, or was changed after it was written.
    """
    banks = {}
    for path in sorted((folder / BANKS).glob("*.safetensors")):
        if path.is_symlink():
            raise DataError(f"{path} is a link, which no session makes; copy what it points to instead.")
        bank = read(path)
        if bank_name(bank) != path.stem:
            raise DataError(f"{path} was changed after it was written; add it as a new bank (use_bank).")
        banks[path.stem] = bank
    return banks


def write_banks(folder: Path, banks: Mapping[str, ExemplarBank]) -> None:
    """Write banks into the folder of a session, by name."""
    for name, bank in banks.items():
        bank.save(folder / BANKS / f"{name}.safetensors")


def copy_session(
    folder: Path,
    about: dict[str, Any],
    version: int,
    history: Sequence[tuple[int, State]],
    actions: Sequence[Action],
    banks: Mapping[str, ExemplarBank],
) -> None:
    """Write a whole session into a folder, where it can be loaded.

    Args:
        folder: A new or empty folder.
        about: First line of the journal, without its format.
        version: Format of the journal.
        history: States that undo and redo can reach, each with the number of its action.
        actions: All actions.
        banks: Banks that actions used, by name.
    """
    store = SessionStore(folder, version=version)
    try:
        store.begin(about)
        written = {number: store.write(number, state) for number, state in history}
        write_banks(folder, banks)
        for action in actions:
            store.append(replace(action, state=written.get(action.number, "")))
    finally:
        store.close()


def _types(state: State) -> dict[str, Any]:
    """Return the types of a state as JSON; nothing if there are none."""
    lesions = {str(number): each.type for number, each in state.lesions.items() if each.type}
    types = {"type": state.type, "lesion_types": lesions, "exemplar_types": state.exemplar_types}
    return types if any(types.values()) else {}


def _path(folder: Path, number: int) -> Path:
    return folder / STATES / f"{number:06d}.safetensors"
