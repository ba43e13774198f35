"""MetaImage: .mha, and .mhd with its voxels in another file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mois.errors import DataError
from mois.files.atomic import open_regular
from mois.scans.stored import (
    DAMAGED,
    HEADER_BYTES,
    Inflated,
    as_array,
    check_size,
    header_text,
    left_in,
    length_of,
    numbers_from_text,
    read_inflated,
    read_plain,
    seek,
    voxel_file,
)

_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
_SYNONYMS = {
    "Position": "Offset",
    "Origin": "Offset",
    "Orientation": "TransformMatrix",
    "Rotation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
_START = re.compile(rb"\s*(ObjectType|NDims|Comment|AcquisitionDate)\s*=")
_LAST = "ElementDataFile"


def is_metaimage(start: bytes) -> bool:
    """Tell whether a file begins like a MetaImage."""
    return _START.match(start) is not None


def read_metaimage(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return voxels with all axes, and the affine to RAS mm; as in ITK, TransformMatrix alone says how axes lie.

    Raises:
        DataError: If it is damaged, or its header says what is not honoured.
    """
    with open_regular(path) as file:
        header = _Header(path, _fields(path, file))
        shape = header.shape()
        kind = header.kind()
        affine = header.affine(len(shape))
        wanted = check_size(path, shape, kind)
        where = header.text(_LAST)
        if where.upper() == "LOCAL":
            return as_array(_read(path, file, header, wanted, kind), kind, shape), affine
    voxels = voxel_file(path, where)
    with open_regular(voxels) as file:
        return as_array(_read(voxels, file, header, wanted, kind), kind, shape), affine


def voxels_beside(path: Path) -> Path | None:
    """Return the file that holds the voxels of a header, None where they follow it.

    Raises:
        DataError: As `voxel_file`.
    """
    with open_regular(path) as file:
        named = _fields(path, file)[_LAST]
    return None if named.upper() == "LOCAL" else voxel_file(path, named)


def _fields(path: Path, file: BinaryIO) -> dict[str, str]:
    """Return the entries of a header, and leave the file behind the last of them."""
    fields: dict[str, str] = {}
    while True:
        line = file.readline(HEADER_BYTES)
        name, is_entry, value = line.decode("latin-1").partition("=")
        name = _SYNONYMS.get(name.strip(), name.strip())
        if not is_entry or (not line.endswith(b"\n") and name != _LAST) or file.tell() > HEADER_BYTES:
            raise DataError(f"{path}: its header does not end in {_LAST}: {DAMAGED}.")
        if name in fields:
            raise DataError(f"{path}: its header has {header_text(name)} twice; delete one.")
        fields[name] = value.strip()
        if name == _LAST:
            return fields


