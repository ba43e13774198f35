"""The answer without exemplars never changes for a scan and a model: it is asked once, and kept bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mois.inference.encoded_volume import EncodedVolume
from mois.inference.feature_store import FeatureBudget, FeatureStore
from mois.inference.lesion_maps import LesionMaps
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.propagation import LearnedMatching, Similarity
from mois.records import Exemplars, Features, SemanticPrediction
from mois.testing import nano_backbone
from tests.support.fake_model import make_scan


def _noting(kind: type) -> type:
    """Return a kind of propagation that notes how many tiles are asked with and without exemplars."""

    class Noting(kind):  # type: ignore[misc]
        def forward(self, features: Features, exemplars: Exemplars, backbone: object) -> SemanticPrediction:
            asked = self.__dict__.setdefault("asked", {True: 0, False: 0})
            asked[bool(exemplars.present.any())] += len(features.image)
            answer: SemanticPrediction = super().forward(features, exemplars, backbone)
            return answer

    return Noting


def _segmenter(kind: type = LearnedMatching, **settings: object) -> VolumeSegmenter:
    torch.manual_seed(0)
    backbone, module = nano_backbone(), _noting(kind)()
    module.build(backbone)
    return VolumeSegmenter(
        backbone.eval(),
        module.eval(),
        InferenceSettings(tile_px=64, level="pooled", **settings),  # type: ignore[arg-type]
    )


def _exemplars(segmenter: VolumeSegmenter, encoded: EncodedVolume, *slices: int) -> Exemplars:
    outline = torch.zeros(encoded.pictures.shape[1:], dtype=torch.bool)
    outline[10:20, 10:20] = True
    return segmenter.exemplars(encoded, [(index, outline.roll(4 * index, 0)) for index in slices])


def _asked(segmenter: VolumeSegmenter) -> dict[bool, int]:
    """Return and forget how many tiles were asked with (True) and without exemplars."""
    return dict(segmenter.propagation.__dict__.pop("asked"))


def _same(one: LesionMaps, other: LesionMaps) -> bool:
    return all(
        a is b is None or (isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b))
        for a, b in zip(one[:4], other[:4], strict=True)
    )


@pytest.mark.parametrize("kind", [LearnedMatching, Similarity])
@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
def test_a_second_propagation_asks_nothing_without_exemplars_and_answers_as_a_first(
    kind: type, memory_gib: float
) -> None:
    segmenter = _segmenter(kind, memory_gib=memory_gib)
    encoded = segmenter.encode(make_scan([]))
    one, two = (_exemplars(segmenter, encoded, *slices) for slices in ((0,), (0, 1)))
    segmenter.find(encoded, one)
    assert _asked(segmenter) == {True: encoded.shown, False: encoded.shown}
    again = segmenter.find(encoded, two)
    assert _asked(segmenter) == {True: encoded.shown, False: 0}
    assert again.alone is not None
    assert _same(again, segmenter.find(segmenter.encode(make_scan([])), two))


def test_a_question_without_exemplars_among_others_is_asked_once() -> None:
    segmenter = _segmenter()
    encoded = segmenter.encode(make_scan([]))
    questions = [segmenter.no_exemplars(encoded), _exemplars(segmenter, encoded, 0), segmenter.no_exemplars(encoded)]
    nothing, found, nothing_too = segmenter.find_all(encoded, questions)
    assert _asked(segmenter) == {True: encoded.shown, False: encoded.shown}
    assert _same(nothing, nothing_too)
    assert found.alone is not None
    assert torch.allclose(found.alone.float(), nothing.probability, atol=1e-3)  # float16
    fixed = _segmenter()
    assert _same(nothing, fixed.find(fixed.encode(make_scan([]))))


def test_the_tile_of_an_outlined_lesion_is_asked_without_exemplars_once() -> None:
    segmenter = _segmenter()
    encoded = segmenter.encode(make_scan([]))
    prepared = segmenter.prepare([_exemplars(segmenter, encoded, 0)])
    first = segmenter.opinions(encoded, np.array([2]), prepared)
    assert _asked(segmenter) == {True: 1, False: 1}
    again = segmenter.opinions(encoded, np.array([2, 1]), prepared)
    assert _asked(segmenter) == {True: 2, False: 1}
    assert first.alone is not None
    assert again.alone is not None
    assert torch.equal(first.alone[0], again.alone[0])
    segmenter.ask(encoded, np.array([0]), prepared)
    assert _asked(segmenter) == {True: 1, False: 0}  # one question, one answer


def test_two_models_on_a_scan_keep_their_own_answers() -> None:
    one, other = _segmenter(LearnedMatching), _segmenter(Similarity)
    encoded = one.encode(make_scan([]))
    answers = [each.find(encoded, _exemplars(each, encoded, 0)).alone for each in (one, other)]
    assert answers[0] is not None
    assert answers[1] is not None
    assert not torch.equal(*answers)  # type: ignore[arg-type]


def test_kept_answers_take_room_of_the_budget_and_survive_in_the_file() -> None:
    def encode(images: Tensor) -> Features:
        level = images.unsqueeze(1)
        return Features((level,), level, level)

    def store(budget: FeatureBudget) -> FeatureStore:
        return FeatureStore(encode, torch.device("cpu"), torch.float16, budget)

    budget = FeatureBudget(1100 / (1 << 30))
    first = store(budget)
    answer = torch.rand(5, 10, 10).half()  # 1000 bytes
    first.keep("alone", answer)
    assert first.kept_bytes == 1000
    second = store(budget)
    second.put(np.arange(1), torch.ones(1, 8, 8))  # 128 bytes more than there is room for
    assert (first.kept_bytes, second.kept_bytes) == (0, 128)
    kept = first.answer("alone")
    assert kept is not None
    assert torch.equal(kept, answer)
    assert first.answer("another") is None
