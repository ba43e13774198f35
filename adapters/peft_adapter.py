"""Low-rank and related adapters through peft, placed by part and by stage."""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors.torch import save_file
from torch import nn

from adapters.adapter_file import NAME, read_adapter
from mois.files.atomic import whole_file, write_text
from mois.interfaces import Adapter, Backbone, Propagation

if TYPE_CHECKING:
    from peft import PeftConfig

Part = Literal["trunk", "neck", "memory_attention", "memory_encoder", "decoder"]
PREFIX = "base_model.model."  # what peft itself puts before every name in its files

# Layers of a part that every training step reaches. Others (quality heads, the prompt encoder's boxes) would stay
# without gradient, and DDP would wait for them for ever.
REACHED = {
    "trunk": r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.layers\.\d+|proj)",
    "neck": r"convs\.\d+\.conv",
    "memory_attention": r"layers\.\d+\.(self_attn|cross_attn_image)\.(q|k|v|out)_proj|layers\.\d+\.linear[12]",
    "memory_encoder": r"fuser\.layers\.\d+\.pwconv[12]|pix_feat_proj|out_proj",
    "decoder": r"transformer\.(layers\.\d+\.[a-z_]+|final_attn_token_to_image)\.((q|k|v|out)_proj|layers\.\d+)",
}


class PeftAdapter(Adapter):
    """An adapter of peft on named parts of the backbone; the propagation is trained in full.

    Args:
        parts: Parts that get adapters.
        stages: Stages of the trunk that get adapters, 1 (finest) to 4. With stages 3 and 4 alone, the early stages need
            no backward pass, and no memory for it.
        propagation: Whether the propagation is trained (`full`) or not (`frozen`).
    """

    def __init__(
        self,
        parts: Sequence[Part] = ("trunk", "memory_attention", "decoder"),
        stages: Sequence[int] = (3, 4),
        propagation: Literal["full", "frozen"] = "full",
    ) -> None:
        self.parts = tuple(parts)
        self.stages = tuple(stages)
        self.propagation = propagation

    @abstractmethod
    def config(self, targets: list[str]) -> PeftConfig:
        """Return peft's configuration for these layers."""

    def targets(self, backbone: Backbone) -> list[str]:
        """Return the names of the backbone's layers that get an adapter.

        Raises:
            ValueError: If a part is unknown, or nothing in it matches.
        """
        names = {id(module): name for name, module in backbone.named_modules()}
        available = backbone.parts()
        found: list[str] = []
        for part in self.parts:
            if part not in available or part not in REACHED:
                raise ValueError(f"adapter.parts holds {part!r}; allowed are {', '.join(sorted(REACHED))}.")
            base = names[id(available[part])]
            matched = [
                f"{base}.{name}"
                for name, layer in available[part].named_modules()
                if isinstance(layer, nn.Linear | nn.Conv2d)
                and re.fullmatch(REACHED[part], name)
                and (part != "trunk" or self._stage(available[part], name) in self.stages)
            ]
            if not matched:
                layers = [name for name, layer in available[part].named_modules() if isinstance(layer, nn.Linear)]
                raise ValueError(
                    f"adapter.parts={part!r} with adapter.stages={self.stages} matches no layer; there are "
                    f"{', '.join(layers)}."
                )
            found += matched
        return found

    def attach(self, backbone: Backbone, propagation: Propagation) -> None:
        """See `Adapter.attach`."""
        from peft import inject_adapter_in_model  # costs 5 seconds to import

        backbone.requires_grad_(False)
        targets = self.targets(backbone)
        inject_adapter_in_model(self.config(targets), backbone)
        propagation.requires_grad_(self.propagation == "full")
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
        """Switch the adapter off inside the context: the backbone answers exactly as before `attach`."""
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
        block = int(name.split(".")[1])
        return 1 + sum(block > end for end in trunk.stage_ends)  # type: ignore[union-attr]