class _Header:
    def __init__(self, path: Path, fields: dict[str, str]) -> None:
        self._path, self._fields = path, fields
        units = fields.get("DistanceUnits", "")
        length = length_of(units)
        if length is None:
            raise self._wrong("DistanceUnits", "is no unit of length; write mm, um or cm")
        self._unit_mm = length
        for name, usual in (
            ("ElementNumberOfChannels", 1.0),
            ("ElementToIntensityFunctionSlope", 1.0),
            ("ElementToIntensityFunctionOffset", 0.0),
        ):
            if self.numbers(name, [usual]) != [usual]:
                raise self._wrong(name, "is not honoured; write one file per channel, its values as they are meant")
        if any(self.numbers("CenterOfRotation", [0.0])):
            raise self._wrong("CenterOfRotation", "is not honoured; put it into Offset, and set it to 0 0 0")
        if fields.get("ObjectType", "Image").lower() != "image":
            raise self._wrong("ObjectType", "is no Image; export the scan")

    def _wrong(self, name: str, what: str) -> DataError:
        return DataError(f"{self._path}: {name} = {header_text(self._fields.get(name, ''))} {what}.")

    def text(self, name: str) -> str:
        return self._fields[name]

    def flag(self, name: str, usual: bool) -> bool:
        word = self._fields.get(name, str(usual)).lower()
        if word not in ("true", "false", "1", "0", "t", "f"):
            raise self._wrong(name, "is neither True nor False; set it")
        return word in ("true", "1", "t")

    def numbers(self, name: str, usual: list[float] | None = None) -> list[float]:
        if name not in self._fields:
            if usual is None:
                raise DataError(f"{self._path}: its header has no {name}; convert it from its source again.")
            return usual
        try:
            values = [float(word) for word in self._fields[name].split()]
        except ValueError:
            raise self._wrong(name, "are no numbers; convert it from its source again") from None
        if not all(np.isfinite(values)):
            raise self._wrong(name, "are not finite; convert it from its source again")
        return values

    def shape(self) -> tuple[int, ...]:
        (axes, *_), lengths = self.numbers("NDims") or [0.0], self.numbers("DimSize")
        if axes != len(lengths):
            raise self._wrong("DimSize", f"is not {axes:g} numbers, as NDims says; convert it from its source again")
        if any(length != int(length) or length < 1 for length in lengths):
            raise self._wrong("DimSize", "are no lengths of 1 or more; convert it from its source again")
        return tuple(int(length) for length in lengths)

    def kind(self) -> np.dtype[Any]:
        name = self._fields.get("ElementType", "")
        if name not in _TYPES:
            raise self._wrong("ElementType", f"is not one of {', '.join(_TYPES)}; convert it")
        return np.dtype(_TYPES[name]).newbyteorder(">" if self.flag("BinaryDataByteOrderMSB", False) else "<")

    def affine(self, axes: int) -> NDArray[np.float64]:
        if "TransformMatrix" not in self._fields:
            raise DataError(
                f"{self._path}: says nothing about orientation (no TransformMatrix); convert it from DICOM again."
            )
        spacing = self.numbers("ElementSpacing" if "ElementSpacing" in self._fields else "ElementSize")
        matrix, offset = self.numbers("TransformMatrix"), self.numbers("Offset")
        for name, found, wanted in (
            ("ElementSpacing", spacing, axes), ("TransformMatrix", matrix, axes**2), ("Offset", offset, axes)
        ):  # fmt: skip
            if len(found) != wanted:
                raise DataError(f"{self._path}: {name} has {len(found)} numbers instead of {wanted}; convert it again.")
        if min(spacing) <= 0:
            raise self._wrong("ElementSpacing", "are no lengths above 0; convert it from its source again")
        directions = np.array(matrix).reshape(axes, axes).T  # a row of the file is an axis' direction
        if axes > 3 and (directions[3:, :3].any() or directions[:3, 3:].any()):
            raise self._wrong("TransformMatrix", "mixes space and time; write one file per time point")
        affine = np.eye(4)
        affine[:3, :3] = (directions * np.array(spacing))[:3, :3] if axes >= 3 else 0
        affine[:3, 3] = offset[:3] if axes >= 3 else 0
        if self._unit_mm != 1:
            affine[:3] *= self._unit_mm
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # LPS to RAS


def _read(path: Path, file: BinaryIO, header: _Header, wanted: int, kind: np.dtype[Any]) -> Any:
    """Return the voxels that follow here, as bytes or as numbers."""
    (skip, *_), packed = header.numbers("HeaderSize", [0.0]) or [0.0], header.flag("CompressedData", False)
    if not header.flag("BinaryData", True):
        return numbers_from_text(path, file, kind, wanted // kind.itemsize).tobytes()
    if packed and skip == 0:
        return read_inflated(path, Inflated(path, file), wanted)
    if packed or skip != int(skip) or skip < -1:
        raise DataError(f"{path}: HeaderSize = {skip:g} is not honoured here; convert it from its source again.")
    if skip == -1:
        seek(path, file, file.tell() + max(0, left_in(file) - wanted))
    elif skip:
        seek(path, file, int(skip))
    return read_plain(path, file, wanted)
