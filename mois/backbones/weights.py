"""Where a backbone's weights come from, and what proves which they are."""

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
"""Repositories of Meta's checkpoints."""

HUB_FILES_TRANSFORMERS = {f"{repository}-hf": "model.safetensors" for repository in HUB_FILES}
"""Repositories of the same weights in transformers' layout."""

HUB_TIMEOUT_S = 10.0


def bundled_file(name: str) -> Path:
    """Return the path of a weights file that ships with this package, such as "nano.safetensors"."""
    return Path(str(files("mois") / "weights" / name))


def load_weights(model: nn.Module, name: str, weights: str) -> WeightsIdentity:
    """Fill a model with weights, every tensor or none.

    Args:
        model: To be filled.
        name: Size of the model, for the identity and for `bundled`.
        weights: `bundled`, `random`, a path (.pt or .safetensors, in Meta's layout or that of transformers; or a folder
            that holds one) or a hub id.

    Returns:
        Which weights the model holds now.

    Raises:
        ValueError: If there is no such file, it is no plain checkpoint of tensors, or tensors are missing, left over or
            of another shape.
    """
    if weights == "random":
        return WeightsIdentity(name, "random", tensors_sha256(model.state_dict()))
    path, source = _locate(name, weights)
    what = f"backbone.weights={weights}"
    wanted = model.state_dict()
    tensors = arrange(read_tensor_file(path, what), list(wanted), name, what)
    load_exactly(model, tensors, what, converts=weights != "bundled")
    return WeightsIdentity(name, source, file_sha256(path))


def load_exactly(model: nn.Module, tensors: dict[str, Tensor], what: str, *, converts: bool = False) -> None:
    """Load tensors into a model, all of them and nothing else.

    Args:
        model: To be filled.
        tensors: In any floating type; the model keeps its own.
        what: What a message calls them.
        converts: Whether to warn where the types differ.

    Raises:
        ValueError: If names or shapes differ, and the message lists them; or if a number is NaN or infinite.
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
    if weights == "bundled":
        path = bundled_file(f"{name}.safetensors")
        if not path.is_file():
            raise ValueError(
                f"backbone.weights=bundled exists for size nano only, got size {name}; give a path to an official "
                f"checkpoint, a hub id ({', '.join(HUB_FILES)}) or random."
            )
        return path, "bundled"
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
    return f"bundled, random or a hub id ({', '.join(HUB_FILES)})"


def _of_folder(folder: Path) -> Path:
    """Return the checkpoint of a folder that transformers or the hub wrote.

    Raises:
        ValueError: Saying what folder it is where it is another one.
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
    from huggingface_hub import constants, hf_hub_download  # costs a second to import, and only this path needs it
    from huggingface_hub.errors import LocalEntryNotFoundError

    file = HUB_FILES.get(hub_id) or HUB_FILES_TRANSFORMERS[hub_id]
    try:
        return Path(hf_hub_download(hub_id, file, local_files_only=True))
    except LocalEntryNotFoundError:
        reason = _why_unreachable(constants.ENDPOINT)
    if reason is None:
        try:
            return Path(hf_hub_download(hub_id, file))
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
    raise ValueError(
        f"backbone.weights={hub_id} cannot be downloaded ({reason}); download {file} from "
        f"{constants.ENDPOINT}/{hub_id} on a machine that can, and give its path."
    )


def _why_unreachable(address: str) -> str | None:
    """Return why a server cannot be asked, or None; the hub's own client would try six times, and say so each time."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return None  # it answered
    except (OSError, ValueError) as error:
        return f"{address}: {getattr(error, 'reason', error)}"
    return None
