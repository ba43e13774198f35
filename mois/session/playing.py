"""A file of prompts played in a session: what was done already has to be what is asked, the rest is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mois.geometry import SliceGrid
from mois.records import Volume
from mois.session.header import bank_name
from mois.session.interactive import InteractiveSession
from mois.session.journal import Action
from mois.session.masks import checked_mask, pack_mask, same_masks, unpack_mask
from mois.session.points import mirrored, place_on, ras_suspected, to_lps_mm
from mois.session.prompt_file import Step
from mois.sharing.bank import ExemplarBank


@dataclass(frozen=True)
class Asked:
    """An action that is asked for, with the arguments that a session's journal would hold.

    Attributes:
        where: What asks for it, such as "entry 2".
        name: Of the action.
        arguments: All but `lesion`, whose id is known only once the lesion is there.
        lesion: The user's name for it, or None.
    """

    where: str
    name: str
    arguments: Mapping[str, Any]
    lesion: str | None = None


def asked_for(script: Sequence[Step], volume: Volume, bank: ExemplarBank | None = None) -> list[Asked]:
    """Return the actions that a file of prompts asks for, once its points and masks were seen to fit the scan.

    Raises:
        ValueError: Naming the entry that does not fit.
    """
    shape = (volume.image.shape[0], volume.image.shape[1], volume.image.shape[2])
    grid = SliceGrid.of(shape, volume.affine)
    found = [] if bank is None else [Asked("the bank", "use_bank", {"bank": bank_name(bank)})]
    for step in script:
        where = f"entry {step.entry}" if step.entry else "the propagation at the end"
        try:
            found.append(Asked(where, step.what, _arguments(step, volume, grid), step.lesion))
        except ValueError as error:
            raise ValueError(f"prompts, {where}: {error}") from error
    return found


def _arguments(step: Step, volume: Volume, grid: SliceGrid) -> dict[str, Any]:
    if step.what == "click":
        return {"point_lps_mm": _placed(step.given, volume, grid), "positive": step.positive}
    if step.what == "box":
        return {"corners_lps_mm": [_placed(corner, volume, grid) for corner in step.given]}
    if step.what == "mask":
        return {"mask": pack_mask(checked_mask(step.given, volume))}
    return {}


def _placed(given: Sequence[float], volume: Volume, grid: SliceGrid) -> list[float]:
    point = to_lps_mm(given, volume)
    place_on(grid, point)
    return point


def doubts(asked: Sequence[Asked], volume: Volume) -> list[str]:
    """Return a sentence on every positive click outside the body that would lie in it if it was meant as RAS."""
    clicks = [one for one in asked if one.name == "click" and one.arguments["positive"]]
    return [
        f"{one.where}: {one.arguments['point_lps_mm']} (LPS mm) lies outside the body, its mirror image within it; did "
        f'you give RAS? Then write {{"ras": {mirrored(one.arguments["point_lps_mm"])}}}'
        for one in clicks
        if ras_suspected(one.arguments["point_lps_mm"], volume)
    ]


@dataclass(frozen=True)
class Matched:
    """What of a session stands for what is asked.

    Attributes:
        count: How many of the asked actions are done.
        names: The user's names to the ids of the lesions so far.
        kept: What in the session nobody asks for any more, in words: propagations with which it once ended.
    """

    count: int
    names: Mapping[str, int]
    kept: Sequence[str]


def match(done: Sequence[Action], asked: Sequence[Asked], out: Path) -> Matched:
    """Compare what a session did with what is asked, argument by argument.

    A file that names no propagation ends with one. If entries are appended to it later, that propagation stands in the
    session where the file has none: it stays, and the session goes on after it.

    Raises:
        ValueError: If the session did something else.
    """
    count, names, kept = 0, dict[str, int](), list[str]()
    for action in done:
        want = asked[count] if count < len(asked) else None
        difference = _difference(action, want, names)
        if want is not None and difference is None:
            count += 1
            if want.lesion is not None:
                names[want.lesion] = int(action.result)
        elif action.name == "propagate" and all(one.name != "propagate" for one in asked[:count]):
            kept.append(f"the propagation after {asked[count - 1].where}" if count else "a propagation at the start")
        else:
            raise ValueError(f"out={out} holds a session with other prompts ({difference}); choose another folder.")
    return Matched(count, names, kept)


def _difference(action: Action, want: Asked | None, names: Mapping[str, int]) -> str | None:
    """Return in words how an action that was done differs from one that is asked, None where they are the same."""
    if want is None:
        return f"its action {action.number}, {action.name}, is not asked for now"
    if action.name != want.name:
        return f"{want.where}: {action.name} there, {want.name} now"
    wanted = dict(want.arguments)
    if want.name in ("click", "box", "mask"):
        wanted["lesion"] = names.get(want.lesion) if want.lesion is not None else None
    for key in {**action.arguments, **wanted}:
        before, now = action.arguments.get(key), wanted.get(key)
        if key == "mask":
            if not same_masks(before, now):
                return f"{want.where}: another mask"
        elif before != now or type(before) is not type(now):
            told = "another bank" if key == "bank" else f"{key}={_told(key, before)} there, {_told(key, now)} now"
            return f"{want.where}: {told}"
    return None


def _told(key: str, value: Any) -> str:
    return "a new one" if key == "lesion" and value is None else str(value)


def play(session: InteractiveSession, asked: Sequence[Asked], out: Path, bank: ExemplarBank | None = None) -> Matched:
    """Do what is asked for; what the session did already is not done again.

    Args:
        session: New, or one that did the first part of it.
        asked: The actions in order.
        out: Folder of the session, for the error.
        bank: The exemplars of the action `use_bank`, if there is one.

    Returns:
        What the session had done before.

    Raises:
        ValueError: If the session did something else before.
    """
    matched = match(session.actions, asked, out)
    names = dict(matched.names)
    for want in asked[matched.count :]:
        lesion = names.get(want.lesion) if want.lesion is not None else None
        given = want.arguments
        if want.name == "use_bank" and bank is not None:
            session.use_bank(bank)
            continue
        if want.name == "click":
            result = session.click(given["point_lps_mm"], lesion, given["positive"])
        elif want.name == "box":
            one, opposite = given["corners_lps_mm"]
            result = session.box(one, opposite, lesion)
        elif want.name == "mask":
            shape = tuple(session.volume.image.shape)
            result = session.mask(torch.from_numpy(unpack_mask(given["mask"], shape)), lesion)
        else:
            result = session.propagate()
        if want.lesion is not None:
            names[want.lesion] = result
    return matched
