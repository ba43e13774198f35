"""`inference.rejections: vetoes`: which exemplars are asked, which lesions are compared, and which answer is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mois.inference.lesion_maps import LesionMaps
from mois.machine.steps import finish
from mois.records import Exemplars
from mois.session import InteractiveSession
from mois.session.models import model_on_scan
from mois.session.models.model_on_scan import ModelOnScan
from mois.session.state import State
from tests.support.fake_model import BOXES, TYPE_A, TYPES, eight_lesions
from tests.support.session_fakes import key_of, lps, make_model

SCAN = eight_lesions()
OF_A = [place for place, kind in zip(BOXES, TYPES, strict=True) if kind == TYPE_A]
OF_B = [place for place, kind in zip(BOXES, TYPES, strict=True) if kind != TYPE_A]


def middle(place: tuple[slice, slice, slice]) -> tuple[float, float, float]:
    """Return the middle of a lesion of the scan, LPS mm."""
    slices, rows, columns = place
    return lps(SCAN, slices.start, rows.start + 4, columns.start + 4)


def clicked(lesions: int, **changes: object) -> InteractiveSession:
    """Return a session with vetoes in which some lesions of type A were clicked."""
    session = InteractiveSession(make_model(rejections="vetoes", **changes), SCAN)
    for place in OF_A[:lesions]:
        session.click(middle(place))
    return session


def rejected(session: InteractiveSession, place: tuple[slice, slice, slice]) -> int:
    """Click a lesion, and reject it; return its id."""
    number = session.click(middle(place))
    session.reject(number)
    return number


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[Exemplars]]:
    """Return a list to which every search adds its questions."""
    searches: list[list[Exemplars]] = []

    class Seen(model_on_scan.Search):
        def __init__(self, segmenter: Any, encoded: Any, questions: Any, **further: Any) -> None:
            super().__init__(segmenter, encoded, questions, **further)
            searches.append(list(questions))

    monkeypatch.setattr(model_on_scan, "Search", Seen)
    return searches


def test_a_rejected_lesion_takes_no_room_of_a_positive_exemplar(asked: list[list[Exemplars]]) -> None:
    session = clicked(3, most_exemplars=3)  # the propagation merges nothing, so it takes 3 exemplars
    before = session._bench.on_scan.answer(session.state)
    for place in OF_B[:2]:
        rejected(session, place)
    after = session._bench.on_scan.answer(session.state)
    assert after.probability is before.probability
    assert [len(questions) for questions in asked] == [1, 2]  # the positive exemplars are asked once
    assert [int(asked[-1][0].positive.sum()), int(asked[-1][0].present_negative.sum())] == [2, 1]  # 3 at most


def test_lesions_rejected_here_veto_before_those_of_a_bank(asked: list[list[Exemplars]]) -> None:
    session = clicked(1)
    number = rejected(session, OF_B[0])
    mine = session.state.exemplars[key_of(session, number)]
    of_bank = {
        f"other:{n}@1": replace(mine, key=f"other:{n}@1", tokens={"value": torch.tensor([n])}) for n in (5.0, 6.0)
    }
    state = replace(session.state, exemplars={**of_bank, **session.state.exemplars})
    session._bench.on_scan.answer(state)
    compared = asked[-1][0]
    values = compared.tokens["value"][0, compared.negative[0]].flatten().tolist()
    assert values == [mine.tokens["value"].item(), 5.0]


def test_the_order_of_rejecting_counts_and_not_that_of_clicking(asked: list[list[Exemplars]]) -> None:
    session = clicked(1)
    first_clicked = session.click(middle(OF_B[0]))
    others = [rejected(session, place) for place in OF_A[1:3]]
    session.reject(first_clicked)
    session.propagate()
    compared = asked[-1][0]
    values = compared.tokens["value"][0, compared.negative[0]].flatten().tolist()
    assert values == [session.state.exemplars[key_of(session, number)].tokens["value"].item() for number in others]


def test_an_answer_in_steps_is_not_mixed_with_one_asked_meanwhile() -> None:
    session = clicked(1)
    on_scan = session._bench.on_scan
    on_scan.answer(session.state)
    rejected(session, OF_A[1])
    state = session.state
    steps = on_scan.answer_steps(state)
    next(steps)  # the lesions to compare are being asked
    session.click(middle(OF_B[0]))
    session.propagate()
    session.undo()
    session.undo()
    assert session.state is state
    answer = finish(steps)
    assert torch.equal(answer.probability, fresh(session).answer(state).probability)
    assert on_scan.answer(state) is answer


def fresh(session: InteractiveSession) -> ModelOnScan:
    """Return the model of a session on its scan, with no answer kept."""
    on_scan = session._bench.on_scan
    return ModelOnScan(on_scan.model, SCAN, on_scan.scan)


def test_kept_answers_are_those_of_a_fresh_start() -> None:
    session = clicked(2, level="selective")

    def check() -> None:
        session.propagate()
        kept, anew = session._bench.on_scan.answer(session.state), fresh(session).answer(session.state)
        for mine, theirs in zip(kept, anew, strict=True):
            assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs

    check()
    number = rejected(session, OF_B[0])
    check()
    session.undo()  # the propagation
    session.undo()  # the rejection
    check()
    session.reject(number)
    session.remove(1)
    check()
    session.click(middle(OF_A[0]))
    check()
    session.reweigh(key_of(session, number), 0)
    check()
    session.reweigh(key_of(session, number), 2)
    session.forget(key_of(session, 2))
    check()


def test_the_answer_before_is_let_go_before_rejected_lesions_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[set[int]] = []

    class Seen(model_on_scan.Search):
        def __init__(self, *told: Any, **further: Any) -> None:
            super().__init__(*told, **further)
            kept.append({id(each[1].probability) for each in (on_scan._latest, on_scan._of_positive) if each})

    session = clicked(1)
    on_scan = session._bench.on_scan
    rejected(session, OF_B[0])
    session.propagate()
    session.click(middle(OF_A[1]))
    monkeypatch.setattr(model_on_scan, "Search", Seen)
    session.propagate()
    assert [len(each) for each in kept] == [1, 1]


def test_negative_exemplars_alone_veto_nothing() -> None:
    session = clicked(0)
    rejected(session, OF_B[0])
    answer: LesionMaps = session._bench.on_scan.answer(session.state)
    assert answer.margin is None
    other = InteractiveSession(make_model(), SCAN)
    rejected(other, OF_B[0])
    state: State = other.state
    assert torch.equal(answer.probability, other._bench.on_scan.answer(state).probability)


def test_an_exemplar_is_said_to_help_by_what_it_does_under_vetoes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Exemplars] = []
    session = clicked(2)
    rejected(session, OF_B[0])
    segmenter = session._bench.segmenter
    prepare = type(segmenter).prepare

    def seen(self: Any, questions: Any, **further: Any) -> Exemplars:
        asked.extend(questions)
        return prepare(self, questions, **further)

    monkeypatch.setattr(type(segmenter), "prepare", seen)
    effects = session.attribute()
    signs = [(int(each.positive.sum()), int(each.present_negative.sum())) for each in asked]
    assert signs[:4] == [(2, 0), (1, 0), (1, 0), (2, 0)]  # all, and each left out: the rejected lesion draws nothing
    assert signs[4:] == [(2, 1), (1, 1), (1, 1), (1, 2), (1, 1), (1, 1)]  # the veto, and the same with changed sides
    assert len(effects) == 3
    assert [each.effect for each in effects if each.negative] == [pytest.approx(0)]
