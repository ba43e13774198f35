"""Headers that move voxels: honoured where they can be, refused by name where they cannot."""

from __future__ import annotations

import math

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from mois.errors import DataError
from mois.scans.image_files import read_image
from tests.support.scan_files import (
    affine,
    as_itk,
    refused,
    scan,
    write_mha,
    write_nrrd,
)

LPS_AT_10_20_30 = np.array([[-2, 0, 0, -10], [0, -6, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1.0]])


# -- NIfTI ------------------------------------------------------------------------------------------------------------


def nifti(path, change, array=None):
    picture = nib.Nifti1Image(scan() if array is None else array, affine())
    picture.header.set_xyzt_units("mm")
    picture.set_qform(affine(), 1)
    change(picture)
    nib.save(picture, path)
    return path


def put(name, value):
    def change(picture):
        picture.header[name] = value

    return change


@pytest.mark.parametrize(("unit", "mm"), [("unknown", 1.0), ("meter", 1e3), ("mm", 1.0), ("micron", 1e-3)])
def test_lengths_are_millimetres_whatever_the_unit(tmp_path, unit, mm):
    path = nifti(tmp_path / "a.nii.gz", lambda picture: picture.header.set_xyzt_units(unit, "sec"))
    assert np.allclose(read_image(path)[1][:3], affine()[:3] * mm, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("xyzt_units", 5), "xyzt_units=5"),
        (lambda p: p.set_sform(affine() + np.eye(4, k=3) * 9, 1), r"lies in two places: .* up to 9 mm apart"),
        (lambda p: p.set_sform(np.diag([-1, 1, 1, 1]) @ affine(), 4), "lies in two places"),
        (lambda p: (put("sform_code", 0)(p), put("qform_code", 0)(p)), "nothing about orientation"),
        (lambda p: (put("sform_code", 0)(p), p.header["pixdim"].__setitem__(0, -2)), r"pixdim\[0\]=-2"),
        (lambda p: (put("sform_code", 0)(p), p.header["pixdim"].__setitem__(2, -6)), r"pixdim\[1:4\]"),
        (lambda p: (put("sform_code", 0)(p), p.header["pixdim"].__setitem__(1, np.nan)), r"pixdim\[1:4\]"),
        (lambda p: (put("sform_code", 0)(p), put("quatern_b", 2)(p)), "qform is no rotation"),
        (lambda p: (put("qform_code", 0)(p), put("srow_x", [0, 0, 0, 0])(p)), "no inverse"),
        (lambda p: (put("qform_code", 0)(p), put("srow_x", [np.nan, 0, 0, 0])(p)), "no inverse"),
    ],
)
def test_what_nifti_says_about_place_must_be_one_thing(tmp_path, change, message):
    def later(picture):  # nibabel mends headers when it saves
        nib.save(picture, tmp_path / "plain.nii")

    nifti(tmp_path / "a.nii", later)
    picture = nib.load(tmp_path / "a.nii")
    change(picture)
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[:348] = picture.header.binaryblock
    data[108:112] = np.float32(352).tobytes()
    (tmp_path / "a.nii").write_bytes(data)
    refused(tmp_path / "a.nii", message)


def test_sform_and_qform_may_differ_by_rounding(tmp_path):
    moved = affine()
    moved[0, 3] += 0.9  # less than half of the shortest edge, 2 mm: the sform decides
    path = nifti(tmp_path / "a.nii", lambda picture: picture.set_sform(moved, 1))
    assert np.allclose(read_image(path)[1], moved, atol=1e-5)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (40, np.int16(0), r"dim\[0\]=0"),
        (40, np.int16(-3), r"dim\[0\]=-3"),
        (42, np.int16(-5), "declares -5 x 6 x 7 voxels"),
        (42, np.int16(0), "declares 0 x 6 x 7 voxels"),
        (42, np.int16(30000), r"2520000 (bytes )?that its header declares"),
        (46, np.int16(6), "holds more than the 360 bytes"),
        (70, np.int16(7), "datatype 7"),
        (70, np.int16(32), "complex64 is no three-dimensional|holds 420 of"),
        (108, np.float32(math.nan), "vox_offset=nan"),
        (108, np.float32(0), "vox_offset=0"),
        (116, np.float32(np.inf), "scl_inter"),
        (108, np.float32(400), "holds 372 of the 420 bytes"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_nifti_says_about_size_must_be_there(tmp_path, offset, value, message, packed):
    path = nifti(tmp_path / "a.nii", lambda picture: None)
    data = bytearray(path.read_bytes())
    data[offset : offset + value.nbytes] = value.tobytes()
    if packed:
        import gzip

        path = tmp_path / "a.nii.gz"
        path.write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)
    refused(path, message)


