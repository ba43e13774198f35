"""The file of an exemplar bank: tensors, and a record with digests.

In format 3 the record is one JSON text, `content`, with the sha256 of the tensors and of itself. Format 2 has no
digest, so it cannot be checked, and a warning says so. To add a key: add a field to `BankRecord`, and the value for
banks without the key to `_upgraded`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mois.errors import DataError
from mois.files.json_records import DIGEST, as_record, check_seal, parse_json, sealed
from mois.files.tensor_records import check_features, read_tensors, tensors_sha256, write_tensors
from mois.intensities import FIRST, Normalisation
from mois.sharing.identity import ModelIdentity

FORMAT = "mois exemplar bank"
FORMAT_VERSION = 3
_CURE = "give another file, or make the bank again"
_KEYS = ("format", "format_version", "content")
_KEYS_2 = ("format", "format_version", "version", "identity", "pixel_mm", "exemplars")
_IDENTITY_2 = ("backbone", "adapter_sha256", "propagation", "propagation_sha256")


@dataclass(frozen=True)
class ExemplarFacts:
    """An exemplar without its tokens.

    Attributes:
        key: Key of the exemplar, unique within a bank.
        scan: Subject of the scan.
        patient: Patient of the scan.
        position_lps_mm: Centre of the lesion on its slice, LPS mm.
        area_mm2: Area of the lesion on its slice.
        mean_intensity: Mean normalised intensity inside the lesion.
        contrast: This mean minus the mean of a ring around the lesion.
        negative: Whether the exemplar shows what must not be found.
        weight: 0 or more. A weight of 2 counts as two equal exemplars.
    """

    key: str
    scan: str
    patient: str
    position_lps_mm: tuple[float, float, float]
    area_mm2: float
    mean_intensity: float
    contrast: float
    negative: bool
    weight: float


@dataclass(frozen=True)
class BankRecord:
    """A bank without its tensors.

    Attributes:
        version: Number of changes of the bank.
        identity: Identity of the model that described the exemplars.
        pixel_mm: Edge of the pixels in millimetres.
        normalisation: Normalisation of the scans' intensities.
        exemplars: Facts of the exemplars, in the order of the tensors' first axis.
        tensors_sha256: SHA-256 of the tensors.
        channels: Names of the channels that the model saw; none for one image of any name.
    """

    version: int
    identity: ModelIdentity
    pixel_mm: float
    normalisation: Normalisation
    exemplars: tuple[ExemplarFacts, ...]
    tensors_sha256: str
    channels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.version < 0 or self.pixel_mm <= 0:
            raise ValueError("a version is 0 or more, and pixel_mm above 0")
        keys = [facts.key for facts in self.exemplars]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise ValueError(f"two exemplars have the key {twice}")


def write_bank(
    path: Path,
    tensors: Mapping[str, Tensor],
    exemplars: Sequence[ExemplarFacts],
    identity: ModelIdentity,
    pixel_mm: float,
    normalisation: Normalisation,
    version: int,
    channels: Sequence[str] = (),
) -> None:
    """Write a bank, whole or not at all.

    Args:
        path: The file.
        tensors: Name of a token -> tensor (K, ...).
        exemplars: Facts of the K exemplars.
        identity: Identity of the model that described them.
        pixel_mm: Edge of the pixels in millimetres.
        normalisation: Normalisation of the scans' intensities.
        version: Number of changes of the bank.
        channels: Names of the channels that the model saw.
    """
    digest = tensors_sha256(tensors)
    record = BankRecord(version, identity, pixel_mm, normalisation, tuple(exemplars), digest, tuple(channels))
    plain = {**asdict(record), "identity": identity.as_dict()}
    if not channels:  # as banks of earlier versions had it, which name no channels
        del plain["channels"]
    content = sealed(plain)
    metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "content": json.dumps(content)}
    write_tensors(path, tensors, metadata)


def read_bank(path: Path) -> tuple[BankRecord, dict[str, Tensor]]:
    """Read a bank: its record, and a float32 tensor (K, ...) for each token.

    Raises:
        DataError: If the file is missing, damaged, changed, or of a format that this version does not read.
    """
    name = str(path)
    try:
        tensors, metadata = read_tensors(path, _CURE)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such bank; give the file that a session saved.") from None
    if metadata.get("format") != FORMAT:
        raise DataError(f"{path} is no exemplar bank; give the file that a session saved.")
    given = metadata.get("format_version")
    if given == "2":
        content = _upgraded(metadata, tensors, name)
        warnings.warn(
            f"{path}: unverified: format 2 (it has no digest that proves that it is as it was written)", stacklevel=4
        )
    elif given == str(FORMAT_VERSION):
        _exactly(metadata, _KEYS, name, given)
        content = parse_json(metadata["content"], name, _CURE)
        if not isinstance(content, dict):
            raise DataError(f"{name}: its content is no table; {_CURE}.")
        check_seal(content, name, _CURE)
    else:
        raise DataError(
            f"{path} is a bank of format {given}, this version reads 2 and {FORMAT_VERSION}; make it again with this "
            "version, or use the version that made it."
        )
    plain = {key: value for key, value in content.items() if key != DIGEST}
    record = as_record(plain, BankRecord, name, _CURE, later=("channels",))
    if record.tensors_sha256 != tensors_sha256(tensors):
        raise DataError(f"{name} was changed after it was written (its tensors are others); {_CURE}.")
    check_features(tensors, name, _CURE)
    if any(not token.ndim or len(token) != len(record.exemplars) for token in tensors.values()):
        raise DataError(f"{name} is a damaged exemplar bank (tokens and entries differ in number); {_CURE}.")
    if record.exemplars and not tensors:
        raise DataError(f"{name} is a damaged exemplar bank (its exemplars have no tokens); {_CURE}.")
    return record, tensors


def _upgraded(metadata: Mapping[str, str], tensors: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """Return the metadata of format 2 as a record of format 3.

    Raises:
        DataError: If a key of format 2 is missing, or there is another key.
    """
    _exactly(metadata, _KEYS_2, name, "2")
    identity = parse_json(metadata["identity"], f"{name}: identity", _CURE)
    if isinstance(identity, Mapping):
        _exactly(identity, _IDENTITY_2, f"{name}: identity", "2")
        identity = {**identity, "arguments": None, "behaviour": {}}
    numbers = {key: parse_json(metadata[key], f"{name}: {key}", _CURE) for key in ("version", "pixel_mm", "exemplars")}
    later = {"normalisation": FIRST.as_dict(), "tensors_sha256": tensors_sha256(tensors)}
    return {**numbers, "identity": identity, **later}


def _exactly(present: Mapping[str, Any], wanted: Sequence[str], name: str, version: str) -> None:
    """Refuse a table with other keys than wanted."""
    if different := sorted({*present} ^ {*wanted}):
        word = "lacks" if different[0] in wanted else "holds"
        raise DataError(f"{name} {word} {different[0]}, unlike a bank of format {version}; {_CURE}.")
