"""How exemplars are compared: the fast formula against the plain one, and what it does without exemplars."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mois.backbones import SAM2
from mois.inference.segmenter import side_by_side
from mois.interfaces import Propagation
from mois.propagation import Attention, LearnedMatching, Prototype, Similarity
from mois.propagation import similarity as module
from mois.propagation.attention import MAX_FOREGROUND_BYTES
from mois.propagation.similarity import ZONES
from mois.records import Exemplars
from mois.testing import example_patches, nano_backbone


def shared_attention() -> Attention:
    return Attention(keys="shared")


@pytest.fixture(scope="module")
def similarity() -> Similarity:
    torch.manual_seed(0)
    propagation = Similarity()
    propagation.build(nano_backbone())
    return propagation


def some_exemplars(rows: int, count: int, seed: int = 0) -> Exemplars:
    """Return exemplars of mixed signs and weights, the first of weight 0 and the last of each row padding."""
    chance = torch.Generator().manual_seed(seed)
    tokens = {
        "means": torch.randn(rows, count, 3, 48, generator=chance),
        "log_area": torch.rand(rows, count, 1, generator=chance),
    }
    valid = torch.ones(rows, count, dtype=torch.bool)
    valid[:, -1] = False
    weight = 2 * torch.rand(rows, count, generator=chance)
    weight[:, 0] = 0
    return Exemplars(tokens, valid, torch.rand(rows, count, generator=chance) > 0.6, weight)


def plainly(propagation: Similarity, pixels: Tensor, exemplars: Exemplars) -> Tensor:
    """One pixel embedding after the other against one exemplar after the other; a softmax over exemplars."""
    images, _, height, width = pixels.shape
    asked = exemplars.valid.shape[0] // images
    found = pixels.new_zeros(len(exemplars.valid), 2, 2, 3, height, width)
    for row in range(len(exemplars.valid)):
        for place, zone in enumerate(ZONES):
            compare = propagation.compare[zone]
            means = exemplars.tokens["means"][row, :, place, :, None, None]
            here, there = compare(pixels[row // asked][None]), compare(means)
            cosines = functional.cosine_similarity(here, there, dim=1)  # (K, h, w)
            for sign in (0, 1):
                keep = exemplars.present[row] & (exemplars.negative[row] == bool(sign))
                if not keep.any():
                    continue
                weight = exemplars.weight[row, keep, None, None]
                found[row, sign, 0, place] = (weight * cosines[keep]).sum(0) / weight.sum(0)
                share = (cosines[keep] / propagation.temperature + weight.log()).softmax(0)
                found[row, sign, 1, place] = (share * cosines[keep]).sum(0)
    return found.flatten(1, 3)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("rows", "count"), [(2, 5), (4, 3), (2, 2), (2, 1)])
def test_likeness_is_the_mean_and_the_soft_maximum_of_cosines(
    similarity: Similarity, rows: int, count: int, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CPU_COSINES", 1)  # 64 pixels at once: 4 pieces
    pixels = torch.randn(2, 48, 16, 16, generator=torch.Generator().manual_seed(1))
    exemplars = some_exemplars(rows, count)
    with torch.set_grad_enabled(training):
        fast = similarity._likeness(pixels, similarity.prepare(exemplars))
    torch.testing.assert_close(fast, plainly(similarity, pixels, exemplars), atol=1e-5, rtol=1e-4)


def test_likeness_is_worked_out_in_float32_whatever_the_pixels_are(similarity: Similarity) -> None:
    pixels = torch.randn(2, 48, 8, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    exemplars = some_exemplars(2, 5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fast = similarity._likeness(pixels, similarity.prepare(exemplars))
    assert fast.dtype == torch.bfloat16
    torch.testing.assert_close(fast.float(), plainly(similarity, pixels.float(), exemplars), atol=5e-3, rtol=0)


def test_nothing_is_like_no_exemplars(similarity: Similarity) -> None:
    pixels = torch.randn(1, 48, 8, 8)
    exemplars = some_exemplars(1, 3)
    none = exemplars.map(valid=torch.zeros_like(exemplars.valid))
    for some in (exemplars.pick(slice(0, 0)), none):
        assert not similarity._likeness(pixels, similarity.prepare(some)).any()


def test_a_temperature_that_float32_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"propagation.temperature=0.01 must be 0.03 or more"):
        Similarity(temperature=0.01)


def test_what_depends_on_the_exemplars_alone_is_worked_out_once(
    similarity: Similarity, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = nano_backbone()
    features = backbone.encode(example_patches(1)[0])
    exemplars = similarity.prepare(some_exemplars(1, 3))

    def never(_: Tensor) -> Tensor:
        raise AssertionError("the summary of an exemplar was worked out again")

    monkeypatch.setattr(similarity.summary, "forward", never)
    similarity(features, exemplars, backbone)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [Similarity, Attention, shared_attention])
def test_gradients_are_laid_out_as_their_parameters(kind: Callable[[], Propagation], precision: torch.dtype) -> None:
    backbone, propagation = nano_backbone(), kind()  # otherwise DDP warns, and copies them at every step
    propagation.build(backbone)
    images, masks = example_patches(2)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        features = backbone.encode(images)
        exemplars = (
            propagation.describe(features, masks, backbone)
            .reshape(1, 2)
            .each(lambda part: part.expand(4, *part.shape[1:]))
        )
        answer = propagation(features, exemplars, backbone)
    (answer.logits.float().square().mean() + answer.presence.float().sum()).backward()
    layouts = {
        name: (part.stride(), part.grad.stride())
        for name, part in propagation.named_parameters()
        if part.grad is not None
    }
    assert layouts
    assert {name: both for name, both in layouts.items() if both[0] != both[1]} == {}


def attention_pair(rotary_keys: bool) -> tuple[Attention, Attention]:
    """Return foreground and dense attention of the same weights."""
    torch.manual_seed(0)
    sparse, dense = (Attention(rotary_keys, tokens) for tokens in ("foreground", "dense"))  # type: ignore[arg-type]
    for propagation in (sparse, dense):
        propagation.build(nano_backbone())
    dense.load_state_dict(sparse.state_dict())
    return sparse, dense


@pytest.mark.parametrize("rotary_keys", [False, True])
def test_foreground_tokens_answer_as_dense_ones_with_the_others_masked(rotary_keys: bool) -> None:
    sparse, dense = attention_pair(rotary_keys)
    backbone = nano_backbone()
    (images, masks), query = example_patches(6), backbone.encode(example_patches(2, seed=1)[0])
    features = backbone.encode(images)
    few, all_of_them = (p.describe(features, masks, backbone).reshape(2, 3) for p in (sparse, dense))
    near = functional.max_pool2d(functional.max_pool2d(masks.unsqueeze(1), 16), 3, stride=1, padding=1)
    on_it = near.view(2, 3, 64) > 0.1
    assert 4 <= int(on_it.sum(2).amax()) < 36
    masked = all_of_them.map(all_of_them.tokens | {"cell": all_of_them.tokens["cell"].masked_fill(~on_it, -1)})
    sparse, few = sparse.eval(), sparse.prepare(few)
    assert few.tokens["map"].shape[2] == int(on_it.sum(2).amax())  # padded to the longest, not to the grid
    with torch.no_grad():
        torch.testing.assert_close(sparse(query, few, backbone), dense(query, masked, backbone), atol=1e-4, rtol=1e-4)


def test_padding_takes_no_room_among_foreground_tokens() -> None:
    sparse, _ = attention_pair(False)
    images, masks = example_patches(3)
    backbone = nano_backbone()
    three = sparse.describe(backbone.encode(images), masks, backbone).reshape(1, 3)
    longest = sparse.prepare(three).tokens["map"].shape[2]
    assert longest < sparse.most
    both = side_by_side([three, three.pick(slice(0, 1))])  # the second question is padded with zeros
    assert sparse.prepare(both).tokens["map"].shape[2] == longest


def test_of_a_lesion_with_too_many_tokens_evenly_spread_ones_are_kept() -> None:
    sparse, _ = attention_pair(False)
    backbone = nano_backbone()
    sparse.most = 8
    described = sparse.describe(backbone.encode(example_patches(1)[0]), torch.ones(1, 128, 128), backbone)
    assert described.tokens["cell"].flatten().tolist() == [0, 8, 16, 24, 32, 40, 48, 56]


@pytest.mark.parametrize("kind", [Similarity, Prototype, lambda: Attention(tokens="foreground"), shared_attention])
@pytest.mark.parametrize("size", ["nano", "tiny"])
def test_an_exemplar_is_compact(kind: Callable[[], Propagation], size: Literal["nano", "tiny"]) -> None:
    backbone, propagation = SAM2(size, "random", patch_px=512), kind()
    propagation.build(backbone)
    small = SAM2(size, "random", patch_px=64)
    described = propagation.describe(small.encode(example_patches(1, 64)[0]), torch.ones(1, 64, 64), small)
    assert described.bytes_per_exemplar() <= propagation.bytes_per_exemplar <= MAX_FOREGROUND_BYTES


@pytest.mark.parametrize(
    ("kind", "weights", "backbone", "choices"),
    [
        (Similarity, "bundled-2", "bundled-2", r"bundled \(with model\.backbone\.init_args\.weights=bundled\), a path"),
        (Similarity, "bundled", "bundled-2", r"bundled \(with model\.backbone\.init_args\.weights=bundled\), a path"),
        (Similarity, "bundled-2", "bundled", r"; give bundled, a path"),
        (LearnedMatching, "bundled", "bundled-2", r"; give bundled-2, a path"),
        (LearnedMatching, "none.safetensors", "random", r"give bundled-2 \(with .*untrained\)\.$"),
    ],
)
def test_weights_that_are_not_there_name_those_that_are(
    kind: type[Propagation], weights: str, backbone: str, choices: str
) -> None:
    with pytest.raises(ValueError, match=rf"^propagation\.weights={weights}.*{choices}"):
        kind(weights=weights).build(SAM2(weights=backbone))  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [Similarity, LearnedMatching])
def test_sizes_that_make_no_network_are_refused(kind: type[Similarity] | type[LearnedMatching]) -> None:
    with pytest.raises(ValueError, match=r"propagation\.width=0 must be 1 or more"):
        kind(width=0)
    with pytest.raises(ValueError, match=r"propagation\.blocks=-1 must be 0 or more"):
        kind(blocks=-1)
