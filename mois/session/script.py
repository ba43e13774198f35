"""A session from a file of prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mois.session.interactive import InteractiveSession
from mois.text_files import read_json

WHAT = ("click", "box", "mask", "propagate")


@dataclass(frozen=True)
class Step:
    """One entry of a file of prompts.

    Attributes:
        what: click, box, mask or propagate.
        given: A point, two points, a file or nothing.
        lesion: The user's name for the lesion, or None.
        positive: Of a click.
    """

    what: str
    given: Any
    lesion: str | None
    positive: bool


def read_script(path: Path) -> list[Step]:
    """Read a file of prompts; without a propagation, one is added at the end.

    Raises:
        ValueError: Naming the entry that cannot be used.
    """
    if not path.is_file():
        raise ValueError(f"prompts={path}: there is no such file; give a JSON file of prompts.")
    content = read_json(path)
    entries = content.get("prompts") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise ValueError(f'prompts={path}: holds no list of prompts; write {{"prompts": [{{"click": [x, y, z]}}]}}.')
    steps = [_step(path, number, entry) for number, entry in enumerate(entries, start=1)]
    if not any(step.what == "propagate" for step in steps):
        steps.append(Step("propagate", True, None, True))
    return steps


def _step(path: Path, number: int, entry: Any) -> Step:
    what = [key for key in WHAT if isinstance(entry, dict) and key in entry]
    unknown = sorted(set(entry) - {*WHAT, "lesion", "positive"}) if isinstance(entry, dict) else []
    if len(what) != 1 or unknown:
        raise ValueError(
            f"prompts={path}: entry {number} is {json.dumps(entry)[:80]}; it needs exactly one of {', '.join(WHAT)}, "
            "and may have lesion and positive."
        )
    given = entry[what[0]]
    points = [given] if what[0] == "click" else given if what[0] == "box" else []
    if not isinstance(points, list) or len(points) != {"click": 1, "box": 2}.get(what[0], 0):
        raise ValueError(f"prompts={path}: entry {number}: a box has two opposite corners.")
    for point in points:
        numbers = isinstance(point, list) and len(point) == 3 and all(isinstance(v, int | float) for v in point)
        if not numbers:
            raise ValueError(f"prompts={path}: entry {number}: {point} must be three numbers, LPS mm.")
    if what[0] == "mask":
        if not isinstance(given, str):
            raise ValueError(f"prompts={path}: entry {number}: mask is the name of a file on the scan's grid.")
        given = path.parent / given
    lesion = entry.get("lesion")
    return Step(what[0], given, None if lesion is None else str(lesion), bool(entry.get("positive", True)))


def play(session: InteractiveSession, script: Sequence[Step], bank: Path | None = None) -> dict[str, int]:
    """Do what a file of prompts says; what the session did already is not done again.

    Args:
        session: New, or interrupted while it played the same file.
        script: The prompts in order.
        bank: Exemplars to begin with, or None.

    Returns:
        The user's names to the lesions' ids.

    Raises:
        ValueError: If the session did something else before.
    """
    done = list(session.actions)
    wanted = (["use_bank"] if bank is not None else []) + [step.what for step in script]
    if [action.name for action in done] != wanted[: len(done)]:
        raise ValueError("out holds a session with other prompts; choose another folder.")
    if bank is not None:
        if done:
            done.pop(0)
        else:
            session.use_bank(bank)
    names: dict[str, int] = {}
    for place, step in enumerate(script):
        lesion = names.get(step.lesion) if step.lesion is not None else None
        if place < len(done):
            before = done[place]
            if step.what == "click" and before.arguments["point_lps_mm"] != [float(value) for value in step.given]:
                raise ValueError("out holds a session with other prompts; choose another folder.")
            result = before.result
        elif step.what == "click":
            result = session.click(step.given, lesion, step.positive)
        elif step.what == "box":
            result = session.box(step.given[0], step.given[1], lesion)
        elif step.what == "mask":
            result = session.mask(step.given, lesion)
        else:
            result = session.propagate()
        if step.lesion is not None:
            names[step.lesion] = int(result)
    return names
