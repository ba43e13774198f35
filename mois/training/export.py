"""Writes the weights of a pretraining as the files that a backbone and its propagations load."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save_file

from mois.backbones.weights import file_sha256
from mois.interfaces import Backbone, WeightsIdentity
from mois.propagation.weights import save_propagation
from mois.training.module import ExemplarSegmenter


class ExportWeights(Callback):
    """At the end of `fit`, writes NAME.safetensors and NAME_PROPAGATION.safetensors in half precision.

    Args:
        folder: Where to; by default `weights` in the run's folder. Copy the files to mois/weights to bundle them.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files, on one rank."""
        if not isinstance(pl_module, ExemplarSegmenter):
            raise ValueError(
                f"ExportWeights writes the weights of an ExemplarSegmenter, not of {type(pl_module).__name__}"
            )
        if trainer.is_global_zero:
            export_weights(pl_module, Path(self.folder or Path(trainer.default_root_dir) / "weights"))


def export_adapter(module: ExemplarSegmenter, folder: Path) -> None:
    """Write what was trained: the adapter, in PEFT's format where it is of peft, and the propagation."""
    module.adapter.save(folder)
    save_propagation(module.propagation, folder / "propagation.safetensors", module.backbone.identity)


def export_weights(module: ExemplarSegmenter, folder: Path) -> None:
    """Write a module's backbone and propagations as half-precision safetensors that belong together."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone: Backbone = module.backbone
    name = backbone.identity.name
    path, part = folder / f"{name}.safetensors", folder / f"{name}.safetensors.part"
    tensors = {key: tensor.detach().cpu().half().contiguous() for key, tensor in backbone.weights().items()}
    save_file(tensors, part)
    part.rename(path)
    identity = WeightsIdentity(name, "bundled", file_sha256(path))
    for propagation in module.propagations.values():
        file = folder / f"{name}_{type(propagation).__name__.lower()}.safetensors"
        save_propagation(propagation, file, identity, torch.float16)
