"""What a propagation says to questions on tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.propagation import LearnedMatching, Similarity
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
    for level in ("fixed", "pooled", "known"):
        segmenter = VolumeSegmenter(backbone.eval(), module.eval(), InferenceSettings(tile_px=64, level=level))  # type: ignore[arg-type]
        answers.append(segmenter.find(segmenter.encode(scan)).probability)
    assert all(torch.equal(answers[0], answer) for answer in answers[1:])
