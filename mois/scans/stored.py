"""Reads voxels as a file stores them. Sizes are checked before memory is taken, and check sums before use."""

from __future__ import annotations

import bz2
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from mois.errors import DataError
from mois.grid import MOST_VOXELS
from mois.machine.processes import memory_bytes

GZIP = b"\x1f\x8b"
"""First bytes of a gzip stream."""
MOST_AXES = 16
HEADER_BYTES = 1 << 20
"""Size of the longest text header."""
PADDING_BYTES = 1 << 16
"""Number of zeros that may follow the voxels."""
SKIPPED_BYTES = 1 << 26
"""Largest number of bytes before the voxels of a compressed stream."""
_CHUNK = 1 << 16
_LARGEST_RATIO = 1040  # deflate turns up to 1032 bytes into one
_GZIP_OR_ZLIB = 47  # code of zlib: the stream is gzip or zlib
Data = TypeVar("Data", bytes, bytearray)
DAMAGED = "cut off or damaged; copy it again from its source"


class Inflated:
    """A gzip or zlib stream that is decompressed only as far as it is read. Check sums are compared part by part.

    Bytes after the last whole part are ignored.

    Args:
        path: Path of the file, for messages.
        file: The open file, at the start of the stream.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self.compressed = left_in(file)
        self._part = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._waiting = b""
        self._ended = False

    def read(self, count: int) -> bytearray:
        """Return the next `count` bytes, fewer at the end.

        Raises:
            DataError: If the stream is damaged, or stops in the middle.
        """
        data = bytearray()
        while len(data) < count and not self._ended:
            if self._part.eof:
                self._next_part()
                continue
            piece = self._waiting or self._file.read(_CHUNK)
            try:
                out = self._part.decompress(piece, min(count - len(data), 16 * _CHUNK))
            except zlib.error as error:
                raise DataError(f"{self._path}: {DAMAGED}.") from error
            self._waiting = self._part.unconsumed_tail
            data += out
            if not piece and not out and not self._part.eof:
                raise DataError(f"{self._path}: {DAMAGED}.")
        return data

    def skip(self, count: int) -> None:
        """Skip `count` bytes before the voxels.

        Raises:
            DataError: If `count` is larger than any header.
        """
        check_skip(self._path, count)
        self.read(count)

    def _next_part(self) -> None:
        """Start the next gzip part. Parallel compressors write several parts."""
        rest = self._part.unused_data
        if len(rest) < len(GZIP):
            rest += self._file.read(_CHUNK)
        self._ended = not rest.startswith(GZIP)
        self._part, self._waiting = zlib.decompressobj(_GZIP_OR_ZLIB), rest


def check_skip(path: Path, count: int) -> None:
    """Refuse to skip more than `SKIPPED_BYTES` of a compressed stream.

    Raises:
        DataError: If `count` is larger.
    """
    if count > SKIPPED_BYTES:
        raise DataError(f"{path}: its voxels begin at byte {count:.4g} of a compressed stream: {DAMAGED}.")


def check_size(path: Path, shape: Sequence[int], kind: np.dtype[Any]) -> int:
    """Return the size of an array in bytes.

    Args:
        path: Path of the file, for messages.
        shape: Shape that the header declares.
        kind: Type of a voxel.

    Raises:
        DataError: If the shape is no array, has more voxels than `MOST_VOXELS`, or does not fit the memory.
    """
    written = " x ".join(map(str, shape[:MOST_AXES]))
    if len(shape) > MOST_AXES:
        raise DataError(f"{path}: its header declares {len(shape)} axes; a scan has three; convert it again.")
    if not shape or min(shape) < 1:
        raise DataError(f"{path}: its header declares {written or 'no'} voxels; convert it from its source again.")
    voxels = math.prod(shape)
    if voxels > MOST_VOXELS:
        raise DataError(
            f"{path}: its header declares {written} voxels; at most {MOST_VOXELS} can be read; crop it, or copy it "
            "again if the header is damaged."
        )
    needed, there = voxels * (kind.itemsize + 4), memory_bytes()
    if needed > there:
        raise DataError(
            f"{path}: its header declares {written} voxels, which take {needed / 2**30:.1f} GiB, and this machine has "
            f"{there / 2**30:.1f}; crop it, or use a machine with more memory."
        )
    return voxels * kind.itemsize


def left_in(file: BinaryIO) -> int:
    """Return the number of bytes from the current position to the end of a regular file."""
    return os.fstat(file.fileno()).st_size - file.tell()


def read_plain(path: Path, file: BinaryIO, wanted: int) -> bytes:
    """Read `wanted` uncompressed bytes that end the file.

    Raises:
        DataError: If the file holds fewer or more bytes.
    """
    if (there := left_in(file)) < wanted:
        raise DataError(f"{path}: holds {max(0, there)} of the {wanted} bytes that its header declares: {DAMAGED}.")
    return _of_declared_size(path, file.read(wanted), file.read(PADDING_BYTES + 1), wanted)


def read_inflated(path: Path, stream: Inflated, wanted: int) -> bytearray:
    """Read the rest of a compressed stream, and compare its check sums.

    Args:
        path: Path of the file, for messages.
        stream: The stream; a part of it may be read already.
        wanted: Number of bytes that the header declares.

    Raises:
        DataError: If the stream holds more or fewer bytes, or if a check sum is wrong.
    """
    if wanted > (stream.compressed + 64) * _LARGEST_RATIO:
        raise DataError(
            f"{path}: {stream.compressed} bytes cannot hold the {wanted} that its header declares: {DAMAGED}."
        )
    return _of_declared_size(path, stream.read(wanted), stream.read(PADDING_BYTES + 1), wanted)


def read_bzip2(path: Path, file: BinaryIO, skip: int, wanted: int) -> bytes:
    """Read a bzip2 stream like `read_inflated`, after `skip` decompressed bytes."""
    check_skip(path, skip)
    with bz2.BZ2File(file) as stream:
        try:
            stream.seek(skip)
            found = stream.read(wanted)
            more = stream.read(PADDING_BYTES + 1)
        except (EOFError, OSError, ValueError) as error:
            raise DataError(f"{path}: {DAMAGED}.") from error
    return _of_declared_size(path, found, more, wanted)


def _of_declared_size(path: Path, data: Data, more: bytes | bytearray, wanted: int) -> Data:
    """Return the bytes if their number is the declared number.

    Raises:
        DataError: If there are fewer bytes, or more than padding.
    """
    if len(data) < wanted:
        raise DataError(f"{path}: holds {len(data)} of the {wanted} bytes that its header declares: {DAMAGED}.")
    if len(more) > PADDING_BYTES or any(more):
        raise DataError(f"{path}: holds more than the {wanted} bytes that its header declares; convert it again.")
    return data


def as_array(data: bytes | bytearray, kind: np.dtype[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Return bytes as an array in Fortran order: the first axis runs fastest."""
    return np.frombuffer(data, kind).reshape(tuple(shape), order="F")


