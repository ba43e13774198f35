"""Weight files of a propagation. A file records the backbone that it belongs to."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from mois.backbones.checkpoint_files import read_tensor_file
from mois.backbones.weights import BUNDLED, bundled_file, load_exactly
from mois.files.atomic import whole_file
from mois.interfaces import Backbone, Propagation
from mois.records import WeightsIdentity


def load_propagation(propagation: Propagation, weights: str, backbone: Backbone) -> None:
    """Load weights into a built propagation: every tensor, or none if one does not fit.

    Args:
        propagation: The built propagation.
        weights: `random` (keep the initial weights), `bundled-2` or `bundled` (pretrained with the bundled backbone of
            that name) or a path.
        backbone: The backbone whose features the propagation gets.

    Raises:
        ValueError: If the file is missing, was trained with another backbone, or does not fit.
    """
    if weights == "random":
        return
    if not weights:
        raise ValueError(
            f"propagation.weights={'null' if weights is None else repr(weights)} names nothing; give random, bundled, "
            "or a path to a .safetensors file."
        )
    name = type(propagation).__name__.lower()
    if weights in BUNDLED:
        path = bundled_file(f"{backbone.identity.name}{BUNDLED[weights]}_{name}.safetensors")
    else:
        path = Path(weights)
    if not path.is_file():
        raise ValueError(
            f"propagation.weights={weights}: there is no {path.name}; for the nano backbone there are bundled-2 with "
            "learned matching, and bundled with similarity and attention; otherwise give a path to a .safetensors "
            "file, or random."
        )
    option = f"propagation.weights={weights}"
    file = read_tensor_file(path, option)
    if "backbone_sha256" not in file.metadata:
        raise ValueError(
            f"{option} does not say which backbone it was trained with; give the propagation.safetensors of a bundle, "
            "bundled-2, bundled or random."
        )
    trained_with = file.metadata["backbone_sha256"]
    if trained_with != backbone.identity.sha256:
        raise ValueError(
            f"propagation.weights={weights} were trained with backbone sha256 {trained_with[:12]}, this one is "
            f"{backbone.identity.name} ({backbone.identity.source}, sha256 {backbone.identity.sha256[:12]}); use "
            "its own weights, or random."
        )
    load_exactly(propagation, propagation.complete(file.tensors), option)


def save_propagation(
    propagation: nn.Module, path: Path, backbone: WeightsIdentity, dtype: torch.dtype = torch.float32
) -> None:
    """Write the weights of a propagation with the identity of the backbone that they belong to."""
    tensors = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in propagation.state_dict().items()}
    with whole_file(path) as part:
        save_file(tensors, part, {"backbone": backbone.name, "backbone_sha256": backbone.sha256})
