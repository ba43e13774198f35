"""What a reader does through MONAI Label, as actions of a session. Nothing here knows the server.

MONAI Label's clients know no session. Each request holds the name of a label and all its points so far, in voxels of
the file. An action here compares the request with the session, and does what is new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.errors import told_where
from mois.geometry import SliceGrid
from mois.records import Volume
from mois.serve.monailabel_app.lesion_names import LesionNames, checked_name
from mois.serve.refusals import all_or_nothing
from mois.session import InteractiveSession
from mois.session.points import VoxelPoint, mirrored, read_point, stack_point, to_lps_mm

MOST_POINTS = 1000
"""Largest number of points of one label in a request."""


@dataclass(frozen=True)
class Answer:
    """What a request gives back.

    Attributes:
        labels: Lesions on the scanner's grid, (I, J, K) int32, with the id of the lesion as value.
        affine: From voxel indices to RAS mm, (4, 4).
        params: Facts as JSON: `label_names` (name -> value), `lesions`, `suggestion`, `warnings`.
    """

    labels: Tensor
    affine: Tensor
    params: dict[str, Any]


@dataclass(frozen=True)
class LabelPoints:
    """The points of a label in a request.

    Attributes:
        name: Name of the label.
        foreground: Points in the lesion, LPS mm.
        background: Points that do not belong to the lesion, LPS mm.
    """

    name: str
    foreground: list[list[float]]
    background: list[list[float]]

    @classmethod
    def read(cls, params: Mapping[str, Any], volume: Volume) -> LabelPoints:
        """Read the points of a request.

        Args:
            params: The request: `label`, `foreground` and `background`. Points are [i, j, k] in voxels, in the axis
                order of the file, as the clients of MONAI Label send them.
            volume: The scan.

        Raises:
            ValueError: If there is no label, a point is none, or a point lies outside the scan.
        """
        name = checked_name(params.get("label"))
        points = []
        for kind in ("foreground", "background"):
            given = params.get(kind) or []
            if not isinstance(given, list) or len(given) > MOST_POINTS:
                raise ValueError(f"{kind} must be a list of up to {MOST_POINTS} points [i, j, k] in voxels.")
            places = []
            for number, point in enumerate(given, start=1):
                with told_where(f"{name}, point {number} of {kind}"):
                    places.append(to_lps_mm(_voxel(point), volume))
            points.append(places)
        return cls(name, *points)


def _voxel(given: Any) -> VoxelPoint:
    try:
        point = read_point({"voxel": given})
    except ValueError as error:
        raise ValueError(f"a point must be [i, j, k] in voxels of the scan, got {str(given)[:60]}.") from error
    return VoxelPoint(*point)


def click(session: InteractiveSession, names: LesionNames, points: LabelPoints, grid: SliceGrid) -> Answer:
    """Do the clicks of a label that are new, and return its lesion.

    Points of foreground come before points of background. If points were taken away, the lesion is drawn again from
    the points that are left. If a click is refused, the session stays as it was.

    Raises:
        ValueError: If a click cannot be done, as `InteractiveSession.click` says, with the number of its point; or if
            no point is left.
    """
    lesion = names.ids.get(points.name)
    done = [] if lesion is None else _done_clicks(session, lesion)
    wanted = [
        (_place(grid, point), kind == "foreground", point, f"{points.name}, point {number} of {kind}")
        for kind, given in (("foreground", points.foreground), ("background", points.background))
        for number, point in enumerate(given, start=1)
    ]
    kept = {(place, positive) for place, positive, *_ in wanted}
    with all_or_nothing(session):
        if lesion is not None and any(each not in kept for each in done):
            session.remove(lesion)
            lesion, done = None, []
        if lesion is None and not points.foreground:
            raise ValueError(f"{points.name} has no lesion yet; click a place inside the lesion first.")
        if lesion is None:
            _check_free(session, names, grid, points.foreground[0])
        for place, positive, point, where in wanted:
            if (place, positive) not in done:
                with told_where(where):
                    lesion = session.click(point, lesion, positive)
                done.append((place, positive))
    if lesion is not None:
        names.give(points.name, lesion)
    names.follow(session.state.lesions)
    if lesion is None:
        raise ValueError(f"{points.name} has no lesion; click a place inside the lesion first.")
    labels = session.label_map()
    return Answer(
        torch.where(labels == lesion, labels, 0),
        session.volume.affine,
        {"label_names": {points.name: lesion}, "lesions": _rows(session, names, only=lesion)},
    )


def _check_free(
    session: InteractiveSession, names: LesionNames, grid: SliceGrid, point_lps_mm: Sequence[float]
) -> None:
    """Refuse the first click of a label in a lesion of another label, unless that lesion was only found."""
    at = stack_point(grid, point_lps_mm).voxel
    for number, lesion in session.state.lesions.items():
        if lesion.owns and lesion.mask.on_slice(at[0], grid.stack_shape[1:])[at[1:]]:
            raise ValueError(f"this place belongs to {names.of(number)}; choose that label to correct it.")


def _done_clicks(session: InteractiveSession, lesion: int) -> list[tuple[tuple[float, float, float], bool]]:
    """Return the clicks of a lesion: slice, row and column, and whether each is positive."""
    prompts = session.state.lesions[lesion].prompts
    return [
        ((float(prompt.slice_index), *prompt.points[0]), prompt.positive)
        for prompt in prompts
        if prompt.kind == "click"
    ]


def _place(grid: SliceGrid, point_lps_mm: Sequence[float]) -> tuple[float, float, float]:
    """Return slice, row and column of a point, as a session stores them in a click."""
    place = stack_point(grid, point_lps_mm)
    return float(place.slice_index), place.row, place.column


def reject(session: InteractiveSession, names: LesionNames, name: object) -> None:
    """Reject the lesion of a label. It becomes a negative exemplar, and nothing is found at its place again.

    Raises:
        ValueError: If the label has no lesion.
    """
    wanted = checked_name(name)
    if wanted not in names.ids:
        known = ", ".join(names.ids) or "none yet"
        raise ValueError(f"label={wanted}: has no lesion to reject; lesions: {known[:200]}.")
    session.reject(names.ids[wanted])
    names.rejected.append(wanted)


def show(session: InteractiveSession, names: LesionNames) -> Answer:
    """Return all lesions as they are. `label_names` is in the order of the values, as 3D Slicer reads it."""
    names.follow(session.state.lesions)
    suggested = session.suggest(1) if session.state.propagated else []
    params: dict[str, Any] = {
        "label_names": dict(sorted(names.ids.items(), key=lambda item: item[1])),
        "lesions": _rows(session, names),
        "warnings": session.warnings() if session.state.propagated else [],
    }
    if suggested:
        best = suggested[0]
        params["suggestion"] = {
            "voxel": _voxel_of(best.point_lps_mm, session.volume.affine),
            "label": None if best.lesion is None else names.of(best.lesion),
            "benefit": best.benefit,
            "reason": best.reason,
        }
    return Answer(session.label_map(), session.volume.affine, params)


def _rows(session: InteractiveSession, names: LesionNames, only: int | None = None) -> list[dict[str, Any]]:
    return [
        {
            "label": names.of(row.id),
            "value": row.id,
            "volume_ml": row.volume_ml,
            "confidence": row.confidence,
            "origin": row.origin,
            "status": row.status,
            "voxel": _voxel_of((row.x_lps_mm, row.y_lps_mm, row.z_lps_mm), session.volume.affine),
        }
        for row in session.lesions()
        if only in (None, row.id)
    ]


def _voxel_of(point_lps_mm: Sequence[float], affine: Tensor) -> list[int]:
    """Return the voxel that holds a point."""
    ras = torch.tensor([*mirrored(point_lps_mm), 1.0], dtype=torch.float64)
    voxel: list[int] = (torch.linalg.inv(affine.double()) @ ras)[:3].round().long().tolist()
    return voxel


@dataclass(frozen=True)
class Accepted:
    """What a saved label did to the session.

    Attributes:
        accepted: Names of the lesions that are accepted now.
        left_out: Names in the label of lesions that the reader had rejected.
        open: Names of the lesions that the label does not hold. They stay as they were.
    """

    accepted: list[str]
    left_out: list[str]
    open: list[str]


def accept(
    session: InteractiveSession,
    names: LesionNames,
    labels: npt.NDArray[np.int32],
    given_names: Mapping[int, str] | None = None,
) -> Accepted:
    """Accept the lesions of a saved label. A lesion that the reader drew otherwise takes the voxels of the label.

    Args:
        session: Session on the scan.
        names: Names of its lesions.
        labels: The label on the grid of the scan, (I, J, K). Each value above 0 is a lesion.
        given_names: Value in the label -> name of the lesion. None: the values are ids of the session.

    Raises:
        ValueError: If a lesion cannot be changed, as `InteractiveSession.mask` says.
    """
    current = session.label_map().numpy()
    accepted, left_out = [], []
    for value in np.unique(labels[labels > 0]).tolist():
        name = _name_of(value, names, given_names)
        if name in names.rejected:
            left_out.append(name)
            continue
        lesion = names.ids.get(name)
        drawn = labels == value
        if lesion is None or not np.array_equal(drawn, current == lesion):
            if lesion is not None and session.state.lesions[lesion].locked:
                session.unlock(lesion)
            with told_where(name):
                lesion = _as_drawn(session, drawn, lesion)
            names.give(name, lesion)
        if not session.state.lesions[lesion].accepted:
            session.accept(lesion)
        accepted.append(name)
    names.follow(session.state.lesions)
    return Accepted(accepted, left_out, [name for name in names.ids if name not in accepted])


def _as_drawn(session: InteractiveSession, drawn: npt.NDArray[np.bool_], lesion: int | None) -> int:
    """Give a lesion the voxels that the reader drew, and return its id. Nothing is tracked from a mask on one slice."""
    lesion = session.mask(drawn, lesion)
    beyond = (session.label_map().numpy() == lesion) & ~drawn
    if beyond.any():
        session.mask(beyond, lesion, positive=False)
    return lesion


def _name_of(value: int, names: LesionNames, given_names: Mapping[int, str] | None) -> str:
    """Return the name of a value in a saved label."""
    if given_names is not None and value in given_names:
        return checked_name(given_names[value])
    return next((name for name, number in names.ids.items() if number == value), f"label {value}")


def names_of_values(label_info: Any) -> dict[int, str] | None:
    """Return value -> name of a label as 3D Slicer describes it; None if nothing is described.

    Args:
        label_info: List of {"name": name, "idx": value}.

    Raises:
        ValueError: If it is another thing.
    """
    if not label_info:
        return None
    try:
        return {int(each["idx"]): checked_name(each["name"]) for each in label_info}
    except (TypeError, KeyError) as error:
        raise ValueError('label_info must be a list such as [{"name": "lesion 1", "idx": 1}].') from error


def accepted_lesions(session: InteractiveSession) -> npt.NDArray[np.int32]:
    """Return the accepted lesions, (I, J, K), with the id of the lesion as value."""
    labels: npt.NDArray[np.int32] = session.label_map().numpy()
    accepted = [number for number, lesion in session.state.lesions.items() if lesion.accepted]
    return np.where(np.isin(labels, accepted), labels, 0).astype(np.int32)
