"""Prepared scans in files. They are made once; all ranks, workers and runs map them into memory and share the pages.

The key of an entry is a digest of the scan's files, of all settings of the preparation, and of `VERSION`. So entries
stay valid when a dataset changes. The folder may be deleted at any time.

A file holds a line of JSON (the header: place of each array, and numbers), the arrays, and a CRC-32 of both.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import warnings
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.subjects import LesionSampler, LesionSlices, PreparedSubject, as_scan
from mois.errors import DataError
from mois.files.atomic import file_sha256, is_abandoned, whole_file
from mois.files.json_records import as_record, parse_json
from mois.scans.image_files import parts_of

VERSION = 2
"""Part of every key. Add 1 when the preparation of a scan or the form of an entry changes."""

_ALIGNED = 64  # bytes
_CRC = 4  # bytes
_CHUNK = 1 << 20
_LONGEST_HEADER = 1 << 16  # bytes
log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """A prepared scan, and its slab: slices that are blank because they validate; None for no slab."""

    subject: PreparedSubject
    slab: range | None


@dataclass(frozen=True, eq=False)
class MappedSubject(PreparedSubject):
    """A prepared scan whose arrays are pages of a file. A spawned process maps the file instead of receiving arrays.

    Attributes:
        path: Path of the file.
    """

    path: Path

    def __reduce__(self) -> tuple[Callable[..., PreparedSubject], tuple[Path, str, str]]:
        return _map_again, (self.path, self.name, self.patient)


@dataclass(frozen=True)
class _Header:
    """The first line of an entry.

    Attributes:
        pixel_mm: Edge of a pixel in millimetres.
        gap_mm: Distance between slices in millimetres.
        patch_px: Edge of the patches in pixels.
        slab: First blank slice, and the slice after the last blank slice; None for no slab.
        arrays: Type, shape and first byte (after the line) of each array by name.
        bytes: Size of all arrays.
    """

    pixel_mm: float
    gap_mm: float
    patch_px: int
    slab: tuple[int, int] | None
    arrays: dict[str, tuple[str, tuple[int, ...], int]]
    bytes: int

    def __post_init__(self) -> None:
        wanted = {"image", "lesions", "body", *LesionSlices._fields}
        if {*self.arrays} != wanted:
            raise ValueError(f"its arrays are not {', '.join(sorted(wanted))}")
        if min(self.pixel_mm, self.gap_mm, self.patch_px) <= 0 or self.bytes < 0:
            raise ValueError("sizes are above 0")
        for kind, shape, start in self.arrays.values():
            if not re.fullmatch(r"[|<][biuf][1248]", kind) or start < 0 or any(count < 0 for count in shape):
                raise ValueError("an array has a type, a shape and a place")


class PreparedScans:
    """A folder of entries. Each entry is written whole or not at all.

    Args:
        folder: Folder for all processes that can write to it; it is made if it does not exist.

    Raises:
        DataError: If the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"data.init_args.prepared={folder} cannot be made ({error.strerror}); choose one that can be written "
                "to."
            ) from error
        self.folder = folder
        for part in folder.glob(".*.part"):
            with suppress(OSError):  # its writer has finished, or another process removes it
                if is_abandoned(part):
                    part.unlink()

    def get(self, key: str, name: str, patient: str, make: Callable[[], Entry], *, check: bool) -> Entry:
        """Return a mapped entry. If it does not exist or is damaged, make it first.

        Args:
            key: Key from `key_of`.
            name: Name of the scan.
            patient: Name of the patient.
            make: Reads, checks and prepares the scan.
            check: Whether to read the whole entry and compare its checksum; otherwise only its size is compared.

        Raises:
            DataError: If the entry cannot be written.
        """
        path = self.folder / f"{key}.scan"
        try:
            if check:
                _check(path)
            return map_entry(path, name, patient)
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s: prepared scan %s is damaged (%s); it is made again", path, name, error)
        _write(path, make())
        return map_entry(path, name, patient)


def key_of(files: Sequence[Path | None], settings: object) -> str:
    """Return the key of the entry for these files and settings.

    The key depends on the order of `files` and on `repr(settings)`.

    Raises:
        DataError: If the header of an .mhd or .nrrd file says that its voxels are spread over several files.
    """
    contents = [[file_sha256(part) for part in parts_of(file)] if file is not None else None for file in files]
    return hashlib.sha256(repr((VERSION, contents, settings)).encode()).hexdigest()


