"""A propagation in steps gives the voxels of a propagation in one, whatever the reader does between two steps."""

from collections.abc import Callable

import pytest
import torch

from mois.machine import steps as work
from mois.session import InteractiveSession
from tests.support.session_fakes import lps, make_model, three_lesions

SCAN = three_lesions()
PLACE, OTHER_PLACE = lps(SCAN, 2, 20, 20), lps(SCAN, 2, 40, 12)


def forget_and_undo(session: InteractiveSession) -> None:
    session.forget(next(iter(session.state.exemplars)))
    session.undo()


ACTIONS: dict[str, Callable[[InteractiveSession], object]] = {
    "nothing": lambda _: None,
    "click": lambda s: s.click(OTHER_PLACE),
    "undo": lambda s: s.undo(),
    "undo and redo": lambda s: (s.undo(), s.redo()),
    "forget and undo": forget_and_undo,
    "reject": lambda s: s.reject(1),
    "accept": lambda s: s.accept(1),
    "lock": lambda s: s.lock(1),
    "remove": lambda s: s.remove(1),
    "propagate": lambda s: s.propagate(),
}


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(work, "STEP_VOXELS", 1)  # one slice


def clicked() -> InteractiveSession:
    session = InteractiveSession(make_model(), SCAN)
    session.click(PLACE)
    return session


def prepare(session: InteractiveSession) -> None:
    while not session.is_prepared:
        for _ in session.prepare_propagation():
            pass


def as_one(session: InteractiveSession) -> InteractiveSession:
    """The same actions, each in one step."""
    plain = InteractiveSession(make_model(), SCAN)
    for action in session.actions:
        plain._act(action.name, **action.arguments)
    return plain


def test_steps_are_many_and_their_share_grows():
    shares = list(clicked().prepare_propagation())
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert sum(share == 1.0 for share in shares) >= 8  # the level, lesions cut apart and described


@pytest.mark.parametrize("name", ACTIONS)
def test_an_action_between_any_two_steps_counts(name):
    count = len(list(clicked().prepare_propagation()))
    for step in (0, 1, count // 2, *range(count - 15, count)):  # tiles, then all steps after them
        session = clicked()
        steps = session.prepare_propagation()
        for _ in range(step + 1):
            next(steps)
        ACTIONS[name](session)
        list(steps)
        prepare(session)
        session._bench.on_scan.segmenter.propagation.forward = None  # all is found
        session.propagate()
        plain = as_one(session)
        assert torch.equal(session.label_map(), plain.label_map())
        assert session.lesions() == plain.lesions()
        assert session.state.unsure == plain.state.unsure


def test_an_action_that_keeps_the_exemplars_does_not_begin_the_search_again(monkeypatch):
    session = clicked()
    steps = session.prepare_propagation()
    for share in steps:
        if share == 1.0:
            break
    monkeypatch.setattr(session._bench.segmenter.propagation, "forward", None)
    session.lock(1)
    list(steps)
    assert session.is_prepared


def test_a_change_of_the_type_alone_ends_the_steps():
    session = InteractiveSession(make_model(), SCAN)
    session.use("other", make_model())
    steps = session.prepare_propagation()
    next(steps)
    session.use("")  # neither type has an exemplar
    assert list(steps) == []
    assert not session.is_prepared


def test_a_prepared_propagation_is_of_its_state_alone():
    session = clicked()
    prepare(session)
    session.lock(1)
    assert not session.is_prepared
    session.undo()
    assert session.is_prepared
    session.propagate()
    assert not session.is_prepared
