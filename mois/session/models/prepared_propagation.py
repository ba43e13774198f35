"""A propagation that is computed in steps, before the action: actions of the reader go in between."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator

from mois.session.models.typed_workbench import TypedWorkbench
from mois.session.state import State


def prepare_propagation(types: TypedWorkbench, current: Callable[[], State]) -> Iterator[float]:
    """Compute the next propagation, and yield the share of it that is done after each step.

    - An action between two steps changes the exemplars, or the type -> the steps end early. Nothing is prepared.
    - It changes anything else -> the answer of the model still holds. Its lesions are taken from it anew.

    Args:
        types: The workbenches of the session.
        current: Returns the current state of the session.
    """
    begun, share = current(), 0.0
    for step in types.answer_steps(begun):
        share = share if step is None else step
        yield share
        if not _same_question(begun, current()):
            return
    while not types.is_prepared(state := current()):
        for _ in types.propagation_steps(state):
            yield share
            if not _same_question(begun, current()):
                return
            if current() is not state:
                break


def _same_question(before: State, now: State) -> bool:
    """Return whether a propagation asks for the same: like the same exemplars of the same type."""
    known, given = (list(state.of_type(state.type).exemplars.values()) for state in (before, now))
    return before.type == now.type and len(known) == len(given) and all(map(operator.is_, known, given))
