"""Reads voxels and affines from image files, and writes NIfTI. Broken files are refused here."""

from __future__ import annotations

import gzip
import re
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

__all__ = ["DataError", "check_link", "name_of", "parts_of", "read_image", "write_volume"]

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
_ENDING = re.compile(r"\.(nii|hdr|img|nhdr|nrrd|mha|mhd|dcm|ima)(\.gz)?$", re.IGNORECASE)
EDGES_MM = (1e-7, 1e5)
FAR_MM = 1e7
"""Limits of a header: edges of a voxel from 0.1 nm to 100 m, and at most 10 km from the origin."""


def read_image(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read a scan or a label map.

    docs/image_files.md lists the header entries that are used, and those that are refused.

    Args:
        path: A file: NIfTI (one file, or .hdr and .img), NRRD, MetaImage or DICOM. Its content decides the format, not
            its name. Or a folder that holds one DICOM series.

    Returns:
        Voxels (I, J, K) in the type of the file, and the affine (4, 4) from voxel indices to RAS mm.

    Raises:
        DataError: If the file is missing, cut off, damaged, too large, not three-dimensional, or without orientation.
            Also if its header has an entry that cannot be used.
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


def name_of(scan: Path) -> str:
    """Return the name of a scan: that of its folder, or of its file without the ending of an image.

    Other dots are part of the name: a.1.nii.gz and a.2.nii.gz are two scans, and folders of DICOM are often called by
    numbers with dots.
    """
    if scan.is_dir():
        return scan.resolve().name or "scan"
    return _ENDING.sub("", scan.name) or scan.name


def check_link(path: Path) -> None:
    """Refuse a link to a file that is missing: datalad and git-annex leave one for a file that was not fetched.

    Raises:
        DataError: If it is such a link.
    """
    if path.is_symlink() and not path.exists():
        raise DataError(
            f"{path}: is a link to {path.readlink()}, which is missing; get that file (datalad get), or remove the "
            "link."
        )


def write_volume(array: Tensor | NDArray[Any], affine: Tensor, path: Path) -> None:
    """Write an array (I, J, K) as NIfTI, whole or not at all.

    Args:
        array: Integers are kept as int32 (uint8 for bool), floats as float32.
        affine: (4, 4), voxel indices to RAS mm.
        path: Ends in .nii or .nii.gz; an existing file is replaced.

    Raises:
        ValueError: If the path has another ending.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: results are written as NIfTI; choose a name that ends in .nii.gz or .nii.")
    values = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
    kind = np.uint8 if values.dtype == bool else np.float32 if values.dtype.kind == "f" else np.int32
    form = nib.Nifti1Image if max(values.shape) < 2**15 else nib.Nifti2Image  # lengths in NIfTI-1 are int16
    picture: Any = form(values.astype(kind, copy=False), affine.detach().cpu().numpy().astype(np.float64))  # type: ignore[no-untyped-call]
    picture.header.set_xyzt_units("mm")
    data = picture.to_bytes()
    if path.name.endswith(".gz"):
        data = gzip.compress(data, compresslevel=4, mtime=0)
    write_bytes(path, data)


def parts_of(path: Path) -> list[Path]:
    """Return the files of a scan: one file, a header and its voxels, or all files of a folder.

    Raises:
        DataError: If the file is no scan, or its voxels are missing or in another folder.
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
    """Return the first bytes of a file, decompressed. They are enough to recognise its format."""
    check_link(path)
    if not path.exists():
        raise DataError(f"{path}: no such file; correct the path.")
    with open_regular(path) as file:
        start = file.read(_START_BYTES)
        if start[: len(GZIP)] != GZIP:
            return start
        file.seek(0)
        return bytes(Inflated(path, file).read(_START_BYTES))


def _as_scan(voxels: NDArray[Any], affine: NDArray[np.float64], path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return a checked scan, without trailing axes of length 1 and in the byte order of this machine.

    Raises:
        DataError: If it is no three-dimensional scan, or its affine cannot be used.
    """
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
            "origin, do not fit a scan; correct the header."
        )
    return voxels.astype(voxels.dtype.newbyteorder("="), copy=False), affine
