"""Damaged and hostile image files end in one line: no wrong voxel, no memory, no waiting."""

from __future__ import annotations

import bz2
import gzip
import os
import signal
import socket
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from mois.errors import DataError
from mois.records import Volume
from mois.scans.image_files import read_image
from mois.scans.volumes import read_volume
from tests.support.datasets import save_nifti
from tests.support.scan_files import affine, as_itk, scan, write_dicom, write_mha, write_nrrd
from tests.support.session_fakes import make_segmenter

MEMORY_BYTES = 50 << 20
PATIENCE_S = 20


@contextmanager
def in_no_time(memory: bool = True) -> Iterator[None]:
    """Fail where something waits, or takes memory."""

    def give_up(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE_S)
    tracemalloc.start()
    try:
        yield
        assert not memory or tracemalloc.get_traced_memory()[1] < MEMORY_BYTES
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(path, message=""):
    with in_no_time(), pytest.raises(DataError, match=message) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)


def noise():
    return np.random.default_rng(0).integers(0, 500, (16, 24, 10)).astype(np.int16)


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "a.nii.gz", "b.nrrd", "c.mhd"])
def test_no_flipped_bit_of_a_compressed_file_goes_unnoticed(tmp_path, name):
    path = tmp_path / name
    if name == "b.nrrd":
        write_nrrd(path, noise(), affine(), encoding="bzip2")
        head, _, data = path.read_bytes().partition(b"\n\n")
        path.write_bytes(head + b"\n\n" + bz2.compress(data))
    elif name == "a.nii.gz":
        save_nifti(path, noise(), affine())
    else:
        sitk.WriteImage(as_itk(noise(), affine()), str(path), True)
    voxels, place = read_image(path)
    damaged = path.with_suffix(".zraw") if name == "c.mhd" else path
    whole = damaged.read_bytes()
    start = {"a.nii.gz": 10, "c.mhd": 0}.get(name) or len(whole) - len(zlib.compress(noise().tobytes(order="F"))) + 200
    noticed = 0
    for at in np.random.default_rng(1).integers(min(start, len(whole) - 400), len(whole), 40):
        data = bytearray(whole)
        data[at] ^= 1 << int(at) % 8
        damaged.write_bytes(data)
        try:
            found, its_place = read_image(path)
        except DataError:
            noticed += 1
        else:  # a byte that means nothing, such as the time in gzip's header
            assert np.array_equal(found, voxels)
            assert np.array_equal(its_place, place)
    assert noticed >= 38


HUGE = "30000 30000 30000"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [(30000,) * 3, (1500, 1500, 900), (32767,) * 3])
def test_a_small_file_with_a_huge_nifti_header_takes_no_memory(tmp_path, packed, size):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_data_shape(size)
    header.set_sform(affine(), 1)
    header["vox_offset"] = 352
    data = header.binaryblock + bytes(700)
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    path.write_bytes(gzip.compress(data) if packed else data)
    refused(path, "its header declares")


@pytest.mark.parametrize("packed", ["True", "False"])
def test_a_small_file_with_another_huge_header_takes_no_memory(tmp_path, packed):
    for size in (HUGE, "1500 1500 900", "2000000000 1 1", "99999999999999999999 1 1"):
        refused(write_mha(tmp_path / "a.mha", scan(), affine(), DimSize=size, CompressedData=packed), "header declares")
        coding = "gzip" if packed == "True" else "raw"
        refused(write_nrrd(tmp_path / "a.nrrd", scan(), affine(), sizes=size, encoding=coding), "its header declares")


def test_a_huge_series_takes_no_memory(tmp_path):
    def grow(one, number):
        one.Rows = one.Columns = 65535

    refused(write_dicom(tmp_path / "a", scan(), affine(), grow), "header declares|GiB|cannot be read")


