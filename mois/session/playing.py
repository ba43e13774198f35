"""Plays a prompt file in a session. Actions that are already done are compared; the other actions are done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mois.errors import told_where
from mois.geometry import SliceGrid
from mois.records import Volume
from mois.session.header import bank_name
from mois.session.interactive import InteractiveSession
from mois.session.journal import PROMPT_ACTIONS, Action
from mois.session.masks import checked_mask, pack_mask, same_masks, unpack_mask
from mois.session.points import VoxelPoint, mirrored, ras_suspected, stack_point, to_lps_mm
from mois.session.prompts.prompt_file import PromptEntry
from mois.sharing.bank import ExemplarBank
from mois.sharing.merged_banks import each_once


@dataclass(frozen=True)
class RequestedAction:
    """An action that a prompt file requests, with its arguments as in a journal.

    Attributes:
        where: What requests the action, such as "entry 2".
        name: Name of the action.
        arguments: All arguments except `lesion`, the id, which is not known yet.
        lesion: The user's name for the lesion, or None.
        type: Type of lesions that is the current one during the action.
    """

    where: str
    name: str
    arguments: Mapping[str, Any]
    lesion: str | None = None
    type: str = ""

    @property
    def words(self) -> str:
        """What is requested, in words, such as "entry 2 (click [10.0, 20.0, 30.0], lesion a)"."""
        points = self.arguments.get("point_lps_mm", self.arguments.get("corners_lps_mm"))
        what = self.name if points is None else f"{self.name} {points}"
        return f"{self.where} ({what})" if self.lesion is None else f"{self.where} ({what}, lesion {self.lesion})"


def requested_actions(
    entries: Sequence[PromptEntry], volume: Volume, bank: ExemplarBank | None = None, types: Sequence[str] = ("",)
) -> list[RequestedAction]:
    """Return the actions that a prompt file requests, once its points and masks are checked against the scan.

    Args:
        entries: Entries of the prompt file.
        volume: The scan.
        bank: Exemplar bank to begin with, or None. It is of the first type.
        types: Types of lesions that have a model. An entry without a type is for the first of them, or for the type of
            its lesion. A propagation without a type is done for each type that has prompts.

    Raises:
        ValueError: If an entry does not fit; the message names the entry.
    """
    shape = (volume.image.shape[0], volume.image.shape[1], volume.image.shape[2])
    grid = SliceGrid.of(shape, volume.affine)
    actions = []
    if bank is not None:
        name = bank_name(each_once(bank).bank)  # as `InteractiveSession.use_bank` names it
        actions.append(RequestedAction("the bank", "use_bank", {"bank": name}, type=types[0]))
    for entry in entries:
        where = f"entry {entry.number}" if entry.number else "the propagation at the end"
        with told_where(f"prompts, {where}"):
            arguments, kinds = _arguments(entry, volume, grid), _types_of(entry, actions, types)
            actions += [RequestedAction(where, entry.kind, arguments, entry.lesion, kind) for kind in kinds]
    return actions


def _types_of(entry: PromptEntry, before: Sequence[RequestedAction], types: Sequence[str]) -> list[str]:
    """Return the types for which an entry is; see `requested_actions`."""
    if entry.type is not None and entry.type not in types:
        known = ", ".join(name for name in types if name) or "none"
        raise ValueError(f"type={entry.type} has no bundle (there is {known}); give --bundle {entry.type}=DIR.")
    if entry.kind == "propagate" and entry.type is None:
        prompted = {action.type for action in before}
        return [name for name in types if name in prompted] or [types[0]]
    named = [action.type for action in before if entry.lesion is not None and action.lesion == entry.lesion]
    if named and entry.type not in (None, named[0]):
        raise ValueError(f"lesion {entry.lesion} has type={named[0]} already; choose another name.")
    return [entry.type if entry.type is not None else named[0] if named else types[0]]


def _arguments(entry: PromptEntry, volume: Volume, grid: SliceGrid) -> dict[str, Any]:
    """Return the arguments of an entry's action as in a journal, without the lesion."""
    if entry.kind == "click":
        return {"point_lps_mm": _checked_point(entry.given, volume, grid), "positive": entry.positive}
    if entry.kind in ("scribble", "lasso"):
        points = [_checked_point(point, volume, grid) for point in entry.given]
        return {"points_lps_mm": points, "positive": entry.positive}
    negative = {} if entry.positive else {"positive": False}
    if entry.kind == "box":
        return {"corners_lps_mm": [_checked_point(corner, volume, grid) for corner in entry.given], **negative}
    if entry.kind == "mask":
        return {"mask": pack_mask(checked_mask(entry.given, volume)), **negative}
    return {}


def _checked_point(given: Sequence[float] | VoxelPoint, volume: Volume, grid: SliceGrid) -> list[float]:
    """Return a point of a prompt file in LPS mm, once it is known to lie in the scan."""
    point = to_lps_mm(given, volume)
    stack_point(grid, point)
    return point


def ras_warnings(requested: Sequence[RequestedAction], volume: Volume) -> list[str]:
    """Return a warning for each positive click that lies in air, but would lie in the body if it was meant as RAS."""
    clicks = [action for action in requested if action.name == "click" and action.arguments["positive"]]
    return [
        f"{click.where}: {click.arguments['point_lps_mm']} (LPS mm) lies outside the body, its mirror image within it; "
        f'did you give RAS? Then write {{"ras": {mirrored(click.arguments["point_lps_mm"])}}}'
        for click in clicks
        if ras_suspected(click.arguments["point_lps_mm"], volume)
    ]


