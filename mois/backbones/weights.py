"""Finds and loads the weights of a backbone, and returns their identity."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
import warnings
from importlib.resources import files
from pathlib import Path

from torch import Tensor, nn

from mois.backbones.checkpoint_files import read_tensor_file
from mois.backbones.layouts import arrange, check_values
from mois.files.atomic import file_sha256
from mois.files.tensor_records import tensors_sha256
from mois.records import WeightsIdentity

_SIZES = ("tiny", "small", "base-plus", "large")
HUB_FILES = {f"facebook/sam2.1-hiera-{size}": f"sam2.1_hiera_{size.replace('-', '_')}.pt" for size in _SIZES}
"""Hub repositories of the checkpoints of Meta, and the file in each."""

HUB_FILES_TRANSFORMERS = {f"{repository}-hf": "model.safetensors" for repository in HUB_FILES}
"""Hub repositories of the same weights in the layout of transformers."""

HUB_TIMEOUT_S = 10.0


BUNDLED = {"bundled": "", "bundled-2": "_2"}
"""Names of the weights that ship with this package, and what they add to the names of their files."""


def bundled_file(name: str) -> Path:
    """Return the path of a weights file that ships with this package, such as "nano.safetensors"."""
    return Path(str(files("mois") / "weights" / name))


def load_weights(model: nn.Module, name: str, weights: str) -> WeightsIdentity:
    """Load weights into a model: every tensor, or none if one does not fit.

    Args:
        model: The model.
        name: Size of the model, for the identity and for `bundled`.
        weights: `bundled-2`, `bundled` (the first one), `random`, a hub id or a path: a .pt or .safetensors file in the
            layout of Meta or of transformers, or a folder that holds such a file.

    Returns:
        Identity of the weights.

    Raises:
        ValueError: If the file is missing or no plain checkpoint of tensors. Also if tensors are missing, left over or
            of another shape.
    """
    if weights == "random":
        return WeightsIdentity(name, "random", tensors_sha256(model.state_dict()))
    path, source = _locate(name, weights)
    what = f"backbone.weights={weights}"
    wanted = model.state_dict()
    tensors = arrange(read_tensor_file(path, what), list(wanted), name, what)
    load_exactly(model, tensors, what, converts=weights not in BUNDLED)
    return WeightsIdentity(name, source, file_sha256(path))


def load_exactly(model: nn.Module, tensors: dict[str, Tensor], what: str, *, converts: bool = False) -> None:
    """Load tensors into a model. Their names must be exactly the names of the model.

    Args:
        model: The model.
        tensors: Tensors of any floating type. The model keeps its own type.
        what: Name of the tensors, for messages.
        converts: Whether to warn if the tensors are not float32.

    Raises:
        ValueError: If names or shapes differ; the message lists them. Also if a number is NaN or infinite.
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
    check_values(tensors, what)
    if converts and (kinds := {str(each.dtype) for each in tensors.values()} - {"torch.float32"}):
        given = " and ".join(sorted(kind.removeprefix("torch.") for kind in kinds))
        warnings.warn(f"{what} holds {given}; it is converted to float32.", stacklevel=2)
    model.load_state_dict(tensors)


def _locate(name: str, weights: str | None) -> tuple[Path, str]:
    if not weights:
        raise ValueError(
            f"backbone.weights={'null' if weights is None else repr(weights)} names nothing; {_choices()}."
        )
    if weights in BUNDLED:
        path = bundled_file(f"{name}{BUNDLED[weights]}.safetensors")
        if not path.is_file():
            raise ValueError(
                f"backbone.weights={weights} exists for size nano only, got size {name}; give a path to an official "
                f"checkpoint, a hub id ({', '.join(HUB_FILES)}) or random."
            )
        return path, weights
    path = Path(os.path.expanduser(weights))  # noqa: PTH111 - without a home, `Path` raises a RuntimeError
    if path.is_file():
        return path, path.name
    if path.is_dir():
        return _of_folder(path), path.name
    if path.exists():
        raise ValueError(f"backbone.weights={weights} is a device or a pipe; give a regular file.")
    if weights in HUB_FILES or weights in HUB_FILES_TRANSFORMERS:
        return _download(weights), weights
    if weights.lower().startswith("facebook/sam2-hiera"):
        raise ValueError(f"backbone.weights={weights} is SAM 2.0; take SAM 2.1: {', '.join(HUB_FILES)}.")
    if "://" in weights:
        raise ValueError(f"backbone.weights={weights} is an address; download the file, and give its path.")
    raise ValueError(f"backbone.weights={weights} is no file, nor {_choices()}; check the path.")


def _choices() -> str:
    return f"{', '.join(BUNDLED)}, random or a hub id ({', '.join(HUB_FILES)})"


def _of_folder(folder: Path) -> Path:
    """Return the checkpoint in a folder that transformers or the hub wrote.

    Raises:
        ValueError: If it is another folder; the message says which.
    """
    what = f"backbone.weights={folder}"
    if (folder / "bundle.json").is_file():
        raise ValueError(
            f"{what} is a bundle; give it to --bundle (mois segment, mois evaluate), and here the backbone's own file."
        )
    if (folder / "adapter_config.json").is_file() or (folder / "adapter_model.safetensors").is_file():
        raise ValueError(
            f"{what} is an adapter's folder, which holds only what was trained; give the backbone's own checkpoint."
        )
    there = sorted(file for file in folder.iterdir() if file.suffix in (".pt", ".pth", ".safetensors"))
    whole = [file for file in there if file.name == "model.safetensors"] or there
    if len(whole) == 1:
        return whole[0]
    cure = f"give one of {', '.join(file.name for file in there[:5])}" if there else "give a file"
    raise ValueError(f"{what} is a folder that holds {len(there)} checkpoints; {cure}.")


def _download(hub_id: str) -> Path:
    from huggingface_hub import constants, hf_hub_download  # takes a second to import, and only a download needs it
    from huggingface_hub.errors import LocalEntryNotFoundError

    file = HUB_FILES.get(hub_id) or HUB_FILES_TRANSFORMERS[hub_id]
    try:
        return Path(hf_hub_download(hub_id, file, local_files_only=True))
    except LocalEntryNotFoundError:
        reason = why_unreachable(constants.ENDPOINT)
    if reason is None:
        try:
            return Path(hf_hub_download(hub_id, file))
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
    raise ValueError(
        f"backbone.weights={hub_id} cannot be downloaded ({reason}); download {file} from "
        f"{constants.ENDPOINT}/{hub_id} on a machine that can, and give its path."
    )


def why_unreachable(address: str) -> str | None:
    """Return why a server is unreachable, or None. The client of the hub would try six times, each with a message."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return None  # it answered
    except (OSError, ValueError) as error:
        return f"{address}: {getattr(error, 'reason', error)}"
    return None
