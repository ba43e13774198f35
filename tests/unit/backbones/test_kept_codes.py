"""Codes are computed once for answers, and again when what they are made of changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mois.backbones import SAM2, kept_codes
from mois.backbones.kept_codes import KeptCodes
from mois.records import Prompts

CPU = torch.device("cpu")


def counting() -> tuple[Callable[[], Tensor], list[Tensor]]:
    made: list[Tensor] = []

    def compute() -> Tensor:
        made.append(torch.full((1,), float(len(made))))
        return made[-1]

    return compute, made


def test_a_code_is_computed_once_for_each_name_and_precision_and_never_kept_with_gradient() -> None:
    codes, (compute, made) = KeptCodes(), counting()
    with torch.no_grad():
        for name in (("grid", 8), ("grid", 8), ("grid", 16)):
            codes.get(name, CPU, compute)
        assert len(made) == 2
        with torch.autocast("cpu", torch.bfloat16):
            codes.get(("grid", 8), CPU, compute)
    assert len(made) == 3
    assert codes.get(("grid", 8), CPU, compute) is made[3]
    for other in (copy.deepcopy(codes), pickle.loads(pickle.dumps(codes))):
        with torch.no_grad():
            assert other.get(("grid", 8), CPU, compute) is made[-1]
    assert len(made) == 6


def test_a_code_is_computed_again_when_its_source_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, source, (compute, made) = KeptCodes(), torch.zeros(2), counting()
    with torch.no_grad():
        for _ in range(2):
            codes.get(("grid",), CPU, compute, source)
        assert len(made) == 1
        source.add_(1)
        codes.get(("grid",), CPU, compute, source)
        assert len(made) == 2
        codes.get(("grid",), CPU, compute, source.clone())
        assert len(made) == 3
        monkeypatch.setattr(kept_codes, "MOST", 1)
        codes.get(("other",), CPU, compute)
        codes.get(("grid",), CPU, compute, source)
    assert len(made) == 5


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradient_a_decoder_answers_as_with_it(context: Callable[[], Any]) -> None:
    backbone = SAM2("nano", "bundled-2", patch_px=64)
    features = backbone.encode(torch.rand(2, 64, 64))._replace(conditioned=True)
    click = Prompts(torch.full((2, 1, 2), 30.0), torch.ones(2, 1, dtype=torch.int32))
    for prompts in (None, click):
        slow = backbone.decode(features, prompts)
        with context():
            quick = [backbone.decode(features, prompts) for _ in range(2)]  # codes are made, and found again
        assert all(torch.equal(a, b) for each in quick for a, b in zip(slow, each, strict=True))
    sparse, dense = backbone._embed_prompts(None, 2, 64)
    with context():
        kept = backbone._embed_prompts(None, 2, 64)
    assert torch.equal(sparse, kept[0])
    assert torch.equal(dense, kept[1])
