"""Pseudonyms for scans, patients and paths in what loggers record.

A pseudonym is a keyed hash: the same name has the same pseudonym in all runs of a user, so that runs and folds can be
compared. Without the key nobody can find the name by trying all names. The key lies in the user's own folder of
settings (`key_file`). `names.csv` in the run's folder says which pseudonym stands for which name.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mois.files.atomic import write_text
from mois.files.csv_tables import csv_text

_FIGURE = re.compile(r"(train|val|test|time)/[A-Za-z0-9_/]+")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_LISTS_OF_SCANS = ("subjects", "trained_on")
"""Endings of the settings whose values are names of scans."""


class Names:
    """Gives texts, settings and tables with pseudonyms, or as they are.

    Args:
        hashed: Whether names and paths are replaced.
        key: Secret key of the pseudonyms; None takes the user's key.
    """

    def __init__(self, hashed: bool = False, key: bytes | None = None) -> None:
        self.hashed = hashed
        self._key = key if key is not None or not hashed else user_key()
        self._known: dict[str, str] = {}  # name or path to its pseudonym
        self._words: dict[str, str] = {}  # paths of one word, which are replaced only where they are a whole setting
        self._pattern: re.Pattern[str] | None = None

    def add(self, names: Iterable[str] = (), paths: Iterable[str | Path] = ()) -> None:
        """Learn names of scans and patients, and paths, which may stand in any text from now on."""
        if not self.hashed:
            return
        before = len(self._known)
        for name in set(names).difference(self._known.values()):
            self._known.setdefault(name, self._pseudonym("id", name))
        for path in paths:
            pseudonym = self._pseudonym("path", str(Path(path).resolve()))
            for text in {str(path), str(Path(path).absolute()), str(Path(path).resolve())}:
                (self._known if len(Path(text).parts) > 1 else self._words).setdefault(text, pseudonym)
        self._known.pop("", None)
        if len(self._known) > before:
            longest_first = sorted(self._known, key=len, reverse=True)
            known = "|".join(map(_pattern_of, longest_first))
            self._pattern = re.compile(rf"(?<![0-9A-Za-z])(?:{known})(?![0-9A-Za-z])")

    def name(self, name: str) -> str:
        """Return what stands for the name of a scan or a patient."""
        self.add([name])
        return self._known.get(name, name)

    def text(self, text: str) -> str:
        """Return a text with pseudonyms for all names and paths that are known."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda found: self._known[found[0]], text)

    def settings(self, values: Any, key: str = "") -> Any:
        """Return settings with pseudonyms. Each text that looks like a path is replaced as a whole.

        Args:
            values: A plain value, or mappings and lists of them.
            key: Name of the setting.
        """
        if not self.hashed:
            return values
        if isinstance(values, Mapping):
            return {self.text(str(name)): self.settings(value, str(name)) for name, value in values.items()}
        if isinstance(values, (list, tuple, set)):
            return [self.settings(value, key) for value in values]
        if isinstance(values, Path):
            return self._path(str(values))
        if not isinstance(values, str):
            return values
        if key.endswith(_LISTS_OF_SCANS):
            return self.name(values)
        if values in self._words:
            return self._words[values]
        return self._path(values) if values not in self._known and _looks_like_path(values) else self.text(values)

    def write(self, path: Path) -> None:
        """Write which pseudonym stands for which name."""
        if self._known:
            rows = sorted((pseudonym, name) for name, pseudonym in self._known.items())
            write_text(path, csv_text(["pseudonym", "name"], rows))

    def _path(self, text: str) -> str:
        self.add(paths=[text])
        return self._known.get(text) or self._words.get(text) or self._pseudonym("path", text)

    def _pseudonym(self, kind: str, name: str) -> str:
        return f"{kind}-{hmac.new(self._key or b'', name.encode(errors='replace'), 'sha256').hexdigest()[:10]}"


def _pattern_of(name: str) -> str:
    """Return the pattern of a name. A short number does not count within a decimal or a version (3.11.7)."""
    short = len(name) <= 3 and name.isdecimal()
    return rf"(?<!\d\.){name}(?!\.\d)" if short else re.escape(name)


def key_file() -> Path:
    """Return the file of the user's key: `mois/names.key` in XDG_CONFIG_HOME, or in `~/.config`.

    Raises:
        RuntimeError: If there is no home folder.
    """
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "mois" / "names.key"


def user_key() -> bytes:
    """Return the user's key, made at its first use. Without a place to keep it, the key is for this run only."""
    fresh = secrets.token_bytes(32)
    try:
        file = key_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as new:
                new.write(fresh.hex())
            return fresh
        except FileExistsError:
            return bytes.fromhex(file.read_text(encoding="ascii")) or fresh
    except (OSError, RuntimeError, ValueError):
        return fresh


def _looks_like_path(text: str) -> bool:
    if "\n" in text or not text:
        return False
    if text.startswith(("/", "~", "./", "../", "\\\\")) or _DRIVE.match(text):
        return True
    words = (word for word in re.split(r"[\s,;:()]+", text) if "/" in word or "\\" in word)
    return any(not _FIGURE.fullmatch(word) for word in words)
