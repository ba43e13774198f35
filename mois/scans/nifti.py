"""NIfTI: one file or a pair of .hdr and .img, with gzip or without."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, Literal

import nibabel as nib
import numpy as np
import torch
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from mois.errors import DataError
from mois.files.atomic import open_regular
from mois.grid import Grid, has_inverse, match_grids
from mois.scans.stored import (
    DAMAGED,
    GZIP,
    Inflated,
    as_array,
    check_size,
    read_inflated,
    read_plain,
    seek,
)

HEADER_BYTES = 348
_SIZES = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_MAGIC = {348: slice(344, 347), 540: slice(4, 7)}
_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 1e-3}  # unknown, metre, millimetre, micrometre
_BEFORE_VOXELS = 4  # bytes that say whether extensions follow
_AGREE = 0.5  # of the shortest voxel edge: what rounding of sform and qform does not reach


def is_nifti(start: bytes) -> bool:
    """Tell whether a file that begins so, decompressed, is NIfTI or its forerunner ANALYZE."""
    return _form(start) is not None


def read_nifti(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return voxels with all axes, and the affine to RAS mm.

    Raises:
        DataError: If it is damaged, or its header says what is not honoured.
    """
    with open_regular(path) as file:
        packed = file.read(2) == GZIP
        file.seek(0)
        stream = Inflated(path, file) if packed else None
        header = _read_header(path, file, stream)
        shape, kind = _check_header(path, header)
        wanted = check_size(path, shape, kind)
        affine = _affine(path, header, shape)
        if header["magic"].item().startswith(b"n+"):
            data = _read_single(path, file, stream, int(header["vox_offset"]), header["sizeof_hdr"].item(), wanted)
        else:
            data = _read_other(path, int(header["vox_offset"]), wanted)
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise DataError(f"{path}: scl_slope or scl_inter is no number; convert it from its source again.") from error
    voxels = as_array(data, kind, shape)
    return (voxels if slope is None else apply_read_scaling(voxels, slope, inter)), affine


