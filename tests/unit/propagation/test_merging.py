"""Many exemplars as few, for the same answer."""

from __future__ import annotations

import pytest
import torch

from mois.backbones import SAM2
from mois.propagation import Attention, Similarity
from mois.propagation.merging import merge_most_alike
from mois.records import Exemplars, Features
from mois.testing import example_patches, nano_backbone


def bank(looks: list[float], negative: list[bool], weight: list[float], valid: list[bool] | None = None) -> Exemplars:
    tokens = {"look": torch.tensor([looks]).unsqueeze(2)}
    flags = [torch.tensor([flag]) for flag in (valid or [True] * len(looks), negative, weight)]
    return Exemplars(tokens, *flags)


def merged(one: Exemplars, most: int) -> list[tuple[float, bool, float]]:
    few = merge_most_alike(one, one.tokens["look"], most)
    assert few.count == most
    rows = zip(few.tokens["look"][0, :, 0], few.negative[0], few.weight[0], few.valid[0], strict=True)
    return sorted((round(float(look), 4), bool(sign), float(weight)) for look, sign, weight, valid in rows if valid)


def test_the_most_alike_become_one_that_weighs_as_much_as_all_of_them() -> None:
    looks, weight = [0.0, 1.0, 9.0, 10.0, 5.0], [1.0, 3.0, 1.0, 1.0, 2.0]
    expected = [(0.75, False, 4.0), (5.0, False, 2.0), (9.5, False, 2.0)]
    assert merged(bank(looks, [False] * 5, weight), 3) == expected
    order = [3, 0, 4, 2, 1]
    shuffled = bank([looks[n] for n in order], [False] * 5, [weight[n] for n in order])
    assert merged(shuffled, 3) == expected


def test_what_is_not_to_be_found_is_never_merged_with_what_is() -> None:
    assert merged(bank([0.0, 0.1, 0.2, 50.0], [False, True, False, False], [1.0] * 4), 2) == [
        (0.1, True, 1.0),
        (pytest.approx(16.7333, abs=1e-3), False, 3.0),
    ]


def test_padding_and_weightless_exemplars_count_for_nothing() -> None:
    one = bank([1.0, 99.0, 2.0, 77.0], [False] * 4, [1.0, 1.0, 1.0, 0.0], [True, False, True, True])
    assert merged(one, 3) == [(1.0, False, 1.0), (2.0, False, 1.0)]


@pytest.fixture(scope="module")
def asked() -> tuple[SAM2, Similarity, Features, Exemplars]:
    backbone, propagation = nano_backbone(), Similarity()
    propagation.build(backbone)
    images, masks = example_patches(4, 64)
    with torch.inference_mode():
        features = backbone.encode(images)
        exemplars = propagation.describe(features, masks, backbone).reshape(1, 4)
    return backbone, propagation, features.select(slice(0, 1)), exemplars


def test_ten_of_each_are_answered_as_one_of_each(asked: tuple[SAM2, Similarity, Features, Exemplars]) -> None:
    backbone, propagation, query, exemplars = asked
    many = exemplars.each(lambda tensor: tensor.repeat_interleave(10, 1))
    with torch.inference_mode():
        few = propagation.condense(propagation.prepare(many), 4)
        assert few.count == 4
        assert float(few.weight.sum()) == 40
        plain, condensed = (propagation(query, some, backbone).logits for some in (many, few))
    assert torch.allclose(plain, condensed, atol=1e-3)


def test_few_stay_as_they_are_and_attention_keeps_all(asked: tuple[SAM2, Similarity, Features, Exemplars]) -> None:
    _, propagation, _, exemplars = asked
    with torch.inference_mode():
        prepared = propagation.prepare(exemplars)
    assert propagation.condense(prepared, 4) is prepared
    assert Attention().condense(exemplars, 2) is exemplars