@pytest.mark.parametrize("shape", [(5, 6, 7, 2), (5, 6), (5, 6, 1, 7), (5, 6, 7, 1, 3)])
def test_time_points_vectors_and_pictures_are_no_scan(tmp_path, shape):
    refused(nifti(tmp_path / "a.nii", lambda p: None, np.zeros(shape, np.int16)), "no three-dimensional scan")


def test_a_pair_needs_both_files(tmp_path):
    nib.save(nib.Nifti1Pair(scan(), affine()), tmp_path / "a.img")
    assert np.array_equal(read_image(tmp_path / "a.hdr")[0], scan())
    (tmp_path / "a.img").unlink()
    refused(tmp_path / "a.hdr", r"a\.img, which is missing")
    nib.save(nib.AnalyzeImage(scan(), np.diag([-2, 6, 3, 1.0])), tmp_path / "b.img")
    with pytest.raises(DataError, match=r"nothing about orientation \(ANALYZE"):
        read_image(tmp_path / "b.img")


def test_values_are_scaled_as_the_header_says(tmp_path):
    picture = nib.Nifti1Image(scan(), affine())
    picture.header.set_slope_inter(0.5, 3)
    nib.save(picture, tmp_path / "a.nii")
    stored = nib.load(tmp_path / "a.nii")
    assert np.array_equal(read_image(tmp_path / "a.nii")[0], np.asanyarray(stored.dataobj))


# -- NRRD and MetaImage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["mha", "mhd", "nrrd", "nhdr"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_time_series_of_one_is_where_its_scan_was(tmp_path, ending, times):
    picture = sitk.GetImageFromArray(np.ascontiguousarray(scan().T))
    picture.SetSpacing((2, 6, 2))
    picture.SetOrigin((10, 20, 30))
    path = tmp_path / f"a.{ending}"
    sitk.WriteImage(sitk.JoinSeries([picture] * times), str(path))
    if times == 1:
        voxels, found = read_image(path)
        assert np.array_equal(voxels, scan())
        assert np.array_equal(found, LPS_AT_10_20_30)
    else:
        with pytest.raises(DataError, match=r"5 x 6 x 7 x 2|has 2 values along axis 4"):
            read_image(path)


