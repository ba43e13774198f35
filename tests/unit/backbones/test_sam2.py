"""sam2's tables: none outlives the mode or the device that it was made under, none is put where nobody asked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mois.backbones import SAM2
from mois.interfaces import Memory
from mois.propagation import Attention
from mois.testing import example_patches, nano_backbone


def remembered(backbone: SAM2, images: torch.Tensor) -> Memory:
    features = backbone.encode(images)
    answer = backbone.decode(features, None)
    return backbone.remember(features, answer.logits, answer.pointer)


def norms(module: nn.Module) -> list[float]:
    return [float(p.grad.norm()) for name, p in module.named_parameters() if name.endswith("q_proj.weight")]  # type: ignore[union-attr]


def test_a_backbone_that_has_tracked_can_be_trained_at_that_size() -> None:
    backbone, (images, _) = nano_backbone(), example_patches(2, 64)
    with torch.inference_mode():
        backbone.attend(backbone.encode(images), remembered(backbone, images))
    backbone.requires_grad_(True)
    backbone.attend(backbone.encode(images), remembered(backbone, images)).levels[-1].square().sum().backward()
    assert min(norms(backbone.sam.memory_attention)) > 0


@pytest.mark.parametrize("rotary_keys", [True, False])
def test_a_propagation_that_has_answered_can_be_trained_at_that_size(rotary_keys: bool) -> None:
    backbone, (images, masks) = nano_backbone(), example_patches(2, 64)
    propagation = Attention(rotary_keys)
    propagation.build(backbone)

    def answer() -> torch.Tensor:
        features = backbone.encode(images)
        exemplars = propagation.describe(features, masks, backbone).reshape(1, 2)
        return propagation(features.select(torch.tensor([0])), exemplars, backbone).logits

    with torch.inference_mode():
        answer()
    answer().square().sum().backward()
    assert min(norms(propagation.stack)) > 0


def test_a_backbone_is_built_where_it_is_told_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(*_: object, **__: object) -> None:
        raise AssertionError("a rank of several must not open a context on the first GPU")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", elsewhere)
    backbone = SAM2("nano", "random", patch_px=64)
    Attention(rotary_keys=True).build(backbone)
    images, _ = example_patches(1, 64)
    backbone.attend(backbone.encode(images), remembered(backbone, images))


def test_position_codes_of_many_images_are_kept_once() -> None:
    def bytes_held(count: int) -> int:
        backbone = nano_backbone()
        features = backbone.encode(torch.rand(count, 64, 64))
        backbone.remember(features, torch.zeros(count, 16, 16), torch.zeros(count, backbone.width))
        codes = [features.position]
        for module in backbone.modules():
            codes += [code for code in getattr(module, "cache", {}).values() if isinstance(code, torch.Tensor)]
        return sum({code.untyped_storage().data_ptr(): code.untyped_storage().nbytes() for code in codes}.values())

    assert bytes_held(32) <= 1.2 * bytes_held(1)


def test_one_two_or_three_channels_go_to_the_three_inputs() -> None:
    backbone, images = nano_backbone(), torch.rand(2, 3, 64, 64)
    one, two = images[:, :1], images[:, :2]
    for given, inputs in ((images[:, 0], [0, 0, 0]), (one, [0, 0, 0]), (two, [0, 0, 1]), (images, [0, 1, 2])):
        same = zip(backbone.encode(given).levels, backbone.encode(images[:, inputs]).levels, strict=True)
        assert all(torch.equal(first, second) for first, second in same)
        assert backbone.encode(given).image.dim() == 4
