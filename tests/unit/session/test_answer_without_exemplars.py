"""A session asks the whole scan without exemplars only if the answer has a say, and then once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mois.inference import levels
from mois.inference.search import Search
from mois.interfaces import Backbone
from mois.records import Exemplars, Features, SemanticPrediction
from mois.session import InteractiveSession
from mois.session.models import model_on_scan
from tests.support.fake_model import FakePropagation
from tests.support.session_fakes import lps, make_model, three_lesions

SCAN = three_lesions()
PLACES = lps(SCAN, 2, 20, 20), lps(SCAN, 2, 40, 12)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tiles of each call without exemplars."""
    numbers: list[int] = []
    forward = FakePropagation.forward

    def noting(
        self: FakePropagation, features: Features, exemplars: Exemplars, backbone: Backbone
    ) -> SemanticPrediction:
        if exemplars.count == 0:
            numbers.append(len(features.image))
        return forward(self, features, exemplars, backbone)

    monkeypatch.setattr(FakePropagation, "forward", noting)
    return numbers


def _clicked() -> InteractiveSession:
    session = InteractiveSession(make_model(level="pooled"), SCAN)
    for place in PLACES:
        session.click(place)
    return session


def test_an_answer_that_has_a_say_is_asked_once(asked: list[int]) -> None:
    session = _clicked()
    session.propagate()
    tiles = session._bench.encoded.shown
    assert sum(asked) == tiles + len(PLACES)  # the lesions lie on tiles of their own
    session.undo()
    session.undo()
    session.click(PLACES[1])
    session.propagate()
    assert sum(asked) == tiles + len(PLACES)


def test_an_answer_without_a_say_is_asked_on_the_tiles_of_the_lesions_alone(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "FOUND", 1.1)
    session = _clicked()
    session.propagate()
    assert asked == [1] * len(PLACES)

    def always_asked(*given: object, pooled: bool, plain: list[bool]) -> Search:
        assert not pooled
        return Search(*given, plain=plain)  # type: ignore[arg-type]

    monkeypatch.setattr(model_on_scan, "Search", always_asked)
    other = _clicked()
    other.propagate()
    assert sum(asked) > session._bench.encoded.shown
    one, two = (each._bench.on_scan.answer(each.state) for each in (session, other))
    assert torch.equal(one.probability, two.probability)


def test_the_plain_answer_is_asked_where_it_is_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    plain_answer = FakePropagation.plain_answer

    def noting(self: FakePropagation, features: Features, exemplars: Exemplars) -> Tensor:
        asked.append(len(exemplars.valid))
        return plain_answer(self, features, exemplars)

    monkeypatch.setattr(FakePropagation, "plain_answer", noting)
    session = InteractiveSession(make_model(level="pooled"), SCAN)
    session.click(PLACES[0])
    session.propagate()
    assert asked == []  # no level is found for a single exemplar
    session.click(PLACES[1])
    session.propagate()
    tiles = session._bench.encoded.shown
    assert sum(asked) == tiles + len(PLACES)  # the lesions are asked without their own exemplars
    asked.clear()
    found = next(number for number, lesion in session.state.lesions.items() if lesion.origin == "found")
    session.reject(found)
    session.propagate()
    assert sum(asked) == tiles + len(PLACES)  # nothing for the exemplars with changed sides
