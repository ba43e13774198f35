"""A session's folder: the journal, and one file per action with what it changed.

    journal.jsonl              what was done; an action counts once its line is whole
    states/000012.safetensors  what a session knew after action 12; arrays that were there before stand in older files
    banks/                     exemplar banks that were brought in

A process that is killed at any moment loses no more than the action that was under way: the state is on the disk before
the journal's line, and an unfinished line is cut off when the session is loaded.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mois.exemplars import Exemplar
from mois.journal import NAME, append_line, has_begun
from mois.session.state import BoxMask, Lesion, Maybe, Prompt, State

STATES = "states"


class SessionStore:
    """The folder of one session, held by one process at a time.

    Args:
        folder: Made if it is missing.
        size: Bytes of the journal that count; what follows is cut off. 0 for a new session.

    Raises:
        ValueError: If the folder holds a session already, or another process has it.
    """

    def __init__(self, folder: Path, size: int = 0) -> None:
        self.folder = folder
        (folder / STATES).mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise ValueError(f"{folder}: another process has this session open; close it there first.") from error
        if size == 0 and has_begun(folder / NAME):
            os.close(self._file)
            raise ValueError(f"{folder}: holds a session already; load it, or choose another folder.")
        os.ftruncate(self._file, size)
        os.fsync(self._file)
        _sync_folder(folder)
        self._names: dict[int, tuple[object, str]] = {}  # id of an array's owner -> the owner (kept alive), its name

    def close(self) -> None:
        """Let another process have the session."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def append(self, line: bytes) -> None:
        """Write a line of the journal."""
        append_line(self._file, line)

    def write(self, number: int, state: State) -> None:
        """Write the state after an action: arrays that no earlier file holds, and which ones make up the state."""
        new: dict[str, Tensor] = {}

        def mask(box: BoxMask) -> dict[str, Any]:
            bits = lambda: torch.from_numpy(np.packbits(box.inside.ravel()))  # noqa: E731
            return {"corner": box.corner, "shape": box.inside.shape, "bits": self._name(box, number, new, bits)}

        def prompt(one: Prompt) -> dict[str, Any]:
            plain = {f.name: getattr(one, f.name) for f in fields(one)}
            return {**plain, "mask": None if one.mask is None else mask(one.mask)}

        def lesion(one: Lesion) -> dict[str, Any]:
            plain = {f.name: getattr(one, f.name) for f in fields(one)}
            return {**plain, "mask": mask(one.mask), "prompts": [prompt(each) for each in one.prompts]}

        def exemplar(one: Exemplar) -> dict[str, Any]:
            plain = {f.name: getattr(one, f.name) for f in fields(one) if f.name != "tokens"}
            return {
                **plain,
                "tokens": {
                    name: self._name(token, number, new, token.contiguous) for name, token in one.tokens.items()
                },
            }

        content = {
            "lesions": {str(key): lesion(one) for key, one in state.lesions.items()},
            "exemplars": [exemplar(one) for one in state.exemplars.values()],
            "rejected": {key: mask(box) for key, box in state.rejected.items()},
            "maybes": [asdict(one) for one in state.maybes],
            "next_id": state.next_id,
            "propagated": state.propagated,
        }
        path = _path(self.folder, number)
        part = path.with_name(f".{path.name}.part")
        with part.open("wb") as file:
            file.write(save(new, {"state": json.dumps(content)}))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)

    def _name(self, owner: object, number: int, new: dict[str, Tensor], make: Any) -> str:
        """Return the name of an array, which goes into this file if no file has it yet."""
        known = self._names.get(id(owner))
        if known is None:
            place = f"{number:06d}/{len(new)}"
            new[str(len(new))] = make()
            self._names[id(owner)] = known = (owner, place)
        return known[1]


class StateReader:
    """Reads states back; what several of them share is read once and shared again.

    Args:
        store: The session's folder; what is read is not written again.
    """

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self._files: dict[int, tuple[dict[str, Tensor], dict[str, Any]]] = {}
        self._owners: dict[str, object] = {}

    def read(self, number: int) -> State:
        """Return the state after an action.

        Raises:
            ValueError: If a file is missing or damaged.
        """
        content = self._file(number)[1]
        return State(
            {int(key): self._lesion(entry) for key, entry in content["lesions"].items()},
            {entry["key"]: self._exemplar(entry) for entry in content["exemplars"]},
            {key: self._mask(entry) for key, entry in content["rejected"].items()},
            tuple(Maybe(**{**entry, "point": tuple(entry["point"])}) for entry in content["maybes"]),
            content["next_id"],
            content["propagated"],
        )

    def _file(self, number: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if number not in self._files:
            path = _path(self._store.folder, number)
            try:
                data = path.read_bytes()
                tensors = load(data)
                length = int.from_bytes(data[:8], "little")
                content = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
            except (OSError, SafetensorError, KeyError, ValueError) as error:
                raise ValueError(
                    f"{path}: is missing or damaged; replay the session's {NAME} into another folder."
                ) from error
            self._files[number] = tensors, content
        return self._files[number]

    def _array(self, name: str) -> Tensor:
        number, _, key = name.partition("/")
        return self._file(int(number))[0][key]

    def _mask(self, entry: Mapping[str, Any]) -> BoxMask:
        name = str(entry["bits"])
        if name not in self._owners:
            shape = tuple(entry["shape"])
            bits = np.unpackbits(self._array(name).numpy(), count=int(np.prod(shape))).astype(bool).reshape(shape)
            self._remember(name, BoxMask(tuple(entry["corner"]), bits))
        owner = self._owners[name]
        return owner if isinstance(owner, BoxMask) else BoxMask((0, 0, 0), np.zeros((0, 0, 0), bool))

    def _prompt(self, entry: dict[str, Any]) -> Prompt:
        mask = None if entry["mask"] is None else self._mask(entry["mask"])
        return Prompt(**{**entry, "points": tuple(tuple(point) for point in entry["points"]), "mask": mask})

    def _lesion(self, entry: dict[str, Any]) -> Lesion:
        prompts = tuple(self._prompt(prompt) for prompt in entry["prompts"])
        return Lesion(**{**entry, "mask": self._mask(entry["mask"]), "prompts": prompts})

    def _exemplar(self, entry: dict[str, Any]) -> Exemplar:
        tokens = {name: self._array(place) for name, place in entry["tokens"].items()}
        place = tuple(entry["position_lps_mm"])
        made = Exemplar(**{**entry, "tokens": tokens, "position_lps_mm": place})
        for name, array in entry["tokens"].items():
            self._remember(array, made.tokens[name])
        return made

    def _remember(self, name: str, owner: object) -> None:
        self._owners[name] = owner
        self._store._names[id(owner)] = (owner, name)


def _path(folder: Path, number: int) -> Path:
    return folder / STATES / f"{number:06d}.safetensors"


def _sync_folder(folder: Path) -> None:
    """Wait until a folder's list of files is on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
