"""A file of prompts: what it may hold, and what it holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mois.files.atomic import named
from mois.files.text import read_json
from mois.session.points import VoxelPoint, read_point

WHAT = ("click", "box", "mask", "propagate")


@dataclass(frozen=True)
class Step:
    """One entry of a file of prompts.

    Attributes:
        what: click, box, mask or propagate.
        given: A point (in LPS mm, or a `VoxelPoint`), two points, a file or True.
        lesion: The user's name for the lesion, or None.
        positive: Of a click.
        entry: Its number in the file, from 1; 0 for the propagation that a file without one ends with.
    """

    what: str
    given: Any
    lesion: str | None = None
    positive: bool = True
    entry: int = 0


def read_script(path: Path) -> list[Step]:
    """Read a file of prompts; without a propagation, one is added at the end.

    Raises:
        ValueError: Naming the entry that cannot be used.
    """
    if not path.exists():  # what is no regular file is refused by name below
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
    steps = [_step(path, number, entry) for number, entry in enumerate(content, start=1)]
    if not any(step.what == "propagate" for step in steps):
        steps.append(Step("propagate", True))
    return steps


def _step(path: Path, number: int, entry: Any) -> Step:
    def refuse(reason: str) -> ValueError:
        return ValueError(f"prompts={path}: entry {number} is {_shown(entry)}: {reason}.")

    if not isinstance(entry, dict):
        raise refuse('write an object, such as {"click": [x, y, z]}')
    what = [key for key in WHAT if key in entry]
    if len(what) != 1:
        raise refuse(f"it needs exactly one of {', '.join(WHAT)}")
    allowed = {"click": ("lesion", "positive"), "propagate": ()}.get(what[0], ("lesion",))
    for key in entry:
        if key != what[0] and key not in allowed:
            known = f"may have {' and '.join(allowed)} besides" if allowed else "has nothing besides"
            raise refuse(f"{key!r} does not belong to a {what[0]}, which {known}")
    lesion, positive = entry.get("lesion"), entry.get("positive", True)
    if lesion is not None and (not isinstance(lesion, str) or not lesion or lesion != lesion.strip()):
        raise refuse("lesion must be a name in quotes, without blanks around it")
    if not isinstance(positive, bool):
        raise refuse("positive must be true or false, without quotes")
    return Step(what[0], _given(path, what[0], entry[what[0]], refuse), lesion, positive, number)


def _given(path: Path, what: str, given: Any, refuse: Callable[[str], ValueError]) -> Any:
    """Return what an entry gives, checked; `refuse` makes the error that names the entry."""
    if what == "click":
        return _point(given, refuse)
    if what == "box":
        if not isinstance(given, list) or len(given) != 2:
            raise refuse("a box has two opposite corners")
        return [_point(corner, refuse) for corner in given]
    if what == "mask":
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
