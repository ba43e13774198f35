"""Reads a prompt file (prompts.json) and checks each entry."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mois.files.atomic import named
from mois.files.text import read_json
from mois.session.journal import MOST_POINTS
from mois.session.points import VoxelPoint, read_point

ENTRY_KINDS = ("click", "box", "mask", "scribble", "lasso", "propagate")
LEAST_POINTS = {"scribble": 2, "lasso": 3}


@dataclass(frozen=True)
class PromptEntry:
    """One entry of a prompt file.

    Attributes:
        kind: click, box, mask, scribble, lasso or propagate.
        given: A point (in LPS mm, or a `VoxelPoint`) for a click, two points for a box, points for a scribble or a
            lasso, a file for a mask; else True.
        lesion: The user's name for the lesion, or None.
        positive: Whether the prompt marks the lesion, and not what lies outside it.
        number: Number of the entry in the file, from 1; 0 for the propagation that is added at the end.
        type: Type of the lesion, or of the lesions to find; None leaves it out.
    """

    kind: str
    given: Any
    lesion: str | None = None
    positive: bool = True
    number: int = 0
    type: str | None = None


def read_prompts(path: Path) -> list[PromptEntry]:
    """Read a prompt file. If it has no propagation, a propagation is added at the end.

    Raises:
        ValueError: If an entry cannot be used; the message names the entry.
    """
    if not path.exists():  # read_json refuses anything but a regular file
        raise ValueError(f"prompts={path}: there is no such file; give a JSON file of prompts.")
    content = read_json(path)
    if isinstance(content, dict):
        if unknown := sorted(content.keys() - {"prompts"}):
            raise ValueError(f"prompts={path}: {unknown[0]!r} is unknown beside prompts; take it out.")
        if "prompts" not in content:
            raise ValueError(f'prompts={path}: is no JSON of the form {{"prompts": [...]}}; write it so.')
        content = content["prompts"]
    if not isinstance(content, list):
        raise ValueError(f"prompts={path}: prompts is {_shown(content)}; write a list.")
    entries = [_entry(path, number, entry) for number, entry in enumerate(content, start=1)]
    if not any(entry.kind == "propagate" for entry in entries):
        entries.append(PromptEntry("propagate", True))
    return entries


def _entry(path: Path, number: int, entry: Any) -> PromptEntry:
    """Return an entry of the JSON list, checked."""

    def refuse(reason: str) -> ValueError:
        return ValueError(f"prompts={path}: entry {number} is {_shown(entry)}: {reason}.")

    if not isinstance(entry, dict):
        raise refuse('write an object, such as {"click": [x, y, z]}')
    kinds = [key for key in ENTRY_KINDS if key in entry]
    if len(kinds) != 1:
        raise refuse(f"it needs exactly one of {', '.join(ENTRY_KINDS)}")
    allowed = ("type",) if kinds[0] == "propagate" else ("lesion", "positive", "type")
    for key in entry:
        if key != kinds[0] and key not in allowed:
            raise refuse(f"{key!r} does not belong to a {kinds[0]}, which may have {' and '.join(allowed)} besides")
    lesion, positive = entry.get("lesion"), entry.get("positive", True)
    if lesion is not None and (not isinstance(lesion, str) or not lesion or lesion != lesion.strip()):
        raise refuse("lesion must be a name in quotes, without blanks around it")
    if not isinstance(positive, bool):
        raise refuse("positive must be true or false, without quotes")
    kind = entry.get("type")
    if kind is not None and not isinstance(kind, str):
        raise refuse("type must be a name in quotes")
    return PromptEntry(kinds[0], _given(path, kinds[0], entry[kinds[0]], refuse), lesion, positive, number, kind)


def _given(path: Path, kind: str, given: Any, refuse: Callable[[str], ValueError]) -> Any:
    """Return the value of an entry, checked. `refuse` makes the error that names the entry."""
    if kind == "click":
        return _point(given, refuse)
    if kind == "box":
        if not isinstance(given, list) or len(given) != 2:
            raise refuse("a box has two opposite corners")
        return [_point(corner, refuse) for corner in given]
    if kind in LEAST_POINTS:
        if not isinstance(given, list) or not LEAST_POINTS[kind] <= len(given) <= MOST_POINTS:
            raise refuse(f"a {kind} has {LEAST_POINTS[kind]} to {MOST_POINTS} points")
        return [_point(point, refuse) for point in given]
    if kind == "mask":
        if not isinstance(given, str) or not given:
            raise refuse("mask is the name of a file on the scan's grid")
        return named(path.parent / given)
    if given is not True:
        raise refuse("propagate must be true; leave the entry out if nothing is to be propagated there")
    return True


def _point(given: Any, refuse: Callable[[str], ValueError]) -> list[float] | VoxelPoint:
    try:
        return read_point(given)
    except ValueError as error:
        raise refuse(str(error)) from error


def _shown(entry: Any) -> str:
    text = json.dumps(entry, ensure_ascii=True)
    return text if len(text) <= 80 else f"{text[:77]}..."
