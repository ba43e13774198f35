"""The journal of a session: what the reader did and how long it took, one JSON object per line.

The first line states scan, model and settings. Every other line is a finished action: its arguments (points in LPS
millimetres), its result and its times. A line is written at once and forced to the disk. A last line without its end
is an action that was under way when the process ended.

In format 2, each line states its own digest, the digest of the line before it, and the digest of the state after the
action. The keys of exemplars hold a digest of the scan. Format 1 has none of these. A session keeps its format.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mois.errors import DataError
from mois.files.atomic import read_regular
from mois.files.json_records import DIGEST, as_record, check_seal, parse_json, sealed

FORMAT = "mois journal"
FORMAT_VERSION = 2
NAME = "journal.jsonl"
PROMPT_ACTIONS = ("click", "box", "mask", "scribble", "lasso")
MOST_POINTS = 10_000
"""Largest number of points of a scribble or a lasso."""
PointMm = tuple[float, float, float]
_CURE = "take a copy of the journal"


@dataclass(frozen=True)
class _Click:
    point_lps_mm: PointMm
    lesion: int | None
    positive: bool


@dataclass(frozen=True)
class _Box:
    corners_lps_mm: tuple[PointMm, PointMm]
    lesion: int | None
    positive: bool = True


@dataclass(frozen=True)
class PackedMask:
    """A mask on the scanner's grid as JSON: its bounding box (first voxel and shape), and its bits, compressed."""

    corner: tuple[int, int, int]
    shape: tuple[int, int, int]
    bits: str


@dataclass(frozen=True)
class _Mask:
    mask: PackedMask
    lesion: int | None
    positive: bool = True


@dataclass(frozen=True)
class _Drawing:
    points_lps_mm: tuple[PointMm, ...]
    lesion: int | None
    positive: bool


@dataclass(frozen=True)
class _Lesion:
    lesion: int


@dataclass(frozen=True)
class _Bank:
    bank: str


@dataclass(frozen=True)
class _Use:
    type: str
    model: str


@dataclass(frozen=True)
class _Weight:
    exemplar: str
    weight: float


@dataclass(frozen=True)
class _Exemplar:
    exemplar: str


@dataclass(frozen=True)
class _NoArguments:
    pass


ACTION_ARGUMENTS: dict[str, type] = {
    "click": _Click,
    "box": _Box,
    "mask": _Mask,
    "scribble": _Drawing,
    "lasso": _Drawing,
    "propagate": _NoArguments,
    "accept": _Lesion,
    "reject": _Lesion,
    "remove": _Lesion,
    "lock": _Lesion,
    "unlock": _Lesion,
    "use_bank": _Bank,
    "use": _Use,
    "reweigh": _Weight,
    "forget": _Exemplar,
    "undo": _NoArguments,
    "redo": _NoArguments,
}
"""The arguments of each action in its line."""


@dataclass(frozen=True)
class Action:
    """A finished action of the reader.

    Attributes:
        number: 1 for the first action of a session.
        name: Name of the method of `InteractiveSession`.
        arguments: Arguments as JSON; points in LPS mm.
        result: What the method returned, such as the id of a lesion.
        started: Time of the start, ISO 8601 with the time zone.
        seconds_reader: Seconds from the end of the action before it, or from the start of the session.
        seconds_computed: Seconds of computing.
        seconds_waited: Seconds until the reader could go on: computing, and writing to the disk.
        state: SHA-256 of the file of the state after the action; empty if there is no file.
    """

    number: int
    name: str
    arguments: dict[str, Any]
    result: Any = None
    started: str = ""
    seconds_reader: float = 0.0
    seconds_computed: float = 0.0
    seconds_waited: float = 0.0
    state: str = ""


@dataclass(frozen=True)
class Journal:
    """The journal of a session, as read from its file.

    Attributes:
        header: The first line: format, scan, model and settings.
        actions: Finished actions, in order.
        size: Length of the whole lines in bytes. Anything after them in the file is an unfinished action.
        version: Version of the format.
        last: Digest of the last whole line; empty in format 1.
    """

    header: dict[str, Any]
    actions: tuple[Action, ...]
    size: int
    version: int
    last: str

    @property
    def about(self) -> dict[str, Any]:
        """The first line without its format."""
        return {key: value for key, value in self.header.items() if key not in ("format", "format_version")}


