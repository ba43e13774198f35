"""Every plug-in of ours passes the checks that anybody's has to pass."""

from __future__ import annotations

import pytest
import torch

from adapters import IA3, Frozen, Full, LoHa, LoKr, Lora, Placement
from mois.backbones import SAM2
from mois.interfaces import Adapter, Propagation
from mois.propagation import Attention, LearnedMatching, Matching, Prototype, Sam2Only, Similarity
from mois.testing import check_adapter, check_backbone, check_propagation, example_patches, nano_backbone

PROPAGATIONS = [
    Sam2Only(),
    Prototype(),
    Matching(),
    LearnedMatching(),
    LearnedMatching(cores=True),
    Similarity(),
    Attention(),
    Attention(rotary_keys=True, tokens="foreground", initial="random"),
    Attention(keys="shared"),
]
ADAPTERS = [
    Frozen(),
    Full(),
    Lora(),
    Lora(dora=True, placement=Placement(parts=["trunk"], stages=[4])),
    Lora(placement=Placement(parts=["neck", "memory_encoder", "decoder"], propagation="frozen")),
    LoHa(),
    LoKr(),
    IA3(),
]


@pytest.mark.parametrize("propagation", PROPAGATIONS, ids=lambda p: type(p).__name__)
def test_propagations_keep_the_contract(propagation: Propagation) -> None:
    check_propagation(propagation)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: type(a).__name__)
def test_adapters_keep_the_contract(adapter: Adapter) -> None:
    check_adapter(adapter)


def test_the_nano_backbone_keeps_the_contract() -> None:
    check_backbone(nano_backbone())


@pytest.mark.slow
@pytest.mark.parametrize(
    "size", ["tiny", "small", *(pytest.param(name, marks=pytest.mark.ci) for name in ("base_plus", "large"))]
)
def test_official_sizes_keep_the_contract(size: str) -> None:
    check_backbone(SAM2(size, "random", patch_px=64))  # type: ignore[arg-type]


def test_a_disabled_adapter_gives_the_base_back_exactly() -> None:
    backbone, adapter, propagation = nano_backbone(), Lora(), Similarity()
    images, _ = example_patches(1)
    base = backbone.encode(images).levels[-1]
    propagation.build(backbone)
    adapter.attach(backbone, propagation)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert not torch.equal(backbone.encode(images).levels[-1], base)
    with adapter.disabled():
        assert torch.equal(backbone.encode(images).levels[-1], base)
