"""The reader's names of lesions. MONAI Label knows lesions by the name of their label, a session by their id."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mois.files.atomic import write_text
from mois.files.json_records import read_record

FIRST_NAMES = 5
"""Number of labels that a viewer offers before the first click."""
MOST_CHARACTERS = 200
"""Longest name of a label."""


@dataclass
class LesionNames:
    """Which lesion has which name, on one scan.

    Attributes:
        ids: Name of a label -> id of its lesion. Every lesion has one name.
        rejected: Names of rejected lesions. A viewer may still show them; they are left out when a label is saved.
    """

    ids: dict[str, int] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)

    def give(self, name: str, lesion: int) -> None:
        """Give a lesion a name. An earlier name of the lesion, and an earlier lesion of the name, are forgotten."""
        checked_name(name)
        self.ids = {other: number for other, number in self.ids.items() if number != lesion and other != name}
        self.ids[name] = lesion
        self.rejected = [other for other in self.rejected if other != name]

    def follow(self, lesions: Iterable[int]) -> None:
        """Forget the names of lesions that are gone, and give each lesion without a name a free one."""
        present = set(lesions)
        self.ids = {name: number for name, number in self.ids.items() if number in present}
        for number in sorted(present - set(self.ids.values())):
            self.ids[self._free_name(number)] = number

    def of(self, lesion: int) -> str:
        """Return the name of a lesion."""
        return next(name for name, number in self.ids.items() if number == lesion)

    def _free_name(self, lesion: int) -> str:
        while (name := default_name(lesion)) in self.ids or name in self.rejected:
            lesion += 1
        return name

    @classmethod
    def load(cls, path: Path) -> LesionNames:
        """Read the names of a scan. Without a file there are none yet.

        Raises:
            ValueError: If the file is damaged.
        """
        return read_record(path, cls, "move it away; lesions then get new names") if path.exists() else cls()

    def save(self, path: Path) -> None:
        """Write the names of a scan."""
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")


def default_name(number: int) -> str:
    """Return the name of a lesion that the reader has not named."""
    return f"lesion {number}"


def checked_name(name: object) -> str:
    """Return the name of a label.

    Raises:
        ValueError: If it is no name.
    """
    if not isinstance(name, str) or not name.strip() or len(name) > MOST_CHARACTERS or not name.isprintable():
        raise ValueError(f"label must be a name of 1 to {MOST_CHARACTERS} printable characters; choose a label.")
    return name
