"""Objects that share an image read their memories as if each were alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from mois.backbones import SAM2, memory_reading
from mois.interfaces import Backbone, Memory


@pytest.mark.parametrize("numbers", [1 << 21, 64, 1])  # all objects at once, one object at once, one query at once
def test_mixed_values_are_those_of_torch(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    monkeypatch.setattr(memory_reading, "CACHED_NUMBERS", numbers)
    chance = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(shape, generator=chance) for shape in ((3, 4, 8), (3, 10, 8), (3, 10, 8)))
    found = memory_reading.mix_values(query, key, value[..., :2])
    assert torch.allclose(found, functional.scaled_dot_product_attention(query, key, value)[..., :2], atol=1e-6)


@pytest.mark.parametrize("numbers", [1 << 21, 1])
@torch.no_grad()
def test_objects_on_shared_images_attend_as_on_images_of_their_own(
    monkeypatch: pytest.MonkeyPatch, numbers: int
) -> None:
    monkeypatch.setattr(memory_reading, "CACHED_NUMBERS", numbers)
    backbone = SAM2("tiny", "random", patch_px=64)
    with torch.no_grad():  # the random codes of time are too small to matter
        backbone.sam.maskmem_tpos_enc.normal_()
    features = backbone.encode(torch.rand(2, 64, 64))
    image = torch.tensor([1, 0, 1])
    seen = features.select(image)
    pointer = torch.randn(3, backbone.width)
    parts = [backbone.remember(seen, 5 * torch.randn(3, 16, 16), pointer).at(n, clicked=n == 2) for n in (1, 2)]
    memory = Memory.cat(parts)
    apart, shared = backbone.attend(seen, memory), backbone.attend_on(features, image, memory)
    assert torch.allclose(apart.levels[-1], shared.levels[-1], atol=1e-5)
    assert not torch.allclose(shared.levels[-1][0], shared.levels[-1][2], atol=1e-2)  # each reads its own memory
    assert all(torch.equal(a, b) for a, b in zip(apart.levels[:-1], shared.levels[:-1], strict=True))
    assert shared.conditioned


@pytest.mark.parametrize("objects", [0, 3])
@torch.no_grad()
def test_few_objects_at_once_are_remembered_as_all_at_once(monkeypatch: pytest.MonkeyPatch, objects: int) -> None:
    backbone = SAM2("nano", "random", patch_px=64)
    features = backbone.encode(torch.rand(1, 64, 64)).select(torch.zeros(objects, dtype=torch.int64))
    asked: list[int] = []
    backbone.sam.memory_encoder.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    told = features, torch.randn(objects, 16, 16), torch.randn(objects, backbone.width)
    at_once = backbone.remember(*told)
    monkeypatch.setattr(memory_reading, "CACHED_NUMBERS", 1)
    one_by_one = backbone.remember(*told)
    assert asked == ([0, 0] if objects == 0 else [3, 1, 1, 1])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(at_once[:3], one_by_one[:3], strict=True))


def test_with_gradient_objects_attend_one_by_one() -> None:
    assert SAM2.attend_on is not Backbone.attend_on
    backbone = SAM2("nano", "random")
    features = backbone.encode(torch.rand(1, 128, 128))
    memory = backbone.remember(features, torch.randn(1, 32, 32), torch.randn(1, 64))
    exact = backbone.attend(features, memory).levels[-1]
    assert torch.equal(backbone.attend_on(features, torch.zeros(1, dtype=torch.int64), memory).levels[-1], exact)
