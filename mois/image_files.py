"""Voxels and affines from image files and to NIfTI; a broken file stops here."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray
from torch import Tensor

from mois.errors import DataError
from mois.files import write_bytes

__all__ = ["DataError", "read_image", "write_volume"]


def read_image(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read any scan or label map.

    Args:
        path: NIfTI, NRRD or MHA file, or a folder that holds one DICOM series.

    Returns:
        Voxels (I, J, K) in the file's own type, and the affine (4, 4) from voxel indices to RAS mm.

    Raises:
        DataError: If it is missing, cut off, not three-dimensional or has no orientation.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; correct the path.")
    if path.is_dir() or not path.name.endswith((".nii", ".nii.gz")):
        return _read_with_itk(path)
    return _read_nifti(path)


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
    picture = nib.Nifti1Image(values.astype(kind, copy=False), affine.detach().cpu().numpy().astype(np.float64))
    picture.header.set_xyzt_units("mm")
    data = picture.to_bytes()
    if path.name.endswith(".gz"):
        data = gzip.compress(data, compresslevel=4, mtime=0)
    write_bytes(path, data)


def _read_nifti(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    data = path.read_bytes()
    try:
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        kind = nib.Nifti2Image if data[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
        picture = kind.from_bytes(data)
        voxels = np.asanyarray(picture.dataobj)
    except (EOFError, OSError, ValueError, zlib.error, HeaderDataError, ImageFileError, WrapStructError) as error:
        raise DataError(f"{path}: cut off or no NIfTI file; copy it again from its source.") from error
    if int(picture.header["sform_code"]) == 0 and int(picture.header["qform_code"]) == 0:
        raise DataError(
            f"{path}: says nothing about orientation (sform and qform codes are 0); convert it from DICOM again."
        )
    return _as_scan(voxels, np.asarray(picture.affine, np.float64), path)


def _read_with_itk(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    sitk = _itk()
    try:
        picture = sitk.ReadImage(_series_files(path) if path.is_dir() else str(path))
    except RuntimeError as error:
        raise DataError(f"{path}: cut off or of an unknown format; copy it again, or convert it to .nii.gz.") from error
    if picture.GetNumberOfComponentsPerPixel() != 1:
        raise DataError(f"{path}: holds colours or vectors; write one file per channel.")
    voxels = sitk.GetArrayFromImage(picture).T
    affine = np.eye(4)
    if picture.GetDimension() == 3:
        direction = np.array(picture.GetDirection()).reshape(3, 3)
        affine[:3, :3] = direction * np.array(picture.GetSpacing())
        affine[:3, 3] = picture.GetOrigin()
    return _as_scan(voxels, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, path)  # LPS to RAS


def _itk() -> Any:
    """Return SimpleITK, which keeps its warnings to itself: what they lead to is said in our line."""
    import SimpleITK as sitk  # noqa: N813 - its name everywhere; most scans are NIfTI and do without

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return sitk


def _series_files(folder: Path) -> list[str]:
    """Return the files of a folder's only DICOM series, in order of place, refusing gaps."""
    sitk = _itk()
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise DataError(f"{folder}: holds {len(series)} DICOM series; give a folder with the files of exactly one.")
    files = list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0]))
    places = []
    for file in files:
        reader = sitk.ImageFileReader()
        reader.SetFileName(file)
        reader.ReadImageInformation()
        places.append(reader.GetOrigin())
    steps_mm = np.linalg.norm(np.diff(np.array(places), axis=0), axis=1)
    if len(steps_mm) and float(np.ptp(steps_mm)) > 0.05 * float(np.median(steps_mm)):
        raise DataError(
            f"{folder}: slices lie {steps_mm.min():.3g} to {steps_mm.max():.3g} mm apart; add the missing files."
        )
    return files


def _as_scan(voxels: NDArray[Any], affine: NDArray[np.float64], path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return what can be a scan, without trailing axes of length 1."""
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3 or voxels.size == 0 or voxels.dtype.kind not in "biuf":
        shape = " x ".join(map(str, voxels.shape))
        raise DataError(f"{path}: {shape} {voxels.dtype} is no three-dimensional scan; write one file per channel.")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(f"{path}: its affine has no inverse (a voxel edge of 0 mm?); convert it from its source again.")
    return voxels, affine
