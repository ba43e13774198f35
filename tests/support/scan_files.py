"""The same scan written in many ways, by other programs' libraries or by hand."""

from __future__ import annotations

import gzip
import itertools
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from mois.errors import DataError
from mois.scans.image_files import read_image

SHAPE = (5, 6, 7)
ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def scan() -> NDArray:
    """Every voxel has a value of its own."""
    return np.arange(1, 1 + math.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


def affine(tilt: float = 0.0, turn: float = 0.0, spacing: tuple[float, float, float] = (2.0, 6.0, 3.0)) -> NDArray:
    """Return a straight grid, one that is turned about the long axis, or one whose slices lean (a tilted gantry)."""
    matrix = np.eye(4)
    turned, tilted = math.radians(turn), math.radians(tilt)
    matrix[:2, :2] = [[math.cos(turned), -math.sin(turned)], [math.sin(turned), math.cos(turned)]]
    lean = np.eye(4)
    lean[1, 1], lean[2, 1] = math.cos(tilted), math.sin(tilted)  # rows lean, slices go on straight up
    matrix = matrix @ lean @ np.diag([*spacing, 1.0])
    matrix[:3, 3] = np.array([10, -20, 30]) * min(spacing) / 2
    return matrix


def stored_otherwise(array: NDArray, matrix: NDArray, order: tuple, signs: tuple) -> tuple[NDArray, NDArray]:
    """The same voxels with their axes in another order and direction, by nibabel."""
    orientation = np.stack([np.argsort(order), np.array(signs)[np.argsort(order)]], axis=1)
    back = nib.orientations.inv_ornt_aff(orientation, array.shape)
    return nib.orientations.apply_orientation(array, orientation), matrix @ back


def as_itk(array: NDArray, matrix: NDArray) -> sitk.Image:
    """Return an image of ITK's; its axes must stand at right angles."""
    picture = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    lps = LPS @ matrix
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    picture.SetSpacing(spacing.tolist())
    picture.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    picture.SetOrigin(lps[:3, 3].tolist())
    return picture


def write_nrrd(path: Path, array: NDArray, matrix: NDArray, **changes: str | None) -> Path:
    """Write an NRRD by hand, in LPS unless `space` says otherwise; None leaves an entry out."""
    encoding = changes.get("encoding", "gzip")
    lps = (LPS @ matrix)[:3]
    fields = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, array.shape)),
        "space_directions": " ".join("(" + ",".join(map(repr, column.tolist())) + ")" for column in lps[:, :3].T),
        "space_origin": "(" + ",".join(map(repr, lps[:, 3].tolist())) + ")",
        "endian": "little",
        "encoding": encoding,
    } | changes
    text = "".join(f"{name.replace('_', ' ')}: {value}\n" for name, value in fields.items() if value is not None)
    data = array.astype("<i2").tobytes(order="F")
    path.write_bytes(
        b"NRRD0005\n# by hand\n" + text.encode() + b"\n" + (gzip.compress(data) if encoding == "gzip" else data)
    )
    return path


def write_mha(path: Path, array: NDArray, matrix: NDArray, **changes: str | None) -> Path:
    """Write a MetaImage by hand, uncompressed; None leaves an entry out."""
    lps = LPS @ matrix
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": " ".join(map(repr, (lps[:3, :3] / spacing).T.ravel().tolist())),
        "Offset": " ".join(map(repr, lps[:3, 3].tolist())),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": " ".join(map(repr, spacing.tolist())),
        "DimSize": " ".join(map(str, array.shape)),
        "ElementType": "MET_SHORT",
    } | changes
    fields["ElementDataFile"] = fields.pop("ElementDataFile", "LOCAL")  # the last one
    text = "".join(f"{name} = {value}\n" for name, value in fields.items() if value is not None)
    path.write_bytes(text.encode() + array.astype("<i2").tobytes(order="F"))
    return path


def dicom_slice(array: NDArray, matrix: NDArray, number: int, series: str = "1.2.3.4") -> Dataset:
    """Return one slice of a series; columns are I, rows J."""
    lps = LPS @ matrix
    edges = np.linalg.norm(lps[:3, :2], axis=0)
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = MRImageStorage
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = generate_uid(entropy_srcs=[series, str(number)])
    one.SeriesInstanceUID, one.StudyInstanceUID, one.Modality = series, "1.2.3", "MR"
    one.InstanceNumber = number + 1
    one.ImagePositionPatient = [f"{value:.10g}" for value in (lps @ [0, 0, number, 1])[:3]]
    one.ImageOrientationPatient = [f"{value:.10g}" for value in (lps[:3, :2] / edges).T.ravel()]
    one.PixelSpacing = [f"{edges[1]:.10g}", f"{edges[0]:.10g}"]
    one.SliceThickness = f"{np.linalg.norm(lps[:3, 2]):.10g}"
    one.Rows, one.Columns = array.shape[1], array.shape[0]
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
    one.PixelData = np.ascontiguousarray(array[:, :, number].T.astype("<i2")).tobytes()
    return one


def write_dicom(folder: Path, array: NDArray, matrix: NDArray, change=None) -> Path:
    """Write a series whose names say nothing about the order; `change(slice, number)` may change a slice."""
    folder.mkdir()
    for number in range(array.shape[2]):
        one = dicom_slice(array, matrix, number)
        if change is not None:
            change(one, number)
        one.save_as(folder / f"{(number * 5 + 3) % 11:02d}.dcm", enforce_file_format=True)
    return folder


def compress_by_itk(path: Path) -> None:
    """Compress a slice as lossless JPEG, as scanners do."""
    stored = sitk.ReadImage(str(path))
    picture = sitk.Cast(stored, sitk.sitkUInt16)
    for key in stored.GetMetaDataKeys():
        if not key.startswith("0028"):
            picture.SetMetaData(key, stored.GetMetaData(key))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    writer.SetFileName(str(path))
    writer.Execute(picture)


def write_frames(path: Path, array: NDArray, matrix: NDArray) -> Path:
    """Write one file of many frames, last one first, as enhanced MR has them."""
    one = dicom_slice(array, matrix, 0)
    order = list(range(array.shape[2]))[::-1]
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = pydicom.uid.EnhancedMRImageStorage
    one.NumberOfFrames = len(order)
    one.PixelData = np.concatenate([array[:, :, n].T.astype("<i2").ravel() for n in order]).tobytes()
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = one.PixelSpacing, one.SliceThickness
    orientation.ImageOrientationPatient = one.ImageOrientationPatient
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    one.SharedFunctionalGroupsSequence = [shared]
    one.PerFrameFunctionalGroupsSequence = []
    for n in order:
        position, own = Dataset(), Dataset()
        position.ImagePositionPatient = dicom_slice(array, matrix, n).ImagePositionPatient
        own.PlanePositionSequence = [position]
        one.PerFrameFunctionalGroupsSequence.append(own)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(one, name)
    one.save_as(path, enforce_file_format=True)
    return path


def refused(path: Path, message: str) -> None:
    """Expect `read_image` to refuse a file in one line that names it, says what is wrong and what to do."""
    with pytest.raises(DataError, match=message) as caught:
        read_image(path)
    line = str(caught.value)
    assert line.startswith(str(path))
    assert "\n" not in line
    assert ";" in line