@dataclass(frozen=True)
class DoneActions:
    """The requested actions that a session has done already.

    Attributes:
        count: Number of requested actions that are done.
        names: The user's name of a lesion -> its id.
        kept: Propagations that the session did but the prompt file no longer requests, in words.
    """

    count: int
    names: Mapping[str, int]
    kept: Sequence[str]


def match(done: Sequence[Action], requested: Sequence[RequestedAction], out: Path, first_type: str = "") -> DoneActions:
    """Compare the actions of a session with the requested actions, argument by argument.

    A prompt file without a propagation ends with a propagation. If entries are appended to it later, the session has
    this propagation before the new entries, where the file has none. The propagation is kept.

    Args:
        done: Actions of the session.
        requested: Requested actions.
        out: Folder of the session, for messages.
        first_type: Type of lesions with which the session began.

    Raises:
        ValueError: If the session did something else.
    """
    count, names, kept, kind = 0, dict[str, int](), list[str](), first_type
    for action in done:
        if action.name == "use":
            kind = str(action.arguments["type"])
            continue
        wanted = requested[count] if count < len(requested) else None
        difference = _difference(action, kind, wanted, names)
        if wanted is not None and difference is None:
            count += 1
            if wanted.lesion is not None:
                names[wanted.lesion] = int(action.result)
        elif action.name == "propagate" and all(earlier.name != "propagate" for earlier in requested[:count]):
            kept.append(
                f"the propagation after {requested[count - 1].where}" if count else "the propagation at the start"
            )
        else:
            raise ValueError(f"out={out} holds a session with other prompts ({difference}); choose another folder.")
    return DoneActions(count, names, kept)


def _difference(action: Action, kind: str, request: RequestedAction | None, names: Mapping[str, int]) -> str | None:
    """Return in words how an action done for a type differs from a requested action; None if they are the same."""
    if request is None:
        return f"its action {action.number}, {action.name}, is not requested now"
    if action.name != request.name:
        return f"{request.where}: {action.name} there, {request.name} now"
    if kind != request.type:
        return f"{request.where}: for type={kind or 'none'} there, {request.type or 'none'} now"
    wanted = dict(request.arguments)
    if request.name in PROMPT_ACTIONS:
        wanted["lesion"] = names.get(request.lesion) if request.lesion is not None else None
    for key in {**action.arguments, **wanted}:
        usual = True if key == "positive" else None  # boxes and masks do not state it
        before, now = action.arguments.get(key, usual), wanted.get(key, usual)
        if key == "mask":
            if not same_masks(before, now):
                return f"{request.where}: another mask"
        elif before != now or type(before) is not type(now):
            long = {"bank": "another bank", "points_lps_mm": "other points"}
            apart = long[key] if key in long else f"{key}={_shown(key, before)} there, {_shown(key, now)} now"
            return f"{request.where}: {apart}"
    return None


def _shown(key: str, value: Any) -> str:
    return "a new one" if key == "lesion" and value is None else str(value)


def play(
    session: InteractiveSession,
    requested: Sequence[RequestedAction],
    out: Path,
    bank: ExemplarBank | None = None,
    tell: Callable[[str], None] | None = None,
) -> DoneActions:
    """Do the requested actions that the session has not done yet.

    Args:
        session: A new session, or a session that did the first of the actions.
        requested: Requested actions, in order.
        out: Folder of the session, for messages.
        bank: Bank of the action `use_bank`, or None.
        tell: Gets a line before each action, such as "2 of 4: click".

    Returns:
        The requested actions that were done before.

    Raises:
        ValueError: If the session did something else before, or an action cannot be done; the message names its entry.
    """
    done = match(session.actions, requested, out, session.types[0])
    names = dict(done.names)
    for number, request in enumerate(requested[done.count :], done.count + 1):
        if tell is not None:
            tell(f"{number} of {len(requested)}: {request.name}")
        lesion = names.get(request.lesion) if request.lesion is not None else None
        if session.state.type != request.type:
            session.use(request.type)
        if request.name == "use_bank" and bank is not None:
            session.use_bank(bank)
            continue
        with told_where(f"prompts, {request.words}"):
            result = _do(session, request.name, request.arguments, lesion)
        if request.lesion is not None:
            names[request.lesion] = result
    return done


def _do(session: InteractiveSession, name: str, given: Mapping[str, Any], lesion: int | None) -> int:
    """Do one action of a prompt file, and return its result."""
    positive = given.get("positive", True)
    if name == "click":
        return session.click(given["point_lps_mm"], lesion, positive)
    if name == "box":
        corner, opposite = given["corners_lps_mm"]
        return session.box(corner, opposite, lesion, positive)
    if name == "mask":
        shape = tuple(session.volume.image.shape)
        return session.mask(torch.from_numpy(unpack_mask(given["mask"], shape)), lesion, positive)
    if name == "scribble":
        return session.scribble(given["points_lps_mm"], lesion, positive)
    if name == "lasso":
        return session.lasso(given["points_lps_mm"], lesion, positive)
    return session.propagate()
