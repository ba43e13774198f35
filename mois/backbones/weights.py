"""Where a backbone's weights come from, and what proves which they are."""

from __future__ import annotations

import hashlib
import pickle
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mois.files import file_sha256
from mois.interfaces import WeightsIdentity

HUB_FILES = {
    "facebook/sam2.1-hiera-tiny": "sam2.1_hiera_tiny.pt",
    "facebook/sam2.1-hiera-small": "sam2.1_hiera_small.pt",
    "facebook/sam2.1-hiera-base-plus": "sam2.1_hiera_base_plus.pt",
    "facebook/sam2.1-hiera-large": "sam2.1_hiera_large.pt",
}


def bundled_file(name: str) -> Path:
    """Return the path of a weights file that ships with this package, such as "nano.safetensors"."""
    return Path(str(files("mois") / "weights" / name))


def load_weights(model: nn.Module, name: str, weights: str) -> WeightsIdentity:
    """Fill a model with weights, every tensor or none.

    Args:
        model: To be filled.
        name: Size of the model, for the identity and for `bundled`.
        weights: `bundled`, `random`, a path (.pt or .safetensors) or a hub id.

    Returns:
        Which weights the model holds now.

    Raises:
        ValueError: If there is no such file, it is no plain checkpoint of tensors, or tensors are missing, left over or
            of another shape.
    """
    if weights == "random":
        return WeightsIdentity(name, "random", tensors_sha256(model.state_dict()))
    path, source = _locate(name, weights)
    load_exactly(model, read_tensors(path), f"backbone.weights={source}")
    return WeightsIdentity(name, source, file_sha256(path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint's tensors without running any code that it holds.

    Raises:
        ValueError: If the file is not a checkpoint of plain tensors.
    """
    if path.suffix == ".safetensors":
        return {key: tensor.float() for key, tensor in load_file(path).items()}
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is refused: it does not load as plain tensors (weights_only=True): {reason} "
            "Use an official SAM 2.1 checkpoint or a .safetensors file (backbone.weights)."
        ) from error
    state = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else checkpoint
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no table of tensors; use an official SAM 2.1 checkpoint (backbone.weights).")
    return state


def load_exactly(model: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Load tensors into a model, all of them and nothing else.

    Raises:
        ValueError: If names or shapes differ; the message lists them.
    """
    wanted = model.state_dict()
    missing = sorted(wanted.keys() - tensors.keys())
    left_over = sorted(tensors.keys() - wanted.keys())
    reshaped = sorted(
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted.keys() & tensors.keys()
        if tensors[key].shape != wanted[key].shape
    )
    faults = [
        f"{len(keys)} {word}: {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}"
        for word, keys in (("missing", missing), ("unknown", left_over), ("of another shape", reshaped))
        if keys
    ]
    if faults:
        raise ValueError(f"{what} does not fit the model ({len(wanted)} tensors): {'; '.join(faults)}.")
    model.load_state_dict(tensors)


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """Return a digest of names, shapes and values, whatever the order."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _locate(name: str, weights: str) -> tuple[Path, str]:
    if weights == "bundled":
        path = bundled_file(f"{name}.safetensors")
        if not path.is_file():
            raise ValueError(
                f"backbone.weights=bundled exists for size nano only, got size {name}; give a path to an official "
                f"checkpoint, a hub id ({', '.join(HUB_FILES)}) or random."
            )
        return path, "bundled"
    path = Path(weights).expanduser()
    if path.is_file():
        return path, path.name
    if weights in HUB_FILES:
        return _download(weights), weights
    raise ValueError(
        f"backbone.weights={weights} is no file, nor bundled, random or a hub id ({', '.join(HUB_FILES)}); "
        "check the path."
    )


def _download(hub_id: str) -> Path:
    from huggingface_hub import hf_hub_download  # costs a second to import, and only this path needs it

    try:
        return Path(hf_hub_download(hub_id, HUB_FILES[hub_id]))
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"backbone.weights={hub_id} cannot be downloaded ({reason}); give a path to the file."
        ) from error
