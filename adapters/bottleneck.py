"""Bottleneck adapters: a small network behind layers of the backbone. They need no peft."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from adapters.adapter_file import NAME, read_adapter
from adapters.placed_layers import placed_layers
from adapters.placement import Placement
from mois.files.atomic import whole_file
from mois.interfaces import Adapter, Backbone, Propagation

LAST = {
    "trunk": r"blocks\.\d+\.(attn\.proj|mlp\.layers\.1)",
    "neck": r"(?!)",
    "memory_attention": r"layers\.\d+\.((self_attn|cross_attn_image)\.out_proj|linear2)",
    "memory_encoder": r"fuser\.layers\.\d+\.pwconv2",
    "decoder": r"transformer\.((layers\.\d+\.[a-z_]+|final_attn_token_to_image)\.out_proj|layers\.\d+\.mlp\.layers\.1)",
}
"""Last layer of each attention and each MLP, by part. The neck has neither."""


class Bottleneck(Adapter):
    """A small network behind each attention and each MLP: y + up(gelu(down(y))). It cannot be merged.

    Args:
        width: Width of the small network.
        placement: Where the adapter goes.

    Raises:
        ValueError: If the width is below 1.

    Source: Houlsby et al., Parameter-efficient transfer learning for NLP, arXiv 1902.00751.
    """

    def __init__(self, width: int = 16, placement: Placement = Placement()) -> None:  # noqa: B008 (frozen)
        if width < 1:
            raise ValueError(f"model.adapter.init_args.width={width} must be at least 1.")
        self.width, self.placement = width, placement
        self.layers: dict[str, _WithBottleneck] = {}

    def attach(self, backbone: Backbone, propagation: Propagation) -> None:
        """See `Adapter.attach`."""
        backbone.requires_grad_(False)
        for name in placed_layers(backbone, self.placement, LAST):
            parent, _, own = name.rpartition(".")
            layer: nn.Module = backbone.get_submodule(name)
            self.layers[name] = _WithBottleneck(layer, self.width)  # type: ignore[arg-type]
            setattr(backbone.get_submodule(parent), own, self.layers[name])
        propagation.requires_grad_(self.placement.propagation == "full")

    def save(self, folder: Path) -> None:
        """See `Adapter.save`."""
        with whole_file(folder / NAME) as part:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in self._trained().items()}, part)

    def load(self, folder: Path) -> None:
        """See `Adapter.load`."""
        trained = self._trained()
        stored = read_adapter(folder, trained)
        with torch.no_grad():
            for name, tensor in trained.items():
                tensor.copy_(stored[name])

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """See `Adapter.disabled`."""
        for layer in self.layers.values():
            layer.on = False
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.on = True

    def merge(self) -> None:
        """Refuse: what a bottleneck adds is no linear function of its input.

        Raises:
            ValueError: Always.
        """
        raise ValueError("model.adapter: adapters.Bottleneck cannot be merged into the backbone's weights.")

    def _trained(self) -> dict[str, Tensor]:
        """Return the trained tensors by name."""
        return {
            f"{name}.{own}.{kind}": tensor
            for name, layer in self.layers.items()
            for own, inner in (("down", layer.down), ("up", layer.up))
            for kind, tensor in inner.named_parameters()
        }


class _WithBottleneck(nn.Module):
    """A linear layer with a small network behind it, which adds nothing at first.

    Args:
        base_layer: The layer.
        width: Width of the small network.
    """

    def __init__(self, base_layer: nn.Linear, width: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Linear(base_layer.out_features, width)
        self.up = nn.Linear(width, base_layer.out_features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.on = True

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's output (..., C), with that of the small network added."""
        output: Tensor = self.base_layer(inputs)  # (..., C)
        return output + self.up(functional.gelu(self.down(output))) if self.on else output
