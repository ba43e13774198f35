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
    option = f"propagation.weights={weights}"
    if not path.is_file():
        raise ValueError(f"{option}: there is no {path.name}; give {_choices(propagation, backbone)}.")
    file = read_tensor_file(path, option)
    if "backbone_sha256" not in file.metadata:
        raise ValueError(
            f"{option} does not say which backbone it was trained with; give the propagation.safetensors of a bundle, "
            "bundled-2, bundled or random."
        )
    trained_with = file.metadata["backbone_sha256"]
    if trained_with != backbone.identity.sha256:
        raise ValueError(
            f"{option} were trained with backbone sha256 {trained_with[:12]}, this one is {backbone.identity.name} "
            f"({backbone.identity.source}, sha256 {backbone.identity.sha256[:12]}); give "
            f"{_choices(propagation, backbone)}."
        )
    load_exactly(propagation, propagation.complete(file.tensors), option)


def _choices(propagation: Propagation, backbone: Backbone) -> str:
    """Return the weights that a propagation can have, in words."""
    name = type(propagation).__name__
    there = [
        known if known == backbone.identity.source else f"{known} (with model.backbone.init_args.weights={known})"
        for known, ending in BUNDLED.items()
        if bundled_file(f"{backbone.identity.name}{ending}_{name.lower()}.safetensors").is_file()
    ]
    bundled = f"{' or '.join(there)}, " if there else ""
    return f"{bundled}a path to a .safetensors file, or random ({name} then begins untrained)"


def save_propagation(
    propagation: nn.Module, path: Path, backbone: WeightsIdentity, dtype: torch.dtype = torch.float32
) -> None:
    """Write the weights of a propagation with the identity of the backbone that they belong to."""
    tensors = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in propagation.state_dict().items()}
    with whole_file(path) as part:
        save_file(tensors, part, {"backbone": backbone.name, "backbone_sha256": backbone.sha256})