def bomb(start: bytes, gigabytes: int = 10) -> bytes:
    """Return a gzip stream of so many zeros after a start, 10 MB of it; its sum would be found wrong at the end."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = squeeze.compress(start) + squeeze.flush(zlib.Z_FULL_FLUSH)
    block = squeeze.compress(bytes(1 << 24)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    return head + block * (gigabytes * 64) + squeeze.flush()


@pytest.mark.parametrize("size", [(5, 6, 7), (4000, 4000, 400)])
def test_a_gzip_bomb_is_inflated_no_further_than_declared(tmp_path, size):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(size)
    header.set_sform(affine(), 1)
    header["vox_offset"] = 352
    (tmp_path / "a.nii.gz").write_bytes(bomb(header.binaryblock + bytes(4)))
    refused(tmp_path / "a.nii.gz", "declares")
    path = write_nrrd(tmp_path / "a.nrrd", scan(), affine(), sizes=" ".join(map(str, size)))
    head = path.read_bytes().partition(b"\n\n")[0]
    path.write_bytes(head + b"\n\n" + bomb(b""))
    refused(path, "declares")
    path = write_mha(tmp_path / "a.mha", scan(), affine(), DimSize=" ".join(map(str, size)), CompressedData="True")
    head = path.read_bytes().partition(b"LOCAL\n")[0]
    path.write_bytes(head + b"LOCAL\n" + bomb(b""))
    refused(path, "declares")


def test_a_bzip2_bomb_is_not_blown_up(tmp_path):
    path = write_nrrd(tmp_path / "a.nrrd", scan(), affine(), encoding="bzip2")
    head = path.read_bytes().partition(b"\n\n")[0]
    path.write_bytes(head + b"\n\n" + bz2.compress(bytes(40_000_000)))
    refused(path, "more than the 420 bytes")


def test_a_header_without_end_is_not_read_whole(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0005\n" + b"#" * 30_000_000)
    refused(tmp_path / "a.nrrd", "does not end")
    (tmp_path / "a.mha").write_bytes(b"NDims = 3\n" + b"Comment = x\n" * 300_000)
    refused(tmp_path / "a.mha", "Comment twice|does not end")
    (tmp_path / "b.mha").write_bytes(b"NDims = " + b"3" * 30_000_000)
    refused(tmp_path / "b.mha", "does not end")


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "link to a device"])
@pytest.mark.parametrize("role", ["image", "label", "voxels of a header", "voxels of a pair"])
def test_only_regular_files_are_read(tmp_path, monkeypatch, kind, role):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = tmp_path / "odd.img"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind("odd.img")
    else:
        path.symlink_to("/dev/zero")
    if role == "label":
        image = save_nifti(tmp_path / "i.nii.gz", scan(), affine())
        odd = path.rename(tmp_path / "odd.nii.gz")
        with in_no_time(), pytest.raises(DataError, match="not a regular file"):
            read_volume(image, odd, subject="s", patient="p", classes={1: "a"})
    elif role == "image":
        refused(path.rename(tmp_path / "odd.nii"), "not a regular file")
    elif role == "voxels of a header":
        refused(write_mha(tmp_path / "a.mhd", scan(), affine(), ElementDataFile="odd.img"), "not a regular file")
    else:
        pair = nib.Nifti1Pair(scan(), affine())
        nib.save(pair, tmp_path / "even.img")
        (tmp_path / "even.hdr").rename(tmp_path / "odd.hdr")
        refused(tmp_path / "odd.hdr", "not a regular file")


def test_a_pipe_in_a_series_folder_is_not_waited_for(tmp_path):
    write_dicom(tmp_path / "a", scan(), affine())
    os.mkfifo(tmp_path / "a" / "00000.dcm")
    with in_no_time():
        assert np.array_equal(read_image(tmp_path / "a")[0], scan())


@pytest.mark.parametrize(
    ("more", "taken"),
    [
        (bytes(512), True),  # a tape's padding
        (b"signed by someone", True),  # the scan itself is whole, and its sum right
        (gzip.compress(b"", mtime=0), True),
        (gzip.compress(b"more", mtime=0), False),
    ],
)
def test_what_follows_a_whole_gzip_file(tmp_path, more, taken):
    path = save_nifti(tmp_path / "a.nii.gz", scan(), affine())
    path.write_bytes(path.read_bytes() + more)
    if taken:
        assert np.array_equal(read_image(path)[0], scan())
    else:
        refused(path, "more than the 420 bytes that its header declares")


def test_gzip_in_several_parts_is_one_file(tmp_path):
    data = nib.Nifti1Image(noise(), affine()).to_bytes()
    for size in (100, 348, 1000, 5000):
        path = tmp_path / "a.nii.gz"
        path.write_bytes(b"".join(gzip.compress(data[at : at + size]) for at in range(0, len(data), size)))
        assert np.array_equal(read_image(path)[0], noise())
        path.write_bytes(path.read_bytes()[:-30])
        refused(path, "cut off")


def test_a_damaged_compressed_picture_of_a_series_is_named(tmp_path):
    import pydicom

    write_dicom(tmp_path / "a", noise(), affine())
    for path in (tmp_path / "a").iterdir():
        one = pydicom.dcmread(path)
        one.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
        one.PixelData = pydicom.encaps.encapsulate([os.urandom(300)])
        one["PixelData"].VR = "OB"
        one.save_as(path)
    with in_no_time(memory=False), pytest.raises(DataError, match="cannot be decompressed"):
        read_image(tmp_path / "a")


def test_a_scan_in_metres_is_refused_before_pictures_are_made():
    wide = torch.diag(torch.tensor([2000.0, 6000.0, 2000.0, 1.0], dtype=torch.float64))
    volume = Volume("s", "p", torch.rand(40, 8, 48), wide, torch.zeros(40, 8, 48, dtype=torch.int32), {})
    with in_no_time(), pytest.raises(ValueError, match=r"pixel_mm=1.5 makes 8 pictures of 64000 x 53333 pixels"):
        make_segmenter().encode(volume)
