"""An adapter that trains the last stage of a trunk and the layers behind it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mois.interfaces import Adapter, Backbone, Propagation

FILE = "adapter_model.safetensors"


class LateLayers(Adapter):
    """Trains the neck and the last stages of the trunk, as they are.

    Args:
        stages: Number of stages of the trunk that are trained, counted from the last.
    """

    def __init__(self, stages: int = 1) -> None:
        self.stages = stages

    def attach(self, backbone: Backbone, propagation: Propagation) -> None:
        """See `Adapter.attach`."""
        parts = backbone.parts()
        trunk = list(parts["trunk"].children())
        if not 1 <= self.stages <= len(trunk):
            raise ValueError(f"model.adapter.init_args.stages={self.stages}; this trunk has {len(trunk)} stages.")
        backbone.requires_grad_(False)
        self.trained = nn.ModuleList([*trunk[-self.stages :], parts["neck"]]).requires_grad_(True)
        propagation.requires_grad_(True)

    def save(self, folder: Path) -> None:
        """See `Adapter.save`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().cpu() for name, value in self.trained.named_parameters()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """See `Adapter.load`."""
        stored, own = load_file(folder / FILE), dict(self.trained.named_parameters())
        if stored.keys() != own.keys():
            raise ValueError(f"{folder / FILE} holds other tensors than this adapter trains.")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(stored[name])