class LineWriter:
    """Makes the lines of a journal. Each line states the digest of the line before it.

    Args:
        version: Version of the format.
        last: Digest of the last line so far; empty for a new journal.
    """

    def __init__(self, version: int = FORMAT_VERSION, last: str = "") -> None:
        self.version = version
        self._last = last

    def header(self, about: Mapping[str, Any]) -> bytes:
        """Return the first line, with its line end."""
        return self._line({"format": FORMAT, "format_version": self.version, **about})

    def action(self, action: Action) -> bytes:
        """Return the line of an action, with its line end."""
        plain = vars(action)
        return self._line(plain if self.version > 1 else {key: plain[key] for key in plain if key != "state"})

    def _line(self, content: dict[str, Any]) -> bytes:
        if self.version > 1:
            content = sealed({**content, "after": self._last})
            self._last = content[DIGEST]
        return (json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n").encode()


def append_line(file: int, line: bytes) -> None:
    """Write a line to an open file (its descriptor), and wait until it is on the disk."""
    view = memoryview(line)
    while view:
        view = view[os.write(file, view) :]
    os.fsync(file)


def find_journal(path: Path) -> Path:
    """Return the file of a journal, given the file or the folder of its session.

    Raises:
        ValueError: If there is no journal.
    """
    file = path / NAME if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file}: there is no journal; give the folder of a session.")
    return file


def has_begun(journal: Path) -> bool:
    """Return whether a journal holds more than the start of its first line, which a killed process can leave."""
    if not journal.is_file():
        return False
    with journal.open("rb") as file:
        head = file.read(4096)
    start = json.dumps({"format": FORMAT, "format_version": 0}, separators=(",", ":")).encode()[: -len(b"0}")]
    return b"\n" in head or not (start.startswith(head) or head.startswith(start))


def read_journal(path: Path) -> Journal:
    """Read a journal. An unfinished last line is left out.

    Raises:
        DataError: If there is no journal, a line before the last is damaged, or the file was changed.
    """
    file = find_journal(path)
    parsed: list[Any] = []
    size = 0
    lines = read_regular(file).splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if number == len(lines) > 1 and not line.endswith(b"\n"):
            break
        parsed.append(parse_json(line.removesuffix(b"\n"), f"{file}: line {number}", _CURE))
        if not line.endswith(b"\n"):
            raise DataError(f"{file}: line {number} has no end; {_CURE}.")
        size += len(line)
    header = parsed[0] if parsed else None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DataError(f"{file}: is no journal of a session; give the folder that a session was saved in.")
    version = header.get("format_version")
    if version not in (1, FORMAT_VERSION) or type(version) is not int:
        raise DataError(
            f"{file}: is of format {version!r}, this version reads 1 and {FORMAT_VERSION}; update this program."
        )
    last = ""
    if version > 1:
        last = _check_chain(parsed, str(file))
    else:
        _refuse_later(parsed, str(file))
        warnings.warn(
            f"{file}: unverified: format 1 (it has no digests that prove that it is as it was written)", stacklevel=3
        )
    actions = tuple(
        _action(entry, number, f"{file}: action {number}") for number, entry in enumerate(parsed[1:], start=1)
    )
    about = {key: value for key, value in header.items() if key not in ("after", DIGEST)}
    return Journal(about, actions, size, version, last)


def _check_chain(lines: Sequence[Any], name: str) -> str:
    """Check that each line follows the line before it, and return the digest of the last line.

    Raises:
        DataError: If a line was changed, taken out or put in.
    """
    last = ""
    for number, line in enumerate(lines, start=1):
        where = f"{name}: line {number}"
        if not isinstance(line, dict):
            raise DataError(f"{where} is no action; {_CURE}.")
        check_seal(line, where, _CURE)
        if line.get("after") != last:
            raise DataError(f"{where} does not follow the line before it; {_CURE}.")
        last = str(line[DIGEST])
    return last


def _refuse_later(lines: Sequence[Any], name: str) -> None:
    """Refuse a journal of format 1 with keys of a later format: it is a damaged later journal."""
    for number, line in enumerate(lines, start=1):
        if isinstance(line, dict) and (later := {*line} & {"after", "state", DIGEST}):
            raise DataError(f"{name}: line {number} holds {min(later)}, which format 1 does not have; {_CURE}.")


def _action(entry: Any, number: int, name: str) -> Action:
    """Return a line as an action, checked; `name` stands for the line in messages."""
    if not isinstance(entry, dict):
        raise DataError(f"{name} is no action; {_CURE}.")
    plain = {key: value for key, value in entry.items() if key not in ("after", DIGEST)}
    action = as_record(plain, Action, name, _CURE, later=("state",))
    if action.number != number:
        raise DataError(f"{name} is numbered {action.number}; {_CURE}.")
    if action.name not in ACTION_ARGUMENTS:
        raise DataError(f"{name} is {action.name[:40]!r}, which this version does not know; {_CURE}.")
    arguments = ACTION_ARGUMENTS[action.name]
    later = ("positive",) if action.name in ("box", "mask") else ()  # written where it is false alone
    as_record(action.arguments, arguments, f"{name}, {action.name}", _CURE, later=later)
    if action.name in PROMPT_ACTIONS and not (type(action.result) is int and 0 < action.result < 2**31):
        raise DataError(f"{name}, {action.name}, has the result {action.result!r}, no lesion; {_CURE}.")
    return action


def time_stamp() -> str:
    """Return the current time, ISO 8601, UTC, in milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