def map_entry(path: Path, name: str, patient: str) -> Entry:
    """Map an entry into memory, read-only. Image and lesions are not read yet.

    Raises:
        ValueError: If its size or its header is wrong.
        KeyError, TypeError: If its header is that of another file.
    """
    if not path.is_file():
        raise FileNotFoundError(path)  # do not wait for a pipe
    with path.open("rb") as stream:
        line = stream.readline(_LONGEST_HEADER)
    about = as_record(parse_json(line, "its first line"), _Header, "its first line")
    if path.stat().st_size != len(line) + about.bytes + _CRC:
        raise ValueError(f"{path.stat().st_size} bytes instead of {len(line) + about.bytes + _CRC}")
    for field, (kind, shape, start) in about.arrays.items():
        if start % _ALIGNED or start + math.prod(shape) * np.dtype(kind).itemsize > about.bytes:
            raise ValueError(f"its {field} does not lie within it")
    pages = np.asarray(np.memmap(path, np.uint8, "r", len(line)))
    arrays = {
        field: pages[start : start + math.prod(shape) * np.dtype(kind).itemsize].view(kind).reshape(shape)
        for field, (kind, shape, start) in about.arrays.items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        image, lesions = (torch.from_numpy(arrays[field]) for field in ("image", "lesions"))
    pixel_mm, gap_mm, patch_px = about.pixel_mm, about.gap_mm, about.patch_px
    scan = as_scan(image, lesions, pixel_mm, gap_mm)
    table = LesionSlices(*(arrays[field] for field in LesionSlices._fields))
    sampler = LesionSampler(table, patch_px)
    subject = MappedSubject(name, patient, scan, table, sampler, arrays["body"], pixel_mm, gap_mm, path)
    return Entry(subject, range(*about.slab) if about.slab else None)


def _map_again(path: Path, name: str, patient: str) -> PreparedSubject:
    return map_entry(path, name, patient).subject


def _write(path: Path, entry: Entry) -> None:
    subject, slab = entry
    stack: Any = subject.scan
    image = stack["image"].data.permute(0, 3, 2, 1)  # (C, S, H, W)
    arrays: dict[str, NDArray[Any]] = {
        "image": (image[0] if len(image) == 1 else image).contiguous().numpy(),
        "lesions": stack["lesions"].data[0].permute(2, 1, 0).contiguous().numpy(),
        **subject.table._asdict(),
        "body": subject.body,
    }
    places, end = {}, 0
    for field, array in arrays.items():
        places[field] = (array.dtype.str, array.shape, end)
        end += array.nbytes + -array.nbytes % _ALIGNED
    about = {
        "pixel_mm": subject.pixel_mm,
        "gap_mm": subject.gap_mm,
        "patch_px": int(subject.sampler.patch_size[0]),
        "slab": (slab.start, slab.stop) if slab is not None else None,
        "arrays": places,
        "bytes": end,
    }
    line = json.dumps(about).encode()
    line += b" " * (-(len(line) + 1) % _ALIGNED) + b"\n"
    try:
        with whole_file(path) as part, part.open("wb") as stream:
            crc = 0
            for array in (np.frombuffer(line, np.uint8), *arrays.values()):
                for piece in (array.reshape(-1).view(np.uint8).data, bytes(-array.nbytes % _ALIGNED)):
                    crc = zlib.crc32(piece, crc)
                    stream.write(piece)
            stream.write(crc.to_bytes(_CRC, "little"))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise DataError(
            f"data.init_args.prepared={path.parent}: scan {subject.name} takes {(len(line) + end) / 1e6:.0f} MB and "
            f"cannot be written ({error.strerror}); free some space, or choose another folder."
        ) from error


def _check(path: Path) -> None:
    """Compare the checksum of an entry. It is not read through its map: the map would count as memory in use.

    Raises:
        ValueError: If the checksum is wrong.
    """
    crc, left = 0, path.stat().st_size - _CRC
    with path.open("rb") as stream:
        while left > 0 and (piece := stream.read(min(left, _CHUNK))):
            crc, left = zlib.crc32(piece, crc), left - len(piece)
        if crc.to_bytes(_CRC, "little") != stream.read():
            raise ValueError("its checksum is another one")
