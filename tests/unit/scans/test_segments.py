"""Lesions as segments for 3D Slicer: pynrrd and our reader read back the same voxels on the same grid."""

from __future__ import annotations

import nrrd
import numpy as np
import pytest
import torch

from mois.scans.image_files import read_image
from mois.scans.segments import Segment, write_segments
from tests.support.scan_files import LPS, ORIENTATIONS, SHAPE, affine, stored_otherwise


def labels() -> np.ndarray:
    array = np.zeros(SHAPE, np.int32)
    array[1:3, 2, 3:7] = 1
    array[4, 5, 0] = 300
    return array


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_segments_read_back_in_every_orientation(tmp_path, order, signs):
    array, matrix = stored_otherwise(labels(), affine(turn=20), order, signs)
    path = tmp_path / "a.seg.nrrd"
    write_segments(array, torch.from_numpy(matrix), [Segment(1, "a"), Segment(300, "b")], path)
    voxels, header = nrrd.read(str(path))
    assert np.array_equal(voxels, array)
    assert header["space"] == "left-posterior-superior"
    lps = LPS @ matrix
    assert np.array_equal(header["space directions"], lps[:3, :3].T)
    assert np.array_equal(header["space origin"], lps[:3, 3])
    ours, found = read_image(path)
    assert np.array_equal(ours, array)
    assert np.abs(found - matrix).max() < 1e-12


def test_each_segment_has_what_slicer_reads(tmp_path):
    path = tmp_path / "a.seg.nrrd"
    segments = [Segment(1, "lesion 1", finished=True), Segment(300, "two\nlines"), Segment(7, "empty")]
    write_segments(labels(), torch.from_numpy(affine(tilt=15)), segments, path)
    voxels, header = nrrd.read(str(path))
    assert voxels.dtype == np.uint16
    assert header["Segment0_ID"] == "lesion_1"
    assert header["Segment0_LabelValue"] == "1"
    assert header["Segment0_Extent"] == "1 2 2 2 3 6"
    assert header["Segment0_Layer"] == "0"
    assert "Status:completed" in header["Segment0_Tags"]
    assert header["Segment1_Name"] == "two lines"
    assert header["Segment1_Extent"] == "4 4 5 5 0 0"
    assert header["Segment2_Extent"] == "0 -1 0 -1 0 -1"
    colours = {header[f"Segment{number}_Color"] for number in range(3)}
    assert len(colours) == 3
    assert all(0 <= float(part) <= 1 for colour in colours for part in colour.split())


def test_no_lesion_and_another_ending(tmp_path):
    write_segments(np.zeros(SHAPE, np.int32), torch.eye(4), [], tmp_path / "a.seg.nrrd")
    assert not nrrd.read(str(tmp_path / "a.seg.nrrd"))[0].any()
    with pytest.raises(ValueError, match=r"ends in \.seg\.nrrd"):
        write_segments(labels(), torch.eye(4), [], tmp_path / "a.nrrd")