VECTORS = "(-2,0,0) (0,-6,0) (0,0,3)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": None}, "nothing about orientation"),
        ({"space": None, "space_directions": None, "space_origin": None, "spacings": "2 6 3"}, "nothing about orient"),
        ({"space": "scanner-xyz"}, "space: scanner-xyz does not say how the patient lies"),
        ({"space": "3D-right-handed"}, "3D-right-handed"),
        ({"space_directions": None}, "no space directions"),
        ({"space_directions": "(-2,0,0) (0,-6,0)"}, "space directions"),
        ({"space_directions": "(-2,0,0) (0,-6,0) none"}, "sizes: 5 6 7 has 7 values along axis 3"),
        ({"space_directions": "(-2,0,0) (0,-6,0) (0,0,x)"}, "space directions"),
        ({"space_directions": "(-2,0,0) (0,-6,0) (0,0,inf)"}, "space directions"),
        ({"space_directions": "(-2,0,0) (0,-6,0) (-2,0,0)"}, "no inverse"),
        ({"space_origin": None}, "no space origin"),
        ({"space_units": '"ft" "ft" "ft"'}, "space units"),
        ({"space_units": '"mm" "mm"'}, "space units"),
        ({"units": '"um" "um" "um"'}, "units"),
        ({"spacings": "2 6 3"}, "spacings: 2 6 3 and space directions both"),
        ({"axis_mins": "0 0 0"}, "axis mins"),
        ({"kinds": "domain domain time"}, "kinds: domain domain time does not fit"),
        ({"kinds": "3-vector domain domain"}, "kinds"),
        ({"dimension": "4"}, "dimension"),
        ({"sizes": "5 6 -7"}, "declares 5 x 6 x -7"),
        ({"sizes": "5 6 seven"}, "sizes"),
        ({"sizes": "5 6 8"}, "holds 420 of the 480 bytes"),
        ({"sizes": "5 6 6"}, "holds more than the 360 bytes"),
        ({"type": "block"}, "type: block"),
        ({"endian": None}, "no endian"),
        ({"endian": "middle"}, "endian"),
        ({"encoding": "hex"}, "encoding: hex"),
        ({"encoding": "raw", "byte_skip": "-2"}, "byte skip"),
        ({"byte_skip": "-1"}, "byte skip"),
        ({"byte_skip": "99999999999999999999"}, "begin at byte 1e.20 of a compressed stream"),
        ({"encoding": "bzip2", "byte_skip": "99999999999999999999"}, "begin at byte 1e.20"),
        ({"encoding": "raw", "byte_skip": "99999999999999999999"}, "begin at byte 1e.20, outside the file"),
        ({"sizes": "1 " * 100, "dimension": "100", "space_directions": "none " * 97 + VECTORS}, "declares 100 axes"),
        ({"space_directions": "(-2e-12,0,0) (0,-6e-12,0) (0,0,3e-12)"}, "do not fit a scan"),
        ({"space_origin": "(1e30,0,0)"}, "mm from the origin, do not fit a scan"),
        ({"space": "\x1b[31mred"}, r"space: \?\[31mred"),
        ({"data_file": "a" * 5000}, "aaa, which is missing"),
        ({"data_file": "."}, "which is a folder"),
        ({"data_file": "/etc/hostname"}, "outside its folder"),
        ({"data_file": "../a.raw"}, "outside its folder"),
        ({"data_file": "b.raw"}, "b.raw, which is missing"),
        ({"data_file": "b%03d.raw 1 3 1"}, "not in one file"),
        ({"space_origin": "(1,2,3)\nspace origin: (4,5,6)"}, "'space origin: .4,5,6.' twice"),
    ],
)
def test_what_nrrd_cannot_say_is_named(tmp_path, changes, message):
    refused(write_nrrd(tmp_path / "a.nrrd", scan(), affine(), **changes), message)


