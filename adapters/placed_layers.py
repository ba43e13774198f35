"""Finds the layers of a backbone that get an adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from adapters.placement import Placement
from mois.interfaces import Backbone

REACHED = {
    "trunk": r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.layers\.\d+|proj)",
    "neck": r"convs\.\d+\.conv",
    "memory_attention": r"layers\.\d+\.(self_attn|cross_attn_image)\.(q|k|v|out)_proj|layers\.\d+\.linear[12]",
    "memory_encoder": r"fuser\.layers\.\d+\.pwconv[12]|pix_feat_proj|out_proj",
    "decoder": r"transformer\.(layers\.\d+\.[a-z_]+|final_attn_token_to_image)\.((q|k|v|out)_proj|layers\.\d+)",
}
"""Layers by part that every training step reaches.

Other layers (quality heads, the prompt encoder's boxes) would get no gradient, and DDP would wait for them without end.
"""


def placed_layers(backbone: Backbone, placement: Placement, patterns: Mapping[str, str]) -> list[str]:
    """Return the names of the backbone's layers that get an adapter.

    Args:
        backbone: The backbone.
        placement: Parts, and stages of the trunk.
        patterns: Regular expression of the names of layers, by part.

    Raises:
        ValueError: If the backbone lacks a part, or no layer of the part matches.
    """
    names = {id(module): name for name, module in backbone.named_modules()}
    available = backbone.parts()
    targets: list[str] = []
    for part in placement.parts:
        if part not in available:
            raise ValueError(
                f"model.adapter.init_args.placement.parts holds {part!r}; this backbone has "
                f"{', '.join(sorted(available))}."
            )
        base = names[id(available[part])]
        matched = [
            f"{base}.{name}"
            for name, layer in available[part].named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d)
            and re.fullmatch(patterns[part], name)
            and (part != "trunk" or _stage(available[part], name) in placement.stages)
        ]
        if not matched:
            named = dict(available[part].named_modules())
            layers = [name for name, layer in named.items() if isinstance(layer, nn.Linear)]
            layers = layers or [name for name, layer in named.items() if isinstance(layer, nn.Conv2d)]
            raise ValueError(
                f"model.adapter.init_args.placement: {part!r} with stages {placement.stages} matches no "
                f"layer; there are {', '.join(layers)}."
            )
        targets += matched
    return targets


def _stage(trunk: nn.Module, name: str) -> int:
    """Return the stage, 1 to 4, of a layer of the trunk with a name such as `blocks.7.attn.qkv`."""
    block = int(name.split(".")[1])
    return 1 + sum(block > end for end in trunk.stage_ends)  # type: ignore[union-attr]
