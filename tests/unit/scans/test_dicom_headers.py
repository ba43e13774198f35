"""DICOM headers that move voxels: honoured where they can be, refused by name where they cannot."""

from __future__ import annotations

import math

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from pydicom.dataset import Dataset

from mois.errors import DataError
from mois.scans.datasets import read_dataset
from mois.scans.image_files import read_image, write_volume
from tests.support.scan_files import affine, compress_by_itk, refused, scan, write_dicom, write_frames


def test_a_tilted_gantry_leans_the_affine(tmp_path):
    # 20 degrees: rows lean, slices go on straight up, 6 mm at a time; pixels of 2 x 3 mm
    cos, sin = math.cos(math.radians(20)), math.sin(math.radians(20))

    def lean(one, number):
        one.ImageOrientationPatient = [1, 0, 0, 0, round(cos, 9), round(-sin, 9)]
        one.ImagePositionPatient = [0, 0, 6 * number]
        one.PixelSpacing = [3, 2]

    voxels, found = read_image(write_dicom(tmp_path / "a", np.zeros((5, 4, 10), np.int16), affine(), lean))
    assert voxels.shape == (5, 4, 10)
    assert np.allclose((found @ [0, 0, 9, 1])[:3], [0, 0, 54])
    assert np.allclose((found @ [1, 1, 0, 1])[:3], [-2, -3 * cos, -3 * sin])


def lean_back(one, number):
    one.ImagePositionPatient = [0, (number - 3) ** 2, 3 * number]


