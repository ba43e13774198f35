"""Base of the adapters of peft. Parts and stages of the backbone say where an adapter goes (`Placement`)."""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import nn

from adapters.adapter_file import NAME, read_adapter
from adapters.placement import Placement
from mois.files.atomic import whole_file, write_text
from mois.interfaces import Adapter, Backbone, Propagation
from mois.sharing.old_settings import PLACEMENT, accepts_old_arguments

if TYPE_CHECKING:
    from peft import PeftConfig

PREFIX = "base_model.model."
"""Beginning of every name in peft's files."""

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


class PeftAdapter(Adapter):
    """An adapter of peft on named parts of the backbone.

    Args:
        placement: Where the adapter goes.
    """

    @accepts_old_arguments(PLACEMENT)
    def __init__(self, placement: Placement = Placement()) -> None:  # noqa: B008 (frozen)
        self.placement = placement

    @abstractmethod
    def config(self, targets: list[str]) -> PeftConfig:
        """Return peft's configuration for these layers."""

    def targets(self, backbone: Backbone) -> list[str]:
        """Return the names of the backbone's layers that get an adapter.

        Raises:
            ValueError: If the backbone lacks a part, or no layer of the part matches.
        """
        names = {id(module): name for name, module in backbone.named_modules()}
        available = backbone.parts()
        targets: list[str] = []
        for part in self.placement.parts:
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
                and re.fullmatch(REACHED[part], name)
                and (part != "trunk" or self._stage(available[part], name) in self.placement.stages)
            ]
            if not matched:
                layers = [name for name, layer in available[part].named_modules() if isinstance(layer, nn.Linear)]
                raise ValueError(
                    f"model.adapter.init_args.placement: {part!r} with stages {self.placement.stages} matches no "
                    f"layer; there are {', '.join(layers)}."
                )
            targets += matched
        return targets

    def attach(self, backbone: Backbone, propagation: Propagation) -> None:
        """See `Adapter.attach`."""
        from peft import inject_adapter_in_model  # costs 5 seconds to import

        backbone.requires_grad_(False)
        targets = self.targets(backbone)
        inject_adapter_in_model(self.config(targets), backbone)
        propagation.requires_grad_(self.placement.propagation == "full")
        self.backbone = backbone

    def save(self, folder: Path) -> None:
        """See `Adapter.save`; `peft.PeftModel.from_pretrained(backbone, folder)` reads it too."""
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(self.backbone)
        injected: Any = self.backbone
        config = injected.peft_config["default"].to_dict()
        plain = {
            key: sorted(value) if isinstance(value, set) else value
            for key, value in config.items()
            if not (hasattr(value, "items") and key == "runtime_config")
        }
        with whole_file(folder / NAME) as part:
            save_file({PREFIX + key: value.detach().cpu().contiguous() for key, value in state.items()}, part)
        write_text(folder / "adapter_config.json", json.dumps(plain, indent=2, default=str, sort_keys=True))

    def load(self, folder: Path) -> None:
        """See `Adapter.load`."""
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        state = read_adapter(folder, get_peft_model_state_dict(self.backbone), PREFIX)
        set_peft_model_state_dict(self.backbone, state)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Switch the adapter off within this context. The backbone then answers exactly as before `attach`."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [layer for layer in self.backbone.modules() if isinstance(layer, BaseTunerLayer)]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    @staticmethod
    def _stage(trunk: nn.Module, name: str) -> int:
        """Return the stage, 1 to 4, of a layer of the trunk with a name such as `blocks.7.attn.qkv`."""
        block = int(name.split(".")[1])
        return 1 + sum(block > end for end in trunk.stage_ends)  # type: ignore[union-attr]
