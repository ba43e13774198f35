"""Keeps the backbone's weights where a start of LoRA would move them (PiSSA, OLoRA, an orthogonal start).

Such a start takes B0 A0 out of the backbone's weight W, so that the layer still answers W at the beginning:

    W - B0 A0   trained: B A       as peft does it. Then a file would have to hold W - B0 A0, too.
    W           trained: B A,      as it is done here. Both parts are LoRA, so the file is
                frozen: -B0 A0     a plain LoRA of twice the rank, and W stays as it is, to the bit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft import PeftConfig

START = "start"
"""Name in peft of the frozen part."""

_HALVES = {"lora_A.weight": 0, "lora_B.weight": 1}
"""Tensors with the rank as an axis, and the axis."""


def own_weights(backbone: nn.Module, targets: list[str]) -> dict[str, Tensor]:
    """Return copies of the weights of layers, by name of the layer."""
    return {name: backbone.get_submodule(name).get_parameter("weight").detach().clone() for name in targets}


def put_back(backbone: nn.Module, config: PeftConfig, before: Mapping[str, Tensor]) -> bool:
    """Give layers the weights that they had before an adapter was injected; the adapter keeps its start.

    Args:
        backbone: Backbone with the adapter.
        config: Configuration of the adapter.
        before: Weights that the layers had, by name of the layer.

    Returns:
        Whether a weight had moved.

    Raises:
        ValueError: If a method other than LoRA moved a weight.
    """
    layers: dict[str, Any] = {name: backbone.get_submodule(name) for name in before}
    moved = [name for name, layer in layers.items() if not torch.equal(layer.get_base_layer().weight, before[name])]
    if not moved:
        return False
    if not hasattr(config, "init_lora_weights") or not hasattr(layers[moved[0]], "lora_A"):
        raise ValueError(f"it changes the backbone's own weights ({moved[0]}), which its file would not hold")
    from peft import inject_adapter_in_model

    lora: Any = config
    plain = replace(lora, init_lora_weights=True)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # the draws are overwritten
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two parts are meant
        inject_adapter_in_model(plain, backbone, adapter_name=START)
    with torch.no_grad():
        for name, layer in layers.items():
            layer.get_base_layer().weight.copy_(before[name])
            layer.lora_A[START].weight.copy_(layer.lora_A["default"].weight)
            layer.lora_B[START].weight.copy_(-layer.lora_B["default"].weight)
            layer.set_adapter(["default", START])
            for part in (layer.lora_A, layer.lora_B):
                part[START].requires_grad_(False)
    return True


def as_one(trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return both parts as the tensors of one LoRA of twice the rank."""
    joined = {}
    for name, tensor in trained.items():
        axis = _axis(name)
        joined[name] = tensor if axis is None else torch.cat([tensor, start[name]], axis)
    return joined


def as_two(joined: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the trained and the frozen part of the tensors that `as_one` joined."""
    trained, start = dict(joined), {}
    for name, tensor in joined.items():
        axis = _axis(name)
        if axis is not None:
            trained[name], start[name] = tensor.chunk(2, axis)
    return trained, start


def settings_as_one(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return peft's settings of a LoRA of twice the rank that scales its update as before."""
    grown = math.sqrt(2) if settings.get("use_rslora") else 2
    return {
        **settings,
        "init_lora_weights": True,
        "r": settings["r"] * 2,
        "lora_alpha": settings["lora_alpha"] * grown,
        "rank_pattern": {name: rank * 2 for name, rank in settings.get("rank_pattern", {}).items()},
        "alpha_pattern": {name: alpha * grown for name, alpha in settings.get("alpha_pattern", {}).items()},
    }


def _axis(name: str) -> int | None:
    return next((axis for ending, axis in _HALVES.items() if name.endswith(ending)), None)