def read_nifti_grid(path: Path) -> Grid:
    """Return the grid of a NIfTI file. Its voxels are not read.

    Raises:
        DataError: If the header is damaged, or says what is not honoured.
        ValueError: If it is not three-dimensional, or its affine has no inverse.
    """
    with open_regular(path) as file:
        packed = file.read(2) == GZIP
        file.seek(0)
        header = _read_header(path, file, Inflated(path, file) if packed else None)
        shape, _ = _check_header(path, header)
        affine = _affine(path, header, shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return Grid.of(shape, affine)


def pair_of(path: Path) -> tuple[Path, Path]:
    """Return the header and the voxels of a pair of which one is named."""
    name, packed = (path.name[:-3], path.name[-3:]) if path.name.lower().endswith(".gz") else (path.name, "")
    upper = name[-4:].isupper()
    both = [path.with_name(name[:-4] + (end.upper() if upper else end) + packed) for end in (".hdr", ".img")]
    return both[0], both[1]


def is_pair(path: Path) -> bool:
    """Tell whether a file is called like one of a pair."""
    return path.name.lower().endswith((".hdr", ".img", ".hdr.gz", ".img.gz"))


def _form(start: bytes) -> tuple[int, Literal["little", "big"]] | None:
    """Return the length of a header and the order of its bytes; None if this is none."""
    orders: tuple[Literal["little"], Literal["big"]] = ("little", "big")
    forms = ((int.from_bytes(start[:4], order, signed=True), order) for order in orders)
    return next(((size, order) for size, order in forms if size in _SIZES and len(start) >= HEADER_BYTES), None)


def _read_header(path: Path, file: BinaryIO, stream: Inflated | None) -> Any:
    source = stream or file
    start = bytes(source.read(HEADER_BYTES))
    form = _form(start)
    if form is None:
        raise DataError(f"{path}: cut off or no NIfTI file; copy it again from its source.")
    size, order = form
    start += bytes(source.read(size - HEADER_BYTES))
    magic = start[_MAGIC[size]]
    if magic not in (b"n+1", b"ni1", b"n+2", b"ni2") or (magic[-1:] == b"1") != (size == 348):
        raise DataError(f"{path}: says nothing about orientation (ANALYZE 7.5); convert it from DICOM again.")
    if len(start) < size:
        raise DataError(f"{path}: {DAMAGED}.")
    header: Any = _SIZES[size](start, order, check=False)  # type: ignore[no-untyped-call]
    return header


def _check_header(path: Path, header: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of the voxels as they are stored."""
    dim = [int(length) for length in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise DataError(f"{path}: dim[0]={dim[0]} is no number of axes (1 to 7): {DAMAGED}.")
    try:
        kind = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise DataError(f"{path}: datatype {int(header['datatype'])} is none of NIfTI's; convert it again.") from error
    offset = float(header["vox_offset"])
    if not np.isfinite(offset) or offset != int(offset) or not 0 <= offset < 2**62:
        raise DataError(f"{path}: vox_offset={offset:g} is no place in a file; convert it again.")
    return tuple(dim[1 : dim[0] + 1]), kind


def _read_single(
    path: Path, file: BinaryIO, stream: Inflated | None, offset: int, header_bytes: int, wanted: int
) -> bytes | bytearray:
    """Return the voxels that follow a header in the same file."""
    lowest = header_bytes + _BEFORE_VOXELS
    if offset < lowest:
        raise DataError(f"{path}: vox_offset={offset} lies not behind the header ({lowest} bytes); convert it again.")
    if stream is None:
        seek(path, file, offset)
        return read_plain(path, file, wanted)
    stream.skip(offset - header_bytes)
    return read_inflated(path, stream, wanted)


def _read_other(path: Path, offset: int, wanted: int) -> bytes | bytearray:
    """Return the voxels of a pair; it does not matter which of the two is compressed."""
    voxels = pair_of(path)[1]
    if not voxels.exists():
        raise DataError(f"{path}: its voxels are in {voxels.name}, which is missing; put it beside the header.")
    with open_regular(voxels) as file:
        packed = file.read(2) == GZIP
        seek(voxels, file, 0 if packed else offset)
        if not packed:
            return read_plain(voxels, file, wanted)
        stream = Inflated(voxels, file)
        stream.skip(offset)
        return read_inflated(voxels, stream, wanted)


def _affine(path: Path, header: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the affine in millimetres: of the sform, else of the qform, which must not contradict each other."""
    sform, qform = (int(header[name]) for name in ("sform_code", "qform_code"))
    if sform <= 0 and qform <= 0:
        raise DataError(
            f"{path}: says nothing about orientation (sform and qform codes are 0); convert it from DICOM again."
        )
    unit = int(header["xyzt_units"]) & 7
    if unit not in _MM:
        raise DataError(f"{path}: xyzt_units={unit} is no length (0 to 3: unknown, metre, mm, micrometre); set it.")
    by_q = _qform(path, header) if qform > 0 else None
    affine = np.asarray(header.get_sform(), np.float64) if sform > 0 else by_q
    if by_q is not None and sform > 0:
        _check_agreement(path, shape, affine, by_q, _MM[unit])
    affine = np.array(affine)
    affine[:3] *= _MM[unit]
    return affine


def _qform(path: Path, header: Any) -> NDArray[np.float64]:
    qfac, *edges = (float(value) for value in header["pixdim"][:4])
    if qfac not in (-1.0, 0.0, 1.0):
        raise DataError(f"{path}: pixdim[0]={qfac:g} is the qform's handedness, 1 or -1; set it.")
    if not all(0 < edge < np.inf for edge in edges):
        raise DataError(f"{path}: pixdim[1:4]={edges} are the qform's voxel edges, above 0; set them.")
    try:
        return np.asarray(header.get_qform(), np.float64)
    except (ValueError, HeaderDataError) as error:
        raise DataError(f"{path}: its qform is no rotation (quatern_b, c, d); convert it again.") from error


def _check_agreement(
    path: Path, shape: tuple[int, ...], sform: NDArray[np.float64] | None, qform: NDArray[np.float64], unit_mm: float
) -> None:
    """Refuse a file that lies in two places: which of them a viewer shows, and clicks are given in, nobody knows."""
    first, second = torch.from_numpy(np.asarray(sform)), torch.from_numpy(qform)
    if len(shape) < 3 or not has_inverse(first) or not has_inverse(second):
        return  # refused for that
    places = [Grid.of(shape[:3], affine) for affine in (first, second)]
    apart = match_grids(places[0], places[1])
    in_order = apart.order == (0, 1, 2) and not any(apart.flipped)
    if in_order and apart.shift_mm <= _AGREE * min(places[0].spacing_mm):
        return
    shift_mm = unit_mm * float(np.linalg.norm(places[0].corners_mm() - places[1].corners_mm(), axis=1).max())
    raise DataError(
        f"{path}: lies in two places: sform and qform are up to {shift_mm:.3g} mm apart; delete the wrong one (set its "
        "code to 0), or export the scan again."
    )
