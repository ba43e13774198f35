"""How many actions and how much time a reader needed, from the journal of a session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from mois.session.journal import PROMPT_ACTIONS, Action, Journal


@dataclass
class Motion:
    """Number of actions and seconds for a lesion, a scan, or all scans.

    Attributes:
        clicks: Number of clicks, positive and negative.
        boxes: Number of boxes.
        masks: Number of masks.
        scribbles: Number of scribbles.
        lassos: Number of lassos.
        others: Number of all other actions, such as propagations, accepted lesions and undo.
        seconds_reader: Seconds in which the reader looked and pointed.
        seconds_waited: Seconds in which the reader waited for the program.
        seconds_computed: Seconds of computing, a part of `seconds_waited`.
    """

    clicks: int = 0
    boxes: int = 0
    masks: int = 0
    scribbles: int = 0
    lassos: int = 0
    others: int = 0
    seconds_reader: float = 0.0
    seconds_waited: float = 0.0
    seconds_computed: float = 0.0

    def add(self, action: Action) -> None:
        """Add an action."""
        match action.name:
            case "click":
                self.clicks += 1
            case "box":
                self.boxes += 1
            case "mask":
                self.masks += 1
            case "scribble":
                self.scribbles += 1
            case "lasso":
                self.lassos += 1
            case _:
                self.others += 1
        self.seconds_reader += action.seconds_reader
        self.seconds_waited += action.seconds_waited
        self.seconds_computed += action.seconds_computed

    @property
    def prompts(self) -> int:
        """Number of prompts of all kinds."""
        return self.clicks + self.boxes + self.masks + self.scribbles + self.lassos

    def plus(self, other: Motion) -> Motion:
        """Return the sum of this and another."""
        return Motion(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass
class ScanMotion:
    """Time and motion of one session.

    Attributes:
        subject: Subject of the scan.
        total: All actions.
        lesions: Actions on a lesion, by its id.
    """

    subject: str
    total: Motion = field(default_factory=Motion)
    lesions: dict[int, Motion] = field(default_factory=dict)

    @property
    def touched(self) -> int:
        """Number of prompted lesions."""
        return sum(motion.prompts > 0 for motion in self.lesions.values())


def time_and_motion(journal: Journal) -> ScanMotion:
    """Return time and motion of a journal. Undone actions count: they took time."""
    motion = ScanMotion(str(journal.header.get("subject", "")))
    for action in journal.actions:
        motion.total.add(action)
        lesion = action.result if action.name in PROMPT_ACTIONS else action.arguments.get("lesion")
        if isinstance(lesion, int):
            motion.lesions.setdefault(lesion, Motion()).add(action)
    return motion


COLUMNS = tuple(each.name for each in fields(Motion))


def motion_rows(scans: Sequence[ScanMotion], *, lesions: bool = True) -> list[list[str]]:
    """Return a table as text: heading, rows of lesions and scans, sum, and mean per prompted lesion."""
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