def numbers_from_text(path: Path, file: BinaryIO, kind: np.dtype[Any], count: int) -> NDArray[Any]:
    """Read numbers that are written as text.

    Raises:
        DataError: If the file holds more or fewer numbers, or other text.
    """
    if left_in(file) > 64 * count + PADDING_BYTES:
        raise DataError(f"{path}: holds more than the {count} numbers that its header declares; convert it again.")
    try:
        numbers = np.array(file.read().split()).astype(kind)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}: its voxels are no numbers of type {kind} ({error}); convert it again.") from error
    if len(numbers) != count:
        raise DataError(f"{path}: holds {len(numbers)} of the {count} numbers that its header declares: {DAMAGED}.")
    return numbers


def voxel_file(path: Path, name: str) -> Path:
    """Return the file that a header names for its voxels.

    Raises:
        DataError: If the header names several files, or the file is missing or outside the folder of the header.
    """
    if name.upper().startswith("LIST") or "%" in name:
        raise DataError(f"{path}: its voxels are not in one file ({header_text(name)}); write it as .nii.gz.")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{path}: its voxels are in {header_text(name)}, outside its folder; put them beside it.")
    voxels = path.parent / name
    try:
        voxels.stat()
    except (OSError, ValueError) as error:  # also raised for impossible names
        raise DataError(
            f"{path}: its voxels are in {header_text(name)}, which is missing; put it beside the header."
        ) from error
    if voxels.is_dir():
        raise DataError(f"{path}: its voxels are in {header_text(name) or 'no file'}, which is a folder; name a file.")
    return voxels


def seek(path: Path, file: BinaryIO, position: int) -> None:
    """Go to a byte of a file that its header names.

    Raises:
        DataError: If the byte lies outside the file.
    """
    if not 0 <= position <= os.fstat(file.fileno()).st_size:
        raise DataError(f"{path}: its voxels begin at byte {position:.4g}, outside the file: {DAMAGED}.")
    file.seek(position)


def header_text(text: str) -> str:
    """Return text of a header for a message: at most 80 characters, with ? for each unprintable character."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:80])


def length_of(units: str) -> float | None:
    """Return the length of a unit in millimetres: 1 for an empty name, None for an unknown unit."""
    return _LENGTHS.get(units.strip().lower())


_LENGTHS = {
    **dict.fromkeys(("", "???", "none", "mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1.0),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 10.0),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1000.0),
    **dict.fromkeys(
        ("um", "\u00b5m", "\u03bcm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"),
        1e-3,
    ),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), 1e-6),
}
