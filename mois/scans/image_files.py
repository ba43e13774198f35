"""Voxels and affines from image files and to NIfTI; a broken file stops here."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mois.errors import DataError
from mois.files.atomic import open_regular, write_bytes
from mois.grid import has_inverse
from mois.scans import metaimage, nrrd
from mois.scans.dicom import is_dicom, read_dicom
from mois.scans.metaimage import is_metaimage, read_metaimage
from mois.scans.nifti import is_nifti, is_pair, pair_of, read_nifti
from mois.scans.nrrd import is_nrrd, read_nrrd
from mois.scans.stored import GZIP, Inflated

__all__ = ["DataError", "parts_of", "read_image", "write_volume"]

_START_BYTES = 512
_OTHERS = (
    (b"\x93NUMPY", "a NumPy array, which has no orientation and spacing,"),
    (b"PK\x03\x04", "a zip archive (or .npz, or a checkpoint)"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"BZh", "compressed by bzip2"),
    (b"\xfd7zXZ", "compressed by xz"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"\x89HDF", "an HDF5 file (MATLAB, MINC)"),
    (b"%PDF", "a PDF"),
)
EDGES_MM = (1e-7, 1e5)
FAR_MM = 1e7
"""What a header may say: from a tenth of a nanometre to a hundred metres a voxel, ten kilometres from the origin."""


def read_image(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read any scan or label map; docs/image_files.md says which entries of headers are honoured, which refused.

    Args:
        path: NIfTI (one file, or .hdr and .img), NRRD or MetaImage, known by what it holds and not by its name; or a
            folder that holds one DICOM series, or a DICOM file.

    Returns:
        Voxels (I, J, K) in the file's own type, and the affine (4, 4) from voxel indices to RAS mm.

    Raises:
        DataError: If it is missing, cut off, damaged, not three-dimensional, has no orientation, is larger than what
            can be worked on, or has a header that is not honoured.
    """
    if path.is_dir():
        return _as_scan(*read_dicom(path), path)
    header = pair_of(path)[0] if is_pair(path) else path
    start = _start_of(header)
    known = (is_nifti, read_nifti), (is_nrrd, read_nrrd), (is_metaimage, read_metaimage), (is_dicom, read_dicom)
    read = next((read for is_it, read in known if is_it(start)), None)
    if read is None:
        if called := next((name for mark, name in _OTHERS if start.startswith(mark)), None):
            raise DataError(f"{path}: is {called} and no scan; convert it to .nii.gz.")
        raise DataError(f"{path}: cut off or of an unknown format; copy it again, or convert it to .nii.gz.")
    try:
        return _as_scan(*read(header), path)
    except MemoryError as error:
        raise DataError(f"{path}: this machine has not the memory to read it; crop it.") from error


def write_volume(array: Tensor | NDArray[Any], affine: Tensor, path: Path) -> None:
    """Write an array (I, J, K) as NIfTI, whole or not at all.

    Args:
        array: Integers are kept as int32 (uint8 for bool), floats as float32.
        affine: (4, 4), voxel indices to RAS mm.
        path: Ends in .nii or .nii.gz; an existing file is replaced.

    Raises:
        ValueError: If the path does not end so.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: results are written as NIfTI; choose a name that ends in .nii.gz or .nii.")
    values = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
    kind = np.uint8 if values.dtype == bool else np.float32 if values.dtype.kind == "f" else np.int32
    form = nib.Nifti1Image if max(values.shape) < 2**15 else nib.Nifti2Image  # its lengths are int16
    picture: Any = form(values.astype(kind, copy=False), affine.detach().cpu().numpy().astype(np.float64))  # type: ignore[no-untyped-call]
    picture.header.set_xyzt_units("mm")
    data = picture.to_bytes()
    if path.name.endswith(".gz"):
        data = gzip.compress(data, compresslevel=4, mtime=0)
    write_bytes(path, data)


def parts_of(path: Path) -> list[Path]:
    """Return the files that hold a scan: one, or a header and its voxels, or all files of a folder.

    Raises:
        DataError: If it is no scan, or its voxels are missing or elsewhere.
    """
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    if is_pair(path):
        return list(pair_of(path))
    start = _start_of(path)
    beside = nrrd.voxels_beside if is_nrrd(start) else metaimage.voxels_beside if is_metaimage(start) else None
    voxels = None if beside is None else beside(path)
    return [path] if voxels is None else [path, voxels]


def _start_of(path: Path) -> bytes:
    """Return what a file begins with, decompressed, enough to know its format by."""
    if not path.exists():
        raise DataError(f"{path}: no such file; correct the path.")
    with open_regular(path) as file:
        start = file.read(_START_BYTES)
        if start[: len(GZIP)] != GZIP:
            return start
        file.seek(0)
        return bytes(Inflated(path, file).read(_START_BYTES))


def _as_scan(voxels: NDArray[Any], affine: NDArray[np.float64], path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return what can be a scan, without trailing axes of length 1 and in this machine's byte order."""
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3 or voxels.size == 0 or voxels.dtype.kind not in "biuf":
        shape = " x ".join(map(str, voxels.shape))
        raise DataError(f"{path}: {shape} {voxels.dtype} is no three-dimensional scan; write one file per channel.")
    if not has_inverse(torch.from_numpy(affine)):
        raise DataError(f"{path}: its affine has no inverse (a voxel edge of 0 mm?); convert it from its source again.")
    edges_mm, far_mm = np.linalg.norm(affine[:3, :3], axis=0), np.abs(affine[:3, 3]).max()
    if not EDGES_MM[0] <= edges_mm.min() <= edges_mm.max() <= EDGES_MM[1] or far_mm > FAR_MM:
        raise DataError(
            f"{path}: voxel edges of {', '.join(f'{edge:.3g}' for edge in edges_mm)} mm, {far_mm:.3g} mm from the "
            "origin, are no scan's; correct the header."
        )
    return voxels.astype(voxels.dtype.newbyteorder("="), copy=False), affine
