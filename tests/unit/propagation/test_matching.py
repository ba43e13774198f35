"""Matching: filters, tokens, the kernel mean, and what is found by it without training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mois.filters import FILTERS, SIGMAS_PX, filter_bank
from mois.interfaces import Propagation
from mois.propagation import LearnedMatching, Matching
from mois.propagation.exemplar_tokens import (
    CORE,
    FAR,
    NEAR,
    RIM,
    TOKENS,
    ZONE_TOKENS,
    ZONE_WEIGHT,
    Scale,
    TokenSet,
    _kept,
    kernel_log_odds,
    take_tokens,
    zones_of_tokens,
)
from mois.propagation.kernel import NEVER, kernel_mean
from mois.propagation.weights import save_propagation
from mois.records import Exemplars
from mois.testing import nano_backbone

EDGE = 128
FIRST_IMAGE = torch.tensor([0])


def disc(row: float, column: float, radius: float) -> Tensor:
    """Return a disc (P, P), 0 or 1."""
    line = torch.arange(EDGE, dtype=torch.float32)
    return ((line[:, None] - row).square() + (line[None] - column).square() <= radius**2).float()


def test_the_kernel_mean_is_the_weighted_mean_of_all_values() -> None:
    chance = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(2, 3, count, 5, generator=chance) for count in (7, 11))
    values, counts = torch.rand(2, 3, 11, 4, generator=chance), torch.rand(2, 3, 11, generator=chance)
    counts[..., 0] = NEVER
    distance = (queries.unsqueeze(3) - keys.unsqueeze(2)).square().sum(-1)  # (B, H, n, L)
    kernel = (counts.unsqueeze(2) - distance).exp()
    expected = (kernel.unsqueeze(-1) * values.unsqueeze(2)).sum(3) / kernel.sum(3, keepdim=True)
    assert torch.allclose(kernel_mean(queries, keys, counts, values), expected, atol=1e-5)
    without = kernel_mean(queries, keys[:, :, 1:], counts[..., 1:], values[:, :, 1:])
    assert torch.allclose(without, expected, atol=1e-5)


def test_filters_of_a_flat_image_are_its_intensity_and_nothing_else() -> None:
    answers = filter_bank(torch.full((1, 1, EDGE, EDGE), 0.7)).view(len(SIGMAS_PX), 5, EDGE // 2, EDGE // 2)
    assert answers[:, 0] == pytest.approx(0.7 * torch.ones_like(answers[:, 0]), abs=1e-5)
    assert float(answers[:, 1:].abs().amax()) < 1e-4


def test_filters_of_a_wave_are_its_derivatives_times_the_scale() -> None:
    period_px = 64.0
    line = torch.arange(EDGE, dtype=torch.float32)
    wave = torch.sin(2 * math.pi * (line + 0.5) / period_px).expand(1, 1, EDGE, EDGE)
    answers = filter_bank(wave).view(len(SIGMAS_PX), 5, EDGE // 2, EDGE // 2)
    place = torch.arange(EDGE // 2, dtype=torch.float32) * 2 + 1
    rate = 2 * math.pi / period_px
    for sigma_px, (level, gradient, laplacian, larger, smaller) in zip(SIGMAS_PX, answers, strict=True):
        faded = math.exp(-0.5 * (rate * sigma_px) ** 2)
        sine, cosine = torch.sin(rate * place) * faded, torch.cos(rate * place) * faded
        inner = slice(14, -14)
        expected = (sine, (rate * sigma_px * cosine).abs(), -((rate * sigma_px) ** 2) * sine)
        for got, wanted in zip((level, gradient, laplacian), expected, strict=True):
            assert got[32, inner] == pytest.approx(wanted[inner], abs=0.02)
        assert torch.allclose(larger + smaller, laplacian, atol=1e-5)
        assert bool((larger >= smaller).all())


def test_filters_turn_with_the_image() -> None:
    image = torch.rand(1, 1, EDGE, EDGE, generator=torch.Generator().manual_seed(0))
    turned = filter_bank(image.rot90(1, (2, 3)))
    assert torch.allclose(turned, filter_bank(image).rot90(1, (2, 3)), atol=1e-4)


def test_tokens_lie_in_their_zones() -> None:
    mask = disc(64, 64, 12)
    cells = torch.arange(64 * 64, dtype=torch.float32).view(1, 1, 64, 64) / 64  # exact in half precision
    taken = take_tokens(cells, torch.ones(1, 1, EDGE, EDGE), FIRST_IMAGE, mask.unsqueeze(0))
    place = (taken.tokens["features"][0, 0, :, 0] * 64).round().long()
    away = ((place // 64 - 31.5).square() + (place % 64 - 31.5).square()).sqrt()
    inside = taken.tokens["inside"][0, 0]
    zone = zones_of_tokens(mask.device)
    assert float(away[zone == CORE].max()) < 6
    assert bool((inside[zone == CORE] == 1).all())
    assert float(away[zone == RIM].min()) > 4
    assert float(away[zone == RIM].max()) < 9
    assert float(away[zone == NEAR].min()) > 6
    assert bool((inside[zone == NEAR] == 0).all())
    assert float(away[zone == FAR].min()) > 11
    assert float(away[zone == FAR].max()) > 30
    for one, number in ZONE_TOKENS.items():
        assert int((zone == one).sum()) == number
        assert float(taken.tokens["weight"][0, 0, zone == one].sum()) == pytest.approx(ZONE_WEIGHT[one], abs=1e-2)


@pytest.mark.parametrize("radius", [0.4, 1.0, 2.0])
def test_a_lesion_smaller_than_a_cell_has_tokens_inside(radius: float) -> None:
    mask = disc(64, 64, radius).unsqueeze(0)
    taken = take_tokens(torch.zeros(1, 4, 64, 64), torch.ones(1, 1, EDGE, EDGE), FIRST_IMAGE, mask)
    counts = taken.tokens["weight"].float() * taken.tokens["inside"].float()
    assert bool(taken.valid)
    assert float(counts.sum()) > 0


def test_air_is_no_further_tissue() -> None:
    image = torch.zeros(1, 1, EDGE, EDGE)
    image[..., 40:90, 40:90] = 1
    cells = torch.nn.functional.avg_pool2d(image, 2)
    taken = take_tokens(cells, image, FIRST_IMAGE, disc(64, 64, 4).unsqueeze(0))
    far = zones_of_tokens(image.device) == FAR
    assert bool((taken.tokens["features"][0, 0, far, 0] > 0).all())


def test_tokens_that_do_not_count_change_no_scale() -> None:
    chance = torch.Generator().manual_seed(0)
    tokens = TokenSet(
        torch.randn(1, 6, 3, generator=chance),
        torch.ones(1, 6),
        torch.zeros(6, dtype=torch.long),
        torch.zeros(1, 6, dtype=torch.bool),
        torch.tensor([[1.0, 2.0, 1.0, 0.0, 1.0, 0.0]]),
    )
    scale = Scale.of(tokens)
    kept = torch.cat([tokens.features[0, [0, 1, 1, 2, 4]]])
    assert scale.mean[0, 0] == pytest.approx(kept.mean(0), abs=1e-5)
    assert scale.deviation[0, 0] == pytest.approx(kept.std(0, correction=0), abs=1e-5)


def _tokens_of(count: int) -> Exemplars:
    """Return K equal exemplars whose features are the number of their slot."""
    features = torch.arange(TOKENS, dtype=torch.float16).view(1, 1, TOKENS, 1).expand(1, count, -1, 2)
    ones = torch.ones(1, count, TOKENS, dtype=torch.float16)
    valid = torch.ones(1, count, dtype=torch.bool)
    return Exemplars({"features": features, "inside": ones, "weight": ones}, valid, torch.zeros_like(valid))


@pytest.mark.parametrize(
    ("count", "kept"),
    [(1, 120), (2, 240), (5, 200), (24, 240), (42, 252), (43, 172), (64, 256), (100, 200), (300, 240)],
)
def test_every_zone_keeps_its_weight_whatever_the_number_of_exemplars(count: int, kept: int) -> None:
    tokens = TokenSet.of(_tokens_of(count), most=256)
    assert int((tokens.weight > 0).sum()) == kept
    for zone, number in ZONE_TOKENS.items():
        share = float(tokens.weight[tokens.zone == zone].sum() / tokens.weight.sum())
        assert share == pytest.approx(number / TOKENS, rel=1e-5 if count < 3 or count > 42 else 0.5)
        assert bool((zones_of_tokens(tokens.zone.device)[tokens.features[..., 0].long()] == tokens.zone).all())


def test_which_tokens_of_many_exemplars_are_kept_does_not_depend_on_their_order() -> None:
    same = _tokens_of(100)
    each = same.map(same.tokens | {"features": same.tokens["features"] + torch.arange(100).view(1, -1, 1, 1).half()})
    turned = each.pick(torch.randperm(100, generator=torch.Generator().manual_seed(0)))
    both = [TokenSet.of(some, most=256) for some in (each, turned)]
    one, other = (tokens.features[tokens.weight > 0][:, 0].sort().values for tokens in both)
    assert one.equal(other)


def test_padding_and_weightless_exemplars_take_no_room_among_the_tokens() -> None:
    alone, many = TokenSet.of(_tokens_of(2), most=256), _tokens_of(24)
    absent = torch.arange(24) < 22
    for some in (many.map(valid=~absent[None]), many.map(weight=(~absent[None]).float())):
        beside = TokenSet.of(some, most=256)
        counted = beside.weight[0] > 0
        assert beside.features[0, counted].equal(alone.features[0])
        assert beside.weight[0, counted].equal(alone.weight[0])


def test_the_log_odds_weigh_inside_against_outside_whatever_their_number() -> None:
    # One feature. Inside: a token at 1. Outside: three tokens at -1. Mean -1/2, deviation sqrt(3)/2.
    tokens = TokenSet(
        torch.tensor([1.0, -1.0, -1.0, -1.0]).view(1, 4, 1),
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        torch.zeros(1, 4, dtype=torch.long),
        torch.zeros(1, 4, dtype=torch.bool),
        torch.ones(1, 4),
    )
    odds = kernel_log_odds(torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1), tokens, 4.0)
    # The tokens are 4 / sqrt(3) apart. Each side has a share of 1, but outside the kernel has three tokens of a third:
    # exp(-d^2 / 4) of the inside token against three thirds of exp(-d^2 / 4) of the others. In the middle 0.
    # d^2 is 16/3 at the tokens themselves, so 16/3 / 4 = 4/3.
    assert odds[0].tolist() == pytest.approx([4 / 3, 0, -4 / 3], abs=1e-4)


def test_the_plain_answer_of_learned_matching_finds_what_looks_alike() -> None:
    backbone, propagation = nano_backbone(), LearnedMatching()
    propagation.build(backbone)
    images = 0.2 + 0.6 * torch.stack([disc(40, 40, 10), disc(80, 90, 10)])
    features = backbone.encode(images)
    exemplars = propagation.describe(features.select(slice(0, 1)), disc(40, 40, 10).unsqueeze(0), backbone)
    plain = propagation.plain_answer(features.select(slice(1, 2)), exemplars)
    assert plain is not None
    found, true = plain[0] > 0, disc(80, 90, 10) > 0
    assert float(2 * (found & true).sum() / (found.sum() + true.sum())) > 0.8
    assert propagation.plain_answer(features, exemplars.pick(slice(0, 0))) is None
    assert Matching().plain_answer(features, exemplars) is None


def test_a_training_goes_on_after_an_inference() -> None:
    zones_of_tokens.cache_clear()
    torch.manual_seed(0)
    backbone, propagation = nano_backbone(), LearnedMatching()
    propagation.build(backbone)
    image, mask = 0.5 + 0.3 * disc(64, 64, 8).unsqueeze(0), disc(64, 64, 8).unsqueeze(0)
    with torch.inference_mode():
        features = backbone.encode(image)
        propagation(features, propagation.describe(features, mask, backbone), backbone)
    features = backbone.encode(image)
    answer = propagation(features, propagation.describe(features, mask, backbone), backbone)
    answer.logits.square().mean().backward()
    assert propagation.prior.grad is not None
    assert bool(propagation.prior.grad.abs().sum() > 0)


@pytest.mark.parametrize("kind", [Matching, LearnedMatching])
@pytest.mark.parametrize("bright", [True, False])
def test_discs_like_the_exemplar_are_found_without_training(kind: type[Propagation], bright: bool) -> None:
    torch.manual_seed(0)
    backbone, propagation = nano_backbone().eval(), kind()
    propagation.build(backbone)
    like = torch.stack([disc(30, 30, 8), disc(30, 95, 8), disc(95, 30, 8)]).amax(0)
    unlike = disc(95, 95, 8)
    image = 0.5 + (0.3 if bright else -0.3) * like + (-0.3 if bright else 0.3) * unlike
    image = image + 0.02 * torch.randn(EDGE, EDGE)
    with torch.no_grad():
        features = backbone.encode(image.unsqueeze(0))
        exemplars = propagation.eval().describe(features, disc(30, 30, 8).unsqueeze(0), backbone)
        answer = propagation(features, exemplars, backbone)
        found = (answer.logits if answer.drafts is None else answer.drafts)[0] > 0
        foreign = propagation(features, exemplars.map(negative=~exemplars.negative), backbone)
    overlap = 2 * (found & (like > 0)).sum() / (found.sum() + like.sum())
    assert float(overlap) > 0.8
    assert not bool((found & (unlike > 0)).any())
    if answer.drafts is None:
        assert not bool((foreign.logits > 0).any())


def test_cores_begin_as_the_masks_of_weights_without_cores(tmp_path: Path) -> None:
    """Old weights answer as before, in a propagation with cores too. Its cores begin as its masks."""
    backbone, old = nano_backbone().eval(), LearnedMatching(cores=False)
    old.build(backbone)
    save_propagation(old, tmp_path / "old.safetensors", backbone.identity)
    new = LearnedMatching(weights=str(tmp_path / "old.safetensors"), cores=True)
    new.build(backbone)
    image = 0.5 + 0.3 * disc(30, 30, 8) + 0.02 * torch.randn(EDGE, EDGE)
    with torch.no_grad():
        features = backbone.encode(image.unsqueeze(0))
        before, after = (
            each.eval()(features, each.describe(features, disc(30, 30, 8).unsqueeze(0), backbone), backbone)
            for each in (old, new)
        )
    assert before.cores is None
    assert after.cores is not None
    assert torch.allclose(before.logits, after.logits, atol=1e-5)
    assert torch.allclose(after.cores, after.logits, atol=1e-5)
    save_propagation(new, tmp_path / "new.safetensors", backbone.identity)
    again = LearnedMatching(weights=str(tmp_path / "new.safetensors"), cores=True)
    again.build(backbone)
    assert all(torch.equal(one, two) for one, two in zip(new.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"final\.2\.weight \(2, .* instead of \(1, "):
        LearnedMatching(weights=str(tmp_path / "new.safetensors"), cores=False).build(backbone)


def test_a_token_takes_what_it_says() -> None:
    for propagation in (Matching(), LearnedMatching()):
        propagation.build(nano_backbone())
        assert propagation.bytes_per_exemplar <= 16 << 10
        assert sum(ZONE_TOKENS.values()) == TOKENS
        assert FILTERS == 20


def test_a_kernel_without_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"propagation\.temperature=0 must be above 0"):
        Matching(temperature=0)
    with pytest.raises(ValueError, match=r"propagation\.heads=9 must be 1 to 4"):
        LearnedMatching(heads=9)


def test_the_filter_bank_deals_its_scales_out_to_the_channels_or_sees_each_at_every_scale() -> None:
    image = torch.rand(1, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    first, second = (filter_bank(image[:, number : number + 1]) for number in (0, 1))
    dealt = filter_bank(image)
    assert torch.equal(dealt[:, :5], first[:, :5])  # 1 pixel
    assert torch.equal(dealt[:, 5:10], second[:, 5:10])  # 2 pixels
    assert torch.equal(filter_bank(image, every=True), torch.cat([first, second], dim=1))


@pytest.mark.parametrize("most", [256, 640])
@pytest.mark.parametrize("count", [1, 3, 5, 16, 33, 70, 150])
def test_no_token_is_cut_off_for_want_of_room(count: int, most: int) -> None:
    valid = torch.arange(count) < torch.arange(1, count + 1).unsqueeze(1)  # questions with 1, 2, ... count exemplars
    tokens = {
        "features": torch.randn(1, count, TOKENS, 2).expand(count, -1, -1, -1),
        **{name: torch.ones(count, count, TOKENS) for name in ("inside", "weight")},
    }
    exemplars = Exemplars(tokens, valid, torch.zeros_like(valid))
    taken = (TokenSet.of(exemplars, most=most).weight > 0).sum(1)
    assert torch.equal(taken, _kept(exemplars, 1, most).flatten(1).sum(1))


@pytest.mark.parametrize(("count", "room"), [(1, 120), (2, 240), (4, 240), (5, 240), (16, 252), (33, 270)])
def test_the_tokens_of_a_question_take_no_more_room_than_they_fill(count: int, room: int) -> None:
    # 2 exemplars keep 120 tokens each, 4 keep 60; 14, which may be all of 16, keep 18; 27 of 33 keep 10
    exemplars = Exemplars(
        {
            name: torch.ones(1, count, TOKENS, *more)
            for name, more in (("features", [2]), ("inside", []), ("weight", []))
        },
        torch.ones(1, count, dtype=torch.bool),
        torch.zeros(1, count, dtype=torch.bool),
    )
    assert TokenSet.of(exemplars, most=256).weight.shape == (1, room)
