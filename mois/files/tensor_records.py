"""Writes tensors with metadata as .safetensors files, and checks them when they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mois.errors import DataError
from mois.files.atomic import read_regular, write_bytes
from mois.files.json_records import as_record, parse_json

LARGEST_FEATURE = 1e9
"""Largest absolute value of a feature, so that sums of squares fit float32."""
_CURE = "give another file"


class TensorRecord(NamedTuple):
    """Content of a .safetensors file.

    Attributes:
        tensors: Name to tensor.
        metadata: Metadata in the header.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, whole or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(plain, dict(metadata) if metadata else None))


def read_tensors(path: Path, cure: str = _CURE) -> TensorRecord:
    """Read the tensors of a regular file.

    Raises:
        DataError: If the file is no .safetensors file.
        FileNotFoundError: If the file does not exist.
    """
    return parse_tensors(read_regular(path), str(path), cure)


def parse_tensors(content: bytes, name: str, cure: str = _CURE) -> TensorRecord:
    """Return the tensors in the content of a .safetensors file.

    Args:
        content: Length of the header, header as JSON, tensors.
        name: Name of the file, for messages.
        cure: End of the message.

    Raises:
        DataError: If the content is cut short, or of another layout.
    """
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise DataError(f"{name} is cut short or no .safetensors file; {cure}.")
    header = parse_json(content[8 : 8 + length], f"{name}: its header", cure)
    raw_metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    metadata = as_record(raw_metadata, dict[str, str], f"{name}: its metadata", cure)
    try:
        return TensorRecord(load(content), metadata)
    except (SafetensorError, ValueError, TypeError, RuntimeError, LookupError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name} is cut short or no .safetensors file ({reason}); {cure}.") from error


def check_features(tensors: Mapping[str, Tensor], name: str, cure: str = _CURE) -> None:
    """Refuse tensors that are not float32, not finite, or beyond `LARGEST_FEATURE`.

    Raises:
        DataError: If there is such a tensor; the message names it.
    """
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise DataError(f"{name}: {key} is {tensor.dtype}, not float32; {cure}.")
        if not bool((tensor.abs() <= LARGEST_FEATURE).all()):
            raise DataError(f"{name}: {key} holds values that are not finite, or beyond {LARGEST_FEATURE:g}; {cure}.")


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes, types and values. The order plays no part."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
