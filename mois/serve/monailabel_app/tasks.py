"""The tasks that a client of MONAI Label can ask for. Each takes an opened image and the parameters of a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mois.serve.monailabel_app import reader
from mois.serve.monailabel_app.images import OpenImage
from mois.serve.monailabel_app.lesion_names import FIRST_NAMES, default_name
from mois.serve.monailabel_app.reader import Answer, LabelPoints

FIRST_LABELS = [default_name(number) for number in range(1, FIRST_NAMES + 1)]
"""Labels that a viewer offers before the first click."""


class Task(NamedTuple):
    """A task.

    Attributes:
        kind: Kind of the task in MONAI Label. It decides in which section of a viewer the task stands.
        labels: Labels in MONAI Label. A viewer runs the task by itself that has the first label.
        description: What the task does, for the reader.
        run: The task.
    """

    kind: str
    labels: list[str]
    description: str
    run: Callable[[OpenImage, Mapping[str, Any]], Answer]


def click(opened: OpenImage, params: Mapping[str, Any]) -> Answer:
    """Do the clicks of a label that are new, and return its lesion."""
    points = LabelPoints.read(params, opened.volume)
    return opened.do(lambda session, names: reader.click(session, names, points, opened.grid))


def propagate(opened: OpenImage, _params: Mapping[str, Any]) -> Answer:
    """Find all lesions like the exemplars. Clicks of any client are answered meanwhile."""
    opened.seat.propagate()
    return opened.ask(reader.show)


def reject(opened: OpenImage, params: Mapping[str, Any]) -> Answer:
    """Reject the lesion of a label, and find the others again."""
    opened.do(lambda session, names: reader.reject(session, names, params.get("label")))
    return propagate(opened, params)


def lesions(opened: OpenImage, _params: Mapping[str, Any]) -> Answer:
    """Return all lesions as they are."""
    return opened.ask(reader.show)


TASKS = {
    "click": Task(
        "deepgrow", [], "A lesion from clicks. Each label is a lesion; further clicks of the label correct it.", click
    ),
    "reject": Task(
        "deepedit",
        ["lesion"],
        "The chosen label is no lesion: it is removed, becomes a negative exemplar, and the others are found again.",
        reject,
    ),
    "propagate": Task("segmentation", [], "All lesions that look like those clicked.", propagate),
    "lesions": Task("segmentation", FIRST_LABELS, "All lesions as they are. Nothing is changed.", lesions),
}
