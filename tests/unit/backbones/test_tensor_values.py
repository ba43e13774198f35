"""The numbers of a checkpoint: other float types are converted, and what is no number is refused in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mois.backbones import SAM2
from mois.testing import nano_backbone

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return nano_backbone(seed=1).weights()


def refused(path: Path) -> str:
    with pytest.raises(ValueError, match=re.escape(f"backbone.weights={path}: ")) as error:
        SAM2("nano", str(path), patch_px=64)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"backbone.weights={path}: ")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_converted_and_said(tmp_path: Path, state: State, dtype: torch.dtype) -> None:
    save_file({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path / "w.safetensors")
    kind = str(dtype).removeprefix("torch.")
    with pytest.warns(UserWarning, match=rf"w\.safetensors holds {kind}; it is converted to float32\.$"):
        loaded = SAM2("nano", str(tmp_path / "w.safetensors"))
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_number_that_is_none_is_found(tmp_path: Path, state: State, broken: float, dtype: torch.dtype) -> None:
    changed = {name: tensor.to(dtype) for name, tensor in state.items()}
    changed["no_mem_embed"] = changed["no_mem_embed"].clone()
    changed["no_mem_embed"][0, 0, :2] = broken
    torch.save(changed, tmp_path / "w.pt")
    said = "2 of 64 numbers in tensor no_mem_embed are NaN or infinite; give another copy."
    assert refused(tmp_path / "w.pt") == said


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda tensor: tensor.to(torch.int8), "is int8 (quantised?)"),
        (lambda tensor: tensor.to(torch.complex64), "is complex64"),
        (lambda tensor: tensor.to_sparse(), "is sparse_coo"),
        (lambda tensor: tensor.to("meta"), "has a shape and no numbers (it was saved from the meta device)"),
    ],
)
def test_weights_that_are_no_block_of_numbers_are_refused(
    tmp_path: Path, state: State, change: Callable[[Tensor], Tensor], fault: str
) -> None:
    torch.save({**state, "no_mem_embed": change(state["no_mem_embed"])}, tmp_path / "w.pt")
    assert refused(tmp_path / "w.pt") == f"tensor no_mem_embed {fault}; give weights in float32 or float16."
