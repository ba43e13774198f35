"""What a propagation says to questions on tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mois.filters import filter_bank
from mois.inference.encoded_volume import EncodedVolume
from mois.inference.search import Search
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.propagation import LearnedMatching, Similarity, learned_matching
from mois.records import Exemplars, Features
from mois.testing import nano_backbone
from tests.support.fake_model import make_scan


@pytest.mark.parametrize("propagation", [LearnedMatching, Similarity])
def test_pooled_questions_keep_their_answers_and_get_the_one_without_exemplars(propagation: type) -> None:
    torch.manual_seed(0)
    backbone, module = nano_backbone(), propagation()
    module.build(backbone)
    of = {
        level: VolumeSegmenter(backbone.eval(), module.eval(), InferenceSettings(tile_px=64, level=level))  # type: ignore[arg-type]
        for level in ("mixed", "pooled")
    }
    encoded = of["mixed"].encode(make_scan([]))
    outline = torch.zeros(encoded.pictures.shape[1:], dtype=torch.bool)
    outline[10:20, 10:20] = True
    questions = [
        of["mixed"].exemplars(encoded, [(1, outline)]),
        of["mixed"].exemplars(encoded, [(0, outline), (1, outline.roll(8, 0))]),
    ]
    rows = np.arange(2)
    mixed, pooled = (of[level].opinions(encoded, rows, of[level].prepare(questions)) for level in ("mixed", "pooled"))
    nothing = of["mixed"].ask(encoded, rows, of["mixed"].prepare([of["mixed"].no_exemplars(encoded)]))
    assert mixed.alone is None
    assert pooled.alone is not None
    assert torch.allclose(pooled.alone, nothing.expand_as(pooled.alone), atol=1e-5)
    for name in ("probability", "cores", "plain"):
        before, now = getattr(mixed, name), getattr(pooled, name)
        assert (before is None) == (now is None)
        assert before is None or torch.allclose(before, now, atol=1e-5)


def test_a_question_without_exemplars_is_answered_as_ever() -> None:
    torch.manual_seed(0)
    backbone, module = nano_backbone(), LearnedMatching()
    module.build(backbone)
    scan = make_scan([])
    answers = []
    for level in ("fixed", "pooled", "known", "cautious", "selective", "moderate"):
        segmenter = VolumeSegmenter(backbone.eval(), module.eval(), InferenceSettings(tile_px=64, level=level))  # type: ignore[arg-type]
        answers.append(segmenter.find(segmenter.encode(scan)).probability)
    assert all(torch.equal(answers[0], answer) for answer in answers[1:])


def _asked_of_three_questions() -> tuple[VolumeSegmenter, EncodedVolume, list[Exemplars]]:
    torch.manual_seed(0)
    backbone, module = nano_backbone(), LearnedMatching()
    module.build(backbone)
    segmenter = VolumeSegmenter(backbone.eval(), module.eval(), InferenceSettings(tile_px=64, level="mixed"))
    encoded = segmenter.encode(make_scan([]))
    outline = torch.zeros(encoded.pictures.shape[1:], dtype=torch.bool)
    outline[10:20, 10:20] = True
    items = [(index, outline.roll(6 * index, 0)) for index in range(3)]
    questions = [segmenter.exemplars(encoded, items[:count]) for count in (1, 2, 3)]
    return segmenter, encoded, [questions[0], segmenter.no_exemplars(encoded), *questions[1:]]


def test_a_plain_answer_that_nobody_reads_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, encoded, questions = _asked_of_three_questions()
    every = segmenter.find_all(encoded, questions)
    asked: list[int] = []
    plain_answer = LearnedMatching.plain_answer

    def noting(self: LearnedMatching, features: Features, exemplars: Exemplars) -> Tensor | None:
        asked.append(len(exemplars.valid) // len(features.image))
        return plain_answer(self, features, exemplars)

    monkeypatch.setattr(LearnedMatching, "plain_answer", noting)
    some = Search(segmenter, encoded, questions, plain=[False, True, False, True]).whole()
    assert set(asked) == {1}  # of the three questions with exemplars
    assert [maps.plain is None for maps in some] == [True, True, True, False]
    assert [maps.plain is None for maps in every] == [False, True, False, False]
    for one, other in zip(every, some, strict=True):
        assert torch.equal(one.probability, other.probability)
    assert some[3].plain is not None
    assert every[3].plain is not None
    assert torch.equal(every[3].plain, some[3].plain)
    asked.clear()
    Search(segmenter, encoded, questions, plain=[False] * 4).whole()
    segmenter.ask(encoded, np.arange(2), segmenter.prepare(questions))
    assert asked == []


def test_the_filters_of_a_tile_are_computed_once_for_both_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, encoded, questions = _asked_of_three_questions()
    filtered: list[int] = []

    def noting(image: Tensor) -> Tensor:
        filtered.append(len(image))
        return filter_bank(image)

    prepared = segmenter.prepare(questions[2:])
    monkeypatch.setattr(learned_matching, "filter_bank", noting)
    answers = segmenter.tile_answers(encoded, np.arange(2), prepared, prepared)
    assert filtered == [2]
    features, asked = encoded.select(np.arange(2)), prepared.each(lambda part: torch.cat([part, part]))
    apart = segmenter.propagation.plain_answer(features, asked)
    assert apart is not None
    assert answers.plain is not None
    assert torch.equal(answers.plain.flatten(0, 1), apart.float().sigmoid())
    expected = segmenter.propagation(features, asked, segmenter.backbone).logits.float().sigmoid()
    assert torch.equal(answers.probability.flatten(0, 1), expected)
