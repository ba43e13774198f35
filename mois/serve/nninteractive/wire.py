"""Arrays as nnInteractive sends them. All that a header claims is checked before a byte is decompressed.

magic NNIA | version | codec | number of axes | length of the type's name | name | shape, int64 each
number of chunks, uint32 | for each: length, compressed length, uint64 each | chunk, compressed by blosc2
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt

from mois.serve.refusals import Refusal

MAGIC, VERSION = b"NNIA", 1
TYPES = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64")
"""Types of voxels that are read."""
MOST_VOXELS = 1 << 28
"""Largest number of voxels: a scan of 1 mm from head to foot has about 2 ** 27."""
_HEADER, _CHUNK = struct.Struct("<4sBBBB"), struct.Struct("<QQ")
_CHUNK_BYTES = 1 << 30
_FAST: dict[str, Any] = {
    "codec": blosc2.Codec.LZ4, "clevel": 3, "filters": [blosc2.Filter.NOFILTER], "nthreads": 1
}  # fmt: skip


@dataclass(frozen=True)
class _Claim:
    """What the header of an array claims."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    first_chunk: int

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def unpack(body: bytes, axes: int, most_voxels: int = MOST_VOXELS) -> npt.NDArray[Any]:
    """Return an array.

    Args:
        body: The array as sent.
        axes: Its number of axes.
        most_voxels: Largest number of voxels.

    Raises:
        Refusal: If the array is damaged, of another type or number of axes, or too large.
    """
    claim = _claimed(body, axes, most_voxels)
    chunks = _chunks(body, claim)
    array = np.empty(math.prod(claim.shape), claim.dtype)
    at = 0
    for start, stop, length in chunks:
        items = length // claim.dtype.itemsize
        try:
            blosc2.decompress2(memoryview(body)[start:stop], dst=array[at : at + items])
        except (RuntimeError, ValueError, TypeError) as error:
            raise _damaged() from error
        at += items
    return array.reshape(claim.shape)


def pack(array: npt.NDArray[Any]) -> bytes:
    """Return an array as the client reads it. It is compressed fast, because it is small."""
    array = np.ascontiguousarray(array)
    name = array.dtype.name.encode("ascii")
    start = _HEADER.pack(MAGIC, VERSION, 2, array.ndim, len(name)) + name
    raw = array.tobytes()
    parts = [start, struct.pack(f"<{array.ndim}q", *array.shape), struct.pack("<I", -(-len(raw) // _CHUNK_BYTES))]
    for at in range(0, len(raw), _CHUNK_BYTES):
        part = raw[at : at + _CHUNK_BYTES]
        packed = blosc2.compress2(part, typesize=array.itemsize, **_FAST)
        parts += [_CHUNK.pack(len(part), len(packed)), packed]
    return b"".join(parts)


def _claimed(body: bytes, axes: int, most_voxels: int) -> _Claim:
    try:
        magic, version, codec, count, name_length = _HEADER.unpack_from(body)
        name = body[_HEADER.size : _HEADER.size + name_length].decode("ascii")
        at = _HEADER.size + name_length
        if magic != MAGIC or version != VERSION or codec not in (1, 2):
            raise _damaged()
        if count != axes:
            raise Refusal(400, f"the array has {count} axes; send {axes}.")
        shape = struct.unpack_from(f"<{count}q", body, at)
    except (struct.error, UnicodeDecodeError) as error:
        raise _damaged() from error
    if name not in TYPES:
        raise Refusal(400, f"the voxels are of a type that is not read; send one of {', '.join(TYPES)}.")
    if min(shape, default=0) < 1 or math.prod(shape) > most_voxels:
        raise Refusal(413, f"the array has {math.prod(shape)} voxels; send 1 to {most_voxels}.")
    return _Claim(np.dtype(name), shape, at + 8 * count)


def _chunks(body: bytes, claim: _Claim) -> list[tuple[int, int, int]]:
    """Return start and stop of each chunk in the body, and its length once decompressed."""
    found, at, left = [], claim.first_chunk + 4, claim.size
    try:
        (count,) = struct.unpack_from("<I", body, claim.first_chunk)
        for _ in range(count):
            length, packed = _CHUNK.unpack_from(body, at)
            at += _CHUNK.size
            if not 0 < length <= left or length % claim.dtype.itemsize or not 0 < packed <= len(body) - at:
                raise _damaged()
            if blosc2.get_cbuffer_sizes(memoryview(body)[at : at + packed])[0] != length:
                raise _damaged()
            found.append((at, at + packed, length))
            at, left = at + packed, left - length
    except (struct.error, RuntimeError, ValueError, TypeError) as error:
        raise _damaged() from error
    if left or at != len(body):
        raise _damaged()
    return found


def _damaged() -> Refusal:
    return Refusal(400, "the array is damaged: its parts do not fit what its header says.")
