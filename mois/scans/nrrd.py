"""NRRD: .nrrd, and .nhdr (or .nrrd) with its voxels in another file."""

from __future__ import annotations

import re
from dataclasses import dataclass
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
    read_bzip2,
    read_inflated,
    read_plain,
    seek,
    voxel_file,
)

_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_KINDS = {name: kind for kind, names in _TYPES.items() for name in names}
_TO_RAS = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1.0, -1.0, 1.0)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (1.0, 1.0, 1.0)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1.0, 1.0, 1.0)),
}
_WITH_TIME = {"lpst": "lps", "rast": "ras", "last": "las"}
_SYNONYMS = {
    "datafile": "data file",
    "lineskip": "line skip",
    "byteskip": "byte skip",
    "centers": "centerings",
    "axismins": "axis mins",
    "axismaxs": "axis maxs",
}
_VECTOR = re.compile(r"none|\([^()]*\)", re.IGNORECASE)


def is_nrrd(start: bytes) -> bool:
    """Tell whether a file begins like an NRRD."""
    return start.startswith(b"NRRD0")


def read_nrrd(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return voxels (I, J, K) and the affine to RAS mm; axes of length one that lie nowhere in space are left out.

    Raises:
        DataError: If it is damaged, or its header says what is not honoured.
    """
    with open_regular(path) as file:
        header = _Header(path, _fields(path, file))
        shape, kind = header.shape(), header.kind()
        axes, affine = header.place(shape)
        wanted = check_size(path, shape, kind)
        named = header.fields.get("data file")
        if named is None:
            data = _read(path, file, header, wanted, kind)
    if named is not None:
        voxels = voxel_file(path, named)
        with open_regular(voxels) as file:
            data = _read(voxels, file, header, wanted, kind)
    return as_array(data, kind, shape).transpose([*axes, *(n for n in range(len(shape)) if n not in axes)]), affine


def voxels_beside(path: Path) -> Path | None:
    """Return the file that holds the voxels of a header, None where they follow it.

    Raises:
        DataError: As `voxel_file`.
    """
    with open_regular(path) as file:
        named = _fields(path, file).get("data file")
    return None if named is None else voxel_file(path, named)


def _fields(path: Path, file: BinaryIO) -> dict[str, str]:
    """Return the entries of a header, and leave the file behind the blank line that ends it."""
    fields: dict[str, str] = {}
    file.readline(HEADER_BYTES)  # the format
    while True:
        line = file.readline(HEADER_BYTES)
        if file.tell() > HEADER_BYTES:
            raise DataError(f"{path}: its header does not end in a blank line: {DAMAGED}.")
        text = line.decode("utf-8", "replace").strip()
        if not text:  # also the end of a file that is a header alone
            return fields
        if text.startswith("#") or ":=" in text:  # a remark; something of a program's own
            continue
        name, is_entry, value = text.partition(":")
        name = _SYNONYMS.get(name.strip().lower(), name.strip().lower())
        if not is_entry or name in fields:
            raise DataError(
                f"{path}: its header has {header_text(text[:40])!r} {'twice' if is_entry else 'in it'}: {DAMAGED}."
            )
        fields[name] = value.strip()
        if name == "data file" and value.strip().upper().startswith("LIST"):
            return fields  # names of files follow, not entries


@dataclass(frozen=True)
class _Header:
    path: Path
    fields: dict[str, str]

    def wrong(self, name: str, what: str) -> DataError:
        return DataError(f"{self.path}: {name}: {header_text(self.fields.get(name, ''))} {what}.")

    def need(self, name: str) -> str:
        if name not in self.fields:
            raise DataError(f"{self.path}: its header has no {name}; convert it from its source again.")
        return self.fields[name]

    def whole(self, name: str, usual: str | None = None) -> list[int]:
        words = (self.need(name) if usual is None else self.fields.get(name, usual)).split()
        try:
            return [int(word) for word in words]
        except ValueError:
            raise self.wrong(name, "are no whole numbers; convert it from its source again") from None

    def shape(self) -> tuple[int, ...]:
        sizes = self.whole("sizes")
        if self.whole("dimension") != [len(sizes)]:
            raise self.wrong("dimension", f"is not {len(sizes)}, as sizes says; convert it from its source again")
        return tuple(sizes)

    def kind(self) -> np.dtype[Any]:
        name = self.need("type").lower()
        if name not in _KINDS:
            raise self.wrong("type", "is no number; write one file per channel")
        kind = np.dtype(_KINDS[name])
        if kind.itemsize == 1 or self.coding() == "text":
            return kind
        order = self.need("endian").lower()
        if order not in ("little", "big"):
            raise self.wrong("endian", "is neither little nor big; set it")
        return kind.newbyteorder("<" if order == "little" else ">")

    def coding(self) -> str:
        codings = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
        codings |= dict.fromkeys(("ascii", "text", "txt"), "text")
        found = codings.get(self.need("encoding").lower())
        if found is None:
            raise self.wrong("encoding", "cannot be read; write it with encoding gzip or raw")
        return found

    def place(self, shape: tuple[int, ...]) -> tuple[list[int], NDArray[np.float64]]:
        """Return which three axes lie in space, and the affine to RAS mm."""
        to_ras = self._to_ras()
        vectors = self._vectors(len(shape))
        axes = [n for n, vector in enumerate(vectors) if vector is not None and vector[:3].any()]
        for n, vector in enumerate(vectors):
            if n not in axes and shape[n] > 1:
                raise self.wrong("sizes", f"has {shape[n]} values along axis {n + 1}; write one file per channel")
            if n in axes and vector is not None and vector[3:].any():
                raise self.wrong("space directions", "mixes space and time; write one file per time point")
        if len(axes) != 3:
            raise self.wrong("space directions", f"has {len(axes)} axes in space instead of three; convert it again")
        self._check_axes(axes, shape)
        origin = self._vector("space origin", self.need("space origin"))
        affine = np.eye(4)
        for column, n in enumerate(axes):
            vector = vectors[n]
            length = np.linalg.norm(vector[:3]) if vector is not None else 0.0
            affine[:3, column] = vector[:3] / length * length if vector is not None else 0  # as ITK rounds it
        affine[:3, 3] = origin[:3]
        for row, unit_mm in enumerate(self._units_mm()):
            affine[row] *= unit_mm
        return axes, np.diag([*to_ras, 1.0]) @ affine

    def _to_ras(self) -> tuple[float, float, float]:
        """Return the signs from this space to RAS; a space without a name is LPS, as ITK writes time series."""
        if "space" not in self.fields:
            if "space dimension" in self.fields and "space directions" in self.fields:
                return _TO_RAS["lps"]
            raise DataError(f"{self.path}: says nothing about orientation (no space); convert it from DICOM again.")
        name = self.fields["space"].lower()
        name = _WITH_TIME.get(name, name.removesuffix("-time"))
        if name not in _TO_RAS:
            raise self.wrong("space", "does not say how the patient lies; write left-posterior-superior")
        return _TO_RAS[name]

    def _vectors(self, axes: int) -> list[NDArray[np.float64] | None]:
        text = self.need("space directions")
        words = _VECTOR.findall(text)
        if len(words) != axes or _VECTOR.sub("", text).strip():
            raise self.wrong("space directions", f"is not one vector (or none) for each of {axes} axes; convert it")
        nowhere = ("none", "(nan,nan,nan)", "(nan,nan,nan,nan)")
        return [
            None if word.lower().replace(" ", "") in nowhere else self._vector("space directions", word)
            for word in words
        ]

    def _vector(self, name: str, word: str) -> NDArray[np.float64]:
        try:
            vector = np.array([float(number) for number in word.strip("() ").split(",")])
        except ValueError:
            raise self.wrong(name, "is no vector; convert it from its source again") from None
        if len(vector) not in (3, 4) or not np.isfinite(vector).all():
            raise self.wrong(name, "is no vector of three finite numbers; convert it from its source again")
        return vector

    def _units_mm(self) -> list[float]:
        """Return the length of a unit along each direction of space."""
        if "space units" not in self.fields:
            return [1.0, 1.0, 1.0]
        names = re.findall(r'"([^"]*)"', self.fields["space units"])
        lengths = [length_of(name) for name in names[:3]]
        if len(names) not in (3, 4) or None in lengths:
            raise self.wrong("space units", 'are no lengths; write "mm" "mm" "mm"')
        return [length for length in lengths if length is not None]

    def _check_axes(self, axes: list[int], shape: tuple[int, ...]) -> None:
        """Refuse entries for single axes that say otherwise than the vectors."""
        for name, usual in (("kinds", ("domain", "space", "none", "???")), ("units", ("", "mm", "???", "none"))):
            words = re.findall(r'"([^"]*)"|(\S+)', self.fields.get(name, ""))
            found = [quoted or plain for quoted, plain in words]
            strange = [n for n in axes if n < len(found) and found[n].lower() not in usual and shape[n] > 1]
            if strange:
                raise self.wrong(name, f"does not fit the space direction of axis {strange[0] + 1}; delete one of them")
        for name in ("spacings", "axis mins", "axis maxs"):
            words = self.fields.get(name, "").split()
            if any(n < len(words) and words[n].lower() != "nan" for n in axes):
                raise self.wrong(name, "and space directions both say how an axis lies; delete one of them")


def _read(path: Path, file: BinaryIO, header: _Header, wanted: int, kind: np.dtype[Any]) -> bytes | bytearray:
    """Return the voxels that follow here."""
    coding = header.coding()
    (lines, *_), (skip, *_) = header.whole("line skip", "0") or [0], header.whole("byte skip", "0") or [0]
    if lines < 0 or skip < -1 or (skip == -1 and coding != "raw"):
        raise header.wrong("byte skip", "or line skip is out of range; convert it from its source again")
    for _ in range(min(lines, HEADER_BYTES)):
        file.readline(HEADER_BYTES)
    if coding == "text":
        return numbers_from_text(path, file, kind, wanted // kind.itemsize).tobytes()
    if coding == "bzip2":
        return read_bzip2(path, file, skip, wanted)
    if coding == "gzip":
        stream = Inflated(path, file)
        stream.skip(skip)
        return read_inflated(path, stream, wanted)
    seek(path, file, file.tell() + (max(0, left_in(file) - wanted) if skip == -1 else skip))
    return read_plain(path, file, wanted)
