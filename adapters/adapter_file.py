"""Reads the file of an adapter. A file that does not fit is refused in one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mois.backbones.checkpoint_files import read_tensor_file
from mois.backbones.layouts import check_values

NAME = "adapter_model.safetensors"


def read_adapter(folder: Path, wanted: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of an adapter's file.

    Args:
        folder: Folder of the file.
        wanted: Tensors that the file must hold, by name.
        prefix: Beginning of each name in the file; it is removed.

    Raises:
        ValueError: If the file is damaged, or its tensors differ in name or shape from the wanted tensors.
    """
    file = folder / NAME
    tensors = {name.removeprefix(prefix): each for name, each in read_tensor_file(file, f"{file}").tensors.items()}
    whole = {name for name, tensor in wanted.items() if not tensor.is_floating_point()}  # places of trained numbers
    check_values({name: tensor for name, tensor in tensors.items() if name not in whole}, f"{file}")
    missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    reshaped = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & tensors.keys())
        if tensors[name].shape != wanted[name].shape
    ]
    retyped = [name for name in sorted(whole & tensors.keys()) if tensors[name].dtype != wanted[name].dtype]
    sorts = (("missing", missing), ("unknown", unknown), ("of another shape", reshaped), ("of another type", retyped))
    faults = [
        f"{len(names)} {word}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for word, names in sorts
        if names
    ]
    if faults:
        raise ValueError(
            f"{file} is of another adapter ({'; '.join(faults)}); choose the adapter and the settings that it was "
            "trained with."
        )
    return tensors
