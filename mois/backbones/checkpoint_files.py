"""Reads files of tensors. The content decides the format, not the name. For other files, a message says what it is."""

from __future__ import annotations

import json
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

GIVE = "give a .pt or .safetensors file of SAM 2.1"
_AGAIN = "download or copy it again"
_LARGEST_HEADER = 100 << 20  # bytes; the limit of safetensors
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of files of torch before 1.6: the pickle of a number. Four more pickles come before the tensors."""
_LEGACY_PICKLES = 5
_TABLES = ("model", "state_dict", "model_state_dict", "module")
"""Keys under which training programs store the tensors of a model. The first key in the file is used."""

_ARCHIVES = (
    (b"\x1f\x8b", "gzip"),
    (b"7z\xbc\xaf", "7z"),
    (b"Rar!", "rar"),
    (b"\xfd7zXZ", "xz"),
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)
_OTHERS = (
    (b"\x89HDF", "an HDF5 file (Keras?)"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89PNG", "a picture"),
    (b"%PDF", "a PDF"),
)


class TensorFile(NamedTuple):
    """Content of a file of tensors.

    Attributes:
        tensors: Name to tensor, in the types of the file.
        metadata: Metadata of a .safetensors file; {} for other formats.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_tensor_file(path: Path, what: str) -> TensorFile:
    """Read the tensors of a checkpoint without running code from it.

    Args:
        path: A file with any suffix.
        what: Name of the file for messages, such as "backbone.weights=sam.pt".

    Raises:
        ValueError: If the file holds no plain table of tensors; the message says what it is.
    """
    with path.open("rb") as file:
        head = file.read(1 << 10)
    if head.startswith(b"PK\x03\x04"):
        return TensorFile(_table(_unpack(path, what), what), {})
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER:
        return _read_safetensors(path, what)
    if head[:1] == b"\x80":
        return TensorFile(_table(_load(path, what), what), {})
    raise ValueError(f"{what} {_called(head, path)}.")


def cut_short(path: Path) -> bool:
    """Return whether a checkpoint was cut off: a zip without its table, or pickles or tensors without their end."""
    with path.open("rb") as file:
        head = file.read(len(_LEGACY))
        if head.startswith(b"PK"):
            return not zipfile.is_zipfile(path)
        if head[:1] != _LEGACY[:1]:
            return False
        file.seek(0)
        try:
            for _ in range(_LEGACY_PICKLES if head == _LEGACY else 1):
                for _ in pickletools.genops(file):  # runs nothing
                    pass
        except ValueError:
            return not file.read(1)
        file.seek(0)
        try:
            torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # as in _load
            return "unexpected EOF" in str(error)
    return False


def _called(head: bytes, path: Path) -> str:
    """Return the end of a sentence on a file without tensors: what it is, and what to do."""
    if not head:
        return f"is an empty file; {_AGAIN}"
    if head.startswith(b"version https://git-lfs"):
        size = re.search(rb"size (\d+)", head)
        missing = f" of {int(size[1]) / 1e6:.0f} MB" if size else ""
        return f"is a git-lfs pointer instead of the file{missing}; fetch that with `git lfs pull`"
    for start, name in _ARCHIVES:
        if head.startswith(start):
            return f"is a {name} archive; unpack it, and {GIVE}"
    if head[257:262] == b"ustar":
        return f"is a tar archive; unpack it, and {GIVE}"
    for start, name in _OTHERS:
        if head.startswith(start):
            return f"is {name}; {GIVE}"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<"):
        return f"is a web page instead of the file; {_AGAIN} (the address of the file itself, not of its page)"
    if text.startswith((b"{", b"[")):
        index = "weight_map" in head.decode(errors="replace")
        return f"is {'the index of a checkpoint in several files' if index else 'a JSON file'}; {GIVE}"
    if b"\0" not in head and head.isascii():
        return f"is a text file; {GIVE}"
    if not any(head):
        return f"begins with {len(head)} zeros, so that its copy was cut short; {_AGAIN}"
    return f"is no checkpoint (its {path.stat().st_size} bytes begin with {head[:4].hex(' ')}); {GIVE}"


def _read_safetensors(path: Path, what: str) -> TensorFile:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
    wanted = 8 + length + _end_of_data(header)
    if len(header) < length or size < wanted:
        whole = f" of {wanted}" if len(header) == length else ""
        raise ValueError(f"{what} is cut short ({size}{whole} bytes); {_AGAIN}.")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return TensorFile(tensors, dict(file.metadata() or {}))
    except (SafetensorError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{what} is a damaged .safetensors file ({reason}); {_AGAIN}.") from error


def _end_of_data(header: bytes) -> int:
    """Return the end of the last tensor of a .safetensors file, in bytes after its header; 0 if unknown."""
    try:
        entries = json.loads(header)
        return max(
            (int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"), default=0
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return 0


def _unpack(path: Path, what: str) -> Any:
    """Return the content of a checkpoint in the current format of torch."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith("constants.pkl") for name in names):
                raise ValueError(f"{what} is a TorchScript program; {GIVE}.")
            if not any(name.endswith("data.pkl") for name in names):
                shown = ", ".join(names[:3]) or "nothing"
                raise ValueError(f"{what} is a zip archive (of {shown}) and no checkpoint; {GIVE}.")
            if damaged := archive.testzip():  # torch does not look at check sums
                raise ValueError(f"{what} is damaged (the check sum of {damaged} is wrong); {_AGAIN}.")
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        how = f"cut short ({path.stat().st_size} bytes)" if cut_short(path) else "damaged"
        raise ValueError(f"{what} is {how}; {_AGAIN}.") from error
    return _load(path, what)


def _load(path: Path, what: str) -> Any:
    try:
        with path.open("rb") as file:  # torch would guess the format of a path from its suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever a pickle that somebody made brings up: nothing of it was run
        if cut_short(path):
            raise ValueError(f"{what} is cut short ({path.stat().st_size} bytes); {_AGAIN}.") from error
        # torch's first line advises to run foreign code
        detail = re.search(r"WeightsUnpickler error: (.*)", str(error))
        reason = detail[1] if detail else str(error).partition("\n")[0]
        reason = type(error).__name__ if not reason or "weights_only" in reason else reason
        named = re.search(
            r"(?:Unsupported global: GLOBAL|Unsupported class|Trying to load unsupported GLOBAL) (\S+)", str(error)
        )
        if named is None:
            raise ValueError(f"{what} is damaged or no checkpoint ({reason}); {_AGAIN}.") from error
        raise ValueError(
            f"{what} is refused: it does not load as plain tensors (weights_only=True), since it names "
            f"{named[1].rstrip('.,')}, and loading it could run foreign code; {GIVE} that holds tensors alone "
            "(model.state_dict())."
        ) from error


def _table(content: Any, what: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, from any of the usual keys of training programs."""
    if isinstance(content, Mapping) and {"mois", "state_dict", "global_step"} <= content.keys():
        raise ValueError(
            f"{what} is the checkpoint of a training (step {content['global_step']}), which holds only what was "
            "trained; give it to --ckpt_path, or the training's folder `bundle` to --bundle."
        )
    tables = [content] if isinstance(content, Mapping) else []
    tables += [content[key] for key in _TABLES if tables and isinstance(content.get(key), Mapping)]
    for table in tables:
        if table and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in table.items()):
            return dict(table)
    if isinstance(content, Mapping):
        there = f"its keys are {', '.join(map(str, list(content)[:5])) or 'none'}"
    else:
        there = f"it is a {type(content).__name__}"
    raise ValueError(f"{what} holds no table of tensors by name ({there}); {GIVE}.")
