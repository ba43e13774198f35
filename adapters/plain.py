"""Adapters without peft: the whole backbone stays frozen, or the whole backbone is trained."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

from safetensors.torch import save_file
from torch import Tensor

from adapters.adapter_file import NAME, read_adapter
from mois.files.atomic import whole_file
from mois.interfaces import Adapter, Backbone, Propagation

UNREACHED = (
    "sam.no_mem_pos_enc",
    "sam.mask_downsample",
    "sam.sam_prompt_encoder.point_embeddings.2",
    "sam.sam_prompt_encoder.point_embeddings.3",
)
"""Tensors of SAM2 that no training step reaches: SAM 2.1 uses them for no prompt that we simulate."""


class Frozen(Adapter):
    """Trains only the propagation. The backbone does not change, to the byte."""

    def attach(self, backbone: Backbone, propagation: Propagation) -> None:
        """See `Adapter.attach`."""
        backbone.requires_grad_(False)
        propagation.requires_grad_(True)

    def save(self, folder: Path) -> None:
        """Write a file without tensors: nothing of the backbone was trained."""
        _write({}, folder)

    def load(self, folder: Path) -> None:
        """See `Adapter.load`."""
        read_adapter(folder, {})

    def disabled(self) -> AbstractContextManager[None]:
        """See `Adapter.disabled`: the backbone is always as it was."""
        return nullcontext()


class Full(Adapter):
    """Trains every tensor of the backbone that a training step reaches, for pretraining and for comparison.

    Args:
        propagation: Whether the propagation is trained (`full`) or not (`frozen`).
    """

    def __init__(self, propagation: Literal["full", "frozen"] = "full") -> None:
        self.propagation = propagation

    def attach(self, backbone: Backbone, propagation: Propagation) -> None:
        """See `Adapter.attach`."""
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(not name.startswith(UNREACHED))
        propagation.requires_grad_(self.propagation == "full")
        self.backbone = backbone

    def save(self, folder: Path) -> None:
        """See `Adapter.save`."""
        _write(self._trained(), folder)

    def load(self, folder: Path) -> None:
        """See `Adapter.load`."""
        self.backbone.load_state_dict(read_adapter(folder, self._trained()), strict=False)

    def _trained(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.backbone.named_parameters() if value.requires_grad}


def _write(tensors: dict[str, Tensor], folder: Path) -> None:
    with whole_file(folder / NAME) as part:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, part)