def twice(one, number):
    if number == 4:
        one.ImagePositionPatient = pydicom.multival.MultiValue(float, [-10, 20, 30 + 3 * 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one, n: setattr(one, "SeriesInstanceUID", f"1.2.{n // 4}"), "holds 2 DICOM series"),
        (lambda one, n: setattr(one, "FrameOfReferenceUID", f"1.2.{n // 4}"), "FrameOfReferenceUID differs"),
        (lambda one, n: setattr(one, "ImagePositionPatient", [0, 0, 3 * n + 2 * (n > 3)]), "3 to 5 mm apart"),
        (lambda one, n: setattr(one, "ImagePositionPatient", [0, 0, 3 * n * n]), "3 to 33 mm apart"),
        (lambda one, n: setattr(one, "ImagePositionPatient", [0, 0, 3 * (n // 2)]), "lie in the same place"),
        (lean_back, "mm off the line of the others"),
        (lambda one, n: setattr(one, "ImageOrientationPatient", [1, 0, 0, 0, n == 0, n > 0]), "ImageOrientationPat"),
        (lambda one, n: setattr(one, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "no right angle"),
        (lambda one, n: setattr(one, "ImageOrientationPatient", [1, 0, 0]), "not 6 finite numbers"),
        (lambda one, n: setattr(one, "PixelSpacing", [2, 2 + n]), "PixelSpacing differs"),
        (lambda one, n: setattr(one, "PixelSpacing", [0, 2]), "PixelSpacing"),
        (lambda one, n: delattr(one, "PixelSpacing"), "has no PixelSpacing"),
        (lambda one, n: delattr(one, "ImagePositionPatient"), "has no ImagePositionPatient"),
        (lambda one, n: setattr(one, "ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "MOSAIC"),
        (lambda one, n: setattr(one, "SamplesPerPixel", 3), "SamplesPerPixel"),
        (lambda one, n: setattr(one, "PhotometricInterpretation", "PALETTE COLOR"), "PALETTE COLOR says colours"),
        (lambda one, n: setattr(one, "NumberOfFrames", 3), "NumberOfFrames is 3"),
        (lambda one, n: setattr(one, "Rows", 6 + 2 * (n == 2)), "Rows and Columns differ"),
        (lambda one, n: setattr(one, "PixelData", one.PixelData[:-2]), "pixels cannot be read"),
        (lambda one, n: delattr(one, "PixelData"), "pixels cannot be read"),
        (lambda one, n: setattr(one, "ModalityLUTSequence", [Dataset()]), "ModalityLUTSequence"),
        (lambda one, n: setattr(one, "RescaleSlope", 0), "RescaleSlope is 0"),
    ],
)
def test_what_is_no_even_series_is_refused(tmp_path, change, message):
    write_dicom(tmp_path / "a", scan(), affine(), change)
    with pytest.raises(DataError, match=message) as caught:
        read_image(tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)


def test_a_missing_slice_is_noticed(tmp_path):
    write_dicom(tmp_path / "a", scan(), affine())
    sorted((tmp_path / "a").iterdir())[2].unlink()
    refused(tmp_path / "a", "3 to 6 mm apart; add the missing files")


def test_positions_may_be_rounded_to_a_tenth_of_a_millimetre(tmp_path):
    def rounded(one, number):
        one.ImagePositionPatient = [-10, 20, round(1.25 * number, 1)]

    _, found = read_image(write_dicom(tmp_path / "a", scan(), affine(), rounded))
    assert found[2, 2] == pytest.approx(1.25, abs=0.01)


def test_values_are_rescaled_slice_by_slice(tmp_path):
    def rescale(one, number):
        one.RescaleSlope, one.RescaleIntercept = 1 + number, -1024

    voxels, _ = read_image(write_dicom(tmp_path / "a", scan(), affine(), rescale))
    # series run along the normal of rows and columns, which points up here: slice 0 of the scan is slice 0
    assert np.array_equal(voxels, scan() * np.arange(1.0, 8.0) - 1024)


def test_one_slice_is_as_thick_as_it_says(tmp_path):
    one = scan()[:, :, :1]
    _, found = read_image(write_dicom(tmp_path / "a", one, affine()))
    assert np.allclose(found, affine())
    bare = write_dicom(tmp_path / "b", one, affine(), lambda one, n: delattr(one, "SliceThickness"))
    with pytest.raises(DataError, match="without SliceThickness"):
        read_image(bare)


def test_a_file_of_many_frames_is_a_scan(tmp_path):
    path = write_frames(tmp_path / "a.dcm", scan(), affine(turn=25))
    voxels, found = read_image(path)
    assert np.array_equal(voxels, scan())
    assert np.allclose(found, affine(turn=25), atol=1e-6)
    again = pydicom.dcmread(path)
    del again.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    again.save_as(path)
    refused(path, "has no PlanePositionSequence")


@pytest.mark.parametrize("implicit", [True, False])
def test_files_without_a_preamble_are_dicom_too(tmp_path, implicit):
    write_dicom(tmp_path / "a", scan(), affine())
    for path in (tmp_path / "a").iterdir():
        one = pydicom.dcmread(path)
        del one.file_meta
        one.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    voxels, found = read_image(tmp_path / "a")
    assert np.array_equal(voxels, scan())
    assert np.allclose(found, affine())


def test_other_files_in_a_series_folder_are_passed_over(tmp_path):
    write_dicom(tmp_path / "a", scan(), affine())
    (tmp_path / "a" / "README.txt").write_text("hello")
    (tmp_path / "a" / "more").mkdir()
    assert np.array_equal(read_image(tmp_path / "a")[0], scan())


@pytest.mark.parametrize("syntax", [pydicom.uid.RLELossless, pydicom.uid.ImplicitVRLittleEndian, "jpeg"])
def test_pixels_may_be_compressed(tmp_path, syntax):
    write_dicom(tmp_path / "a", scan(), affine())
    for path in (tmp_path / "a").iterdir():
        if syntax == "jpeg":  # by ITK, as scanners do
            compress_by_itk(path)
            written = pydicom.dcmread(path)
            assert written.file_meta.TransferSyntaxUID == pydicom.uid.JPEGLosslessSV1
            with pytest.raises(RuntimeError):  # pydicom leaves it to others
                _ = written.pixel_array
        elif syntax.is_compressed:
            one = pydicom.dcmread(path)
            one.compress(syntax, generate_instance_uid=False)
            one.save_as(path)
        else:
            one = pydicom.dcmread(path)
            one.file_meta.TransferSyntaxUID = syntax
            one.save_as(path, implicit_vr=True)
    voxels, found = read_image(tmp_path / "a")
    assert np.array_equal(voxels, scan())
    assert np.allclose(found, affine())


def test_values_are_not_inverted_where_low_ones_are_shown_white(tmp_path):
    write_dicom(
        tmp_path / "a", scan(), affine(), lambda one, n: setattr(one, "PhotometricInterpretation", "MONOCHROME1")
    )
    voxels, _ = read_image(tmp_path / "a")
    assert np.array_equal(voxels, scan())


def test_lossless_jpeg_that_shows_low_values_white_is_refused(tmp_path):
    write_dicom(tmp_path / "a", scan(), affine())
    for path in (tmp_path / "a").iterdir():
        compress_by_itk(path)
        one = pydicom.dcmread(path)
        one.PhotometricInterpretation = "MONOCHROME1"
        one.save_as(path)
    inverted = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
    assert inverted.min() > scan().max()  # what ITK makes of it, and why it is refused
    with pytest.raises(DataError, match=r"03.dcm: MONOCHROME1 in lossless JPEG or JPEG-LS .*; .*gdcmconv --raw"):
        read_image(tmp_path / "a")


def test_a_folder_of_dicom_is_an_image_of_a_dataset(tmp_path):
    root = tmp_path / "data"
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    (root / "dataset.json").write_text('{"labels": {"background": 0, "lesion": 1}, "file_ending": ".nii.gz"}')
    voxels, found = read_image(write_dicom(root / "imagesTr" / "b_0000", scan(), affine(turn=20)))
    labels = np.zeros(voxels.shape, np.uint8)
    labels[1:3, 2, 3] = 1
    write_volume(labels, torch.from_numpy(found), root / "labelsTr" / "b.nii.gz")
    write_volume(voxels, torch.from_numpy(found), root / "imagesTr" / "a_0000.nii.gz")
    scans = read_dataset(root)
    assert [one.subject for one in scans] == ["a", "b"]
    volume = scans[1].read()
    assert np.array_equal(volume.image.numpy(), voxels)
    assert np.array_equal(volume.lesions.numpy(), labels)
    write_volume(voxels, torch.from_numpy(found), root / "imagesTr" / "b_0000.nii.gz")
    with pytest.raises(DataError, match="scan b has this image as a file, too"):
        read_dataset(root)