def test_nrrd_in_other_codings(tmp_path):
    import bz2

    def write(name, coding, data, **more):
        path = write_nrrd(tmp_path / name, scan(), affine(), encoding=coding, **more)
        head = path.read_bytes().partition(b"\n\n")[0]
        path.write_bytes(head + b"\n\n" + data)
        return path

    stored = scan().astype("<i2").tobytes(order="F")
    files = [
        write("a.nrrd", "bzip2", bz2.compress(stored)),
        write("b.nrrd", "text", " ".join(map(str, scan().ravel(order="F"))).encode(), endian=None),
        write("c.nrrd", "raw", scan().astype(">i2").tobytes(order="F"), endian="big"),
        write("d.nrrd", "raw", b"12345" + stored, byte_skip="5"),
        write("e.nrrd", "raw", b"a line\nanother\n" + stored, line_skip="2"),
    ]
    for path in files:
        assert np.array_equal(read_image(path)[0], scan()), path
    refused(write("f.nrrd", "bzip2", bz2.compress(stored)[:-9]), "cut off")
    refused(write("g.nrrd", "text", b"1 2 3", endian=None), "holds 3 of the 210 numbers")
    refused(write("h.nrrd", "text", b"a b c", endian=None), "no numbers")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"TransformMatrix": None}, "nothing about orientation"),
        ({"TransformMatrix": None, "AnatomicalOrientation": "RAI"}, "nothing about orientation"),
        ({"TransformMatrix": "1 0 0 1"}, "TransformMatrix has 4 numbers instead of 9"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "no inverse"),
        ({"TransformMatrix": "1 0 0 0 nan 0 0 0 1"}, "TransformMatrix"),
        ({"Offset": None}, "no Offset"),
        ({"Position": "1 2 3"}, "Offset twice"),
        ({"CenterOfRotation": "1 0 0"}, "CenterOfRotation = 1 0 0 is not honoured"),
        ({"ElementSpacing": None}, "no ElementSize"),
        ({"ElementSpacing": "2 6 -3"}, "ElementSpacing"),
        ({"DistanceUnits": "ft"}, "DistanceUnits = ft"),
        ({"ElementNumberOfChannels": "3"}, "ElementNumberOfChannels = 3"),
        ({"ElementToIntensityFunctionSlope": "2"}, "ElementToIntensityFunctionSlope"),
        ({"ElementType": "MET_STRING"}, "ElementType"),
        ({"NDims": "4"}, "DimSize"),
        ({"DimSize": "5 6 0"}, "DimSize"),
        ({"DimSize": "5 6 7.5"}, "DimSize"),
        ({"DimSize": "5 6 8"}, "holds 420 of the 480 bytes"),
        ({"DimSize": "5 6 6"}, "holds more than the 360 bytes"),
        ({"CompressedData": "maybe"}, "CompressedData"),
        ({"CompressedData": "True"}, "cut off or damaged"),
        ({"HeaderSize": "-2"}, "HeaderSize"),
        ({"HeaderSize": "1e30"}, "begin at byte 1e.30, outside the file"),
        ({"NDims": ""}, "DimSize"),
        ({"ElementDataFile": ""}, "which is a folder"),
        ({"ElementDataFile": "../a.raw"}, "outside its folder"),
        ({"ElementDataFile": "a.raw"}, "a.raw, which is missing"),
        ({"ElementDataFile": "LIST"}, "not in one file"),
        ({"ObjectType": "Mesh"}, "unknown format|ObjectType"),
    ],
)
def test_what_metaimage_cannot_say_is_named(tmp_path, changes, message):
    refused(write_mha(tmp_path / "a.mha", scan(), affine(), **changes), message)


def test_metaimage_in_other_codings(tmp_path):
    path = write_mha(tmp_path / "a.mha", scan(), affine(), BinaryData="False")
    head, _, _ = path.read_bytes().partition(b"LOCAL\n")
    path.write_bytes(head + b"LOCAL\n" + " ".join(map(str, scan().ravel(order="F"))).encode())
    assert np.array_equal(read_image(path)[0], scan())
    path = write_mha(tmp_path / "b.mhd", scan(), affine(), HeaderSize="-1", ElementDataFile="b.raw")
    (tmp_path / "b.raw").write_bytes(b"something first" + scan().astype("<i2").tobytes(order="F"))
    assert np.array_equal(read_image(path)[0], scan())
    for kind in (np.int8, np.uint8, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64):
        picture = as_itk((scan() % 100).astype(kind), affine(turn=25))
        for ending in ("mha", "nrrd"):
            sitk.WriteImage(picture, str(tmp_path / f"c.{ending}"), True)
            voxels, _ = read_image(tmp_path / f"c.{ending}")
            assert voxels.dtype == kind
            assert np.array_equal(voxels, scan() % 100)


def test_a_format_is_known_by_what_the_file_holds(tmp_path):
    sitk.WriteImage(as_itk(scan(), affine()), str(tmp_path / "a.mha"))
    (tmp_path / "a.mha").rename(tmp_path / "a.nii.gz")
    assert np.allclose(read_image(tmp_path / "a.nii.gz")[1], affine())
