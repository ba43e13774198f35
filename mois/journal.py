"""What a reader did, one JSON object per line, and how long it took.

The first line says which scan and model the session is of; every other line is an action that is over: what was asked
(in LPS millimetres), what came of it, and its times. A line is written in one go and forced to the disk; a last line
without its end is an action that was under way when the process ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = "mois journal"
FORMAT_VERSION = 1
NAME = "journal.jsonl"
PROMPTS = ("click", "box", "mask")


@dataclass(frozen=True)
class Action:
    """Something that the reader did, once it was over.

    Attributes:
        number: 1 for the first action of a session.
        name: Of the method of `InteractiveSession`.
        arguments: What it was given, as JSON holds it; places in LPS mm.
        result: What it gave, such as the lesion's id.
        started: When, ISO 8601 with the time zone.
        seconds_reader: From the end of the action before it (or of the start of the session).
        seconds_computed: Of the model and of what was made of its answer.
        seconds_waited: Until the reader could go on, what was written to disk included.
    """

    number: int
    name: str
    arguments: dict[str, Any]
    result: Any = None
    started: str = ""
    seconds_reader: float = 0.0
    seconds_computed: float = 0.0
    seconds_waited: float = 0.0

    def line(self) -> bytes:
        """Return the line that stands for it, with its end."""
        return _line(vars(self))


@dataclass(frozen=True)
class Journal:
    """A session's journal.

    Attributes:
        header: Which scan and model it is of.
        actions: In order.
        size: Bytes of the whole lines; what follows in the file is an action that never ended.
    """

    header: dict[str, Any]
    actions: tuple[Action, ...]
    size: int


def header_line(about: dict[str, Any]) -> bytes:
    """Return the first line of a journal."""
    return _line({"format": FORMAT, "format_version": FORMAT_VERSION, **about})


def _line(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n").encode()


def append_line(file: int, line: bytes) -> None:
    """Write a line to an open file, and wait until it is on the disk."""
    view = memoryview(line)
    while view:
        view = view[os.write(file, view) :]
    os.fsync(file)


def find_journal(path: Path) -> Path:
    """Return the journal itself where the folder of a session is given.

    Raises:
        ValueError: If there is none.
    """
    file = path / NAME if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file}: there is no journal; give the folder of a session.")
    return file


def has_begun(journal: Path) -> bool:
    """Tell whether a file holds more than the start of a first line, at which a session was killed."""
    if not journal.is_file():
        return False
    head = journal.read_bytes()[:4096]
    start = header_line({})[: -len(b"}\n")]
    return b"\n" in head or not (start.startswith(head) or head.startswith(start))


def read_journal(path: Path) -> Journal:
    """Read a journal; an unfinished last line is left out.

    Raises:
        ValueError: If there is none, or a line but the last is damaged.
    """
    file = find_journal(path)
    parsed: list[dict[str, Any]] = []
    size = 0
    lines = file.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("no end of line")
            parsed.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            if number == len(lines) and number > 1:
                break
            raise ValueError(f"{file}: line {number} is damaged ({error}); take a copy of the journal.") from error
        size += len(line)
    if not parsed or parsed[0].get("format") != FORMAT:
        raise ValueError(f"{file}: is no journal of a session; give the folder that a session was saved in.")
    if parsed[0].get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{file}: is of format {parsed[0].get('format_version')}, this version reads {FORMAT_VERSION}; update this "
            "program."
        )
    try:
        actions = tuple(Action(**entry) for entry in parsed[1:])
    except TypeError as error:
        raise ValueError(f"{file}: holds an action that is none ({error}); take a copy of the journal.") from error
    wrong = next((n for n, action in enumerate(actions, start=1) if action.number != n), None)
    if wrong is not None:
        raise ValueError(f"{file}: action {wrong} is numbered {actions[wrong - 1].number}; take a copy of the journal.")
    return Journal(parsed[0], actions, size)


@dataclass
class Motion:
    """What one lesion, one scan or all of them took.

    Attributes:
        clicks: Positive and negative ones.
        boxes: Drawn.
        masks: Given.
        others: All other actions: propagations, verdicts, undo.
        seconds_reader: Looking and pointing.
        seconds_waited: Waiting for the program.
        seconds_computed: Of these, computing.
    """

    clicks: int = 0
    boxes: int = 0
    masks: int = 0
    others: int = 0
    seconds_reader: float = 0.0
    seconds_waited: float = 0.0
    seconds_computed: float = 0.0

    def add(self, action: Action) -> None:
        """Count an action."""
        match action.name:
            case "click":
                self.clicks += 1
            case "box":
                self.boxes += 1
            case "mask":
                self.masks += 1
            case _:
                self.others += 1
        self.seconds_reader += action.seconds_reader
        self.seconds_waited += action.seconds_waited
        self.seconds_computed += action.seconds_computed

    def plus(self, other: Motion) -> Motion:
        """Return the sum of two."""
        return Motion(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass
class ScanMotion:
    """Time and motion of one session.

    Attributes:
        subject: The scan.
        total: Of everything that was done.
        lesions: Lesion id to what was done to it.
    """

    subject: str
    total: Motion = field(default_factory=Motion)
    lesions: dict[int, Motion] = field(default_factory=dict)

    @property
    def touched(self) -> int:
        """How many lesions were prompted."""
        return sum(bool(motion.clicks + motion.boxes + motion.masks) for motion in self.lesions.values())


def time_and_motion(journal: Journal) -> ScanMotion:
    """Add up a journal; what was undone counts, since it took its time."""
    found = ScanMotion(str(journal.header.get("subject", "")))
    for action in journal.actions:
        found.total.add(action)
        lesion = action.result if action.name in PROMPTS else action.arguments.get("lesion")
        if isinstance(lesion, int):
            found.lesions.setdefault(lesion, Motion()).add(action)
    return found


COLUMNS = ("clicks", "boxes", "masks", "others", "seconds_reader", "seconds_waited", "seconds_computed")


def motion_rows(scans: Sequence[ScanMotion], *, lesions: bool = True) -> list[list[str]]:
    """Return a table as text: a heading, then each lesion and each scan, then the sum and the mean per lesion."""
    rows = [["scan", "lesion", *COLUMNS]]
    for scan in scans:
        if lesions:
            rows += [[scan.subject, str(lesion), *_numbers(scan.lesions[lesion])] for lesion in sorted(scan.lesions)]
        rows.append([scan.subject, "all", *_numbers(scan.total)])
    whole = Motion()
    for scan in scans:
        whole = whole.plus(scan.total)
    if len(scans) > 1:
        rows.append(["all", "all", *_numbers(whole)])
    prompted = sum(scan.touched for scan in scans)
    if prompted:
        mean = Motion(**{name: getattr(whole, name) / prompted for name in COLUMNS})  # type: ignore[arg-type]
        rows.append(["mean", "per prompted", *(f"{getattr(mean, name):.2f}" for name in COLUMNS)])
    return rows


def _numbers(motion: Motion) -> list[str]:
    return [
        f"{value:.1f}" if isinstance(value, float) else str(value)
        for value in (getattr(motion, name) for name in COLUMNS)
    ]
