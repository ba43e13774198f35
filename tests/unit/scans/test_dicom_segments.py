"""DICOM-SEG refers to the series of the scan, and highdicom reads back the same voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mois.errors import DataError
from mois.scans.dicom_segments import is_series, write_dicom_segments
from mois.scans.image_files import read_image
from mois.scans.segments import Segment
from tests.support.scan_files import affine, scan, write_dicom, write_frames

highdicom = pytest.importorskip("highdicom")
SEGMENTS = [Segment(1, "lesion 1"), Segment(7, "lesion 7")]


def add_names(one, number):
    one.FrameOfReferenceUID = "1.2.7"
    one.PatientID, one.PatientName = "p", "P"


def labels(shape):
    array = np.zeros(shape, np.int32)
    array[1:3, 2:5, 3:6] = 1
    array[4, 5, 0] = 7
    return array


@pytest.mark.parametrize(("tilt", "turn"), [(0, 0), (0, 20), (15, 30)])
@pytest.mark.filterwarnings("error")
def test_segments_of_a_series_read_back(tmp_path: Path, tilt: float, turn: float) -> None:
    series = write_dicom(tmp_path / "series", scan(), affine(tilt, turn), add_names)
    voxels, _ = read_image(series)
    given = labels(voxels.shape)
    write_dicom_segments(given, series, SEGMENTS, tmp_path / "lesions.dcm", "1.0")
    seg = highdicom.seg.segread(tmp_path / "lesions.dcm")
    assert [seg.get_segment_description(n).segment_label for n in (1, 2)] == ["lesion 1", "lesion 7"]
    assert seg.PatientID == "p"
    referred = [item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence]
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.4"
    assert len(referred) == voxels.shape[2]
    by_slice = sorted(_positions(series).items(), key=lambda each: each[1])
    frames = seg.get_pixels_by_source_instance(
        [uid for uid, _ in by_slice],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
        ignore_spatial_locations=True,
    )
    back = np.array([0, 1, 7])[frames].transpose(2, 1, 0)
    assert np.array_equal(back, given)


def _positions(series: Path) -> dict[str, int]:
    """The slice of each file in the volume, by its first voxel: every voxel of `scan` has a value of its own."""
    import pydicom

    voxels, _ = read_image(series)
    found = {}
    for file in series.iterdir():
        one = pydicom.dcmread(file)
        (number,) = [k for k in range(voxels.shape[2]) if voxels[0, 0, k] == one.pixel_array[0, 0]]
        found[one.SOPInstanceUID] = number
    return found


def test_what_is_a_series_and_what_a_segmentation_needs(tmp_path: Path) -> None:
    series = write_dicom(tmp_path / "series", scan(), affine())
    assert is_series(series)
    assert is_series(next(series.iterdir()))
    assert not is_series(tmp_path / "missing")
    given = labels(read_image(series)[0].shape)
    with pytest.raises(DataError, match="has no FrameOfReferenceUID"):
        write_dicom_segments(given, series, SEGMENTS, tmp_path / "lesions.dcm", "1.0")
    with pytest.raises(DataError, match="voxels, the label map"):
        write_dicom_segments(given[1:], series, SEGMENTS, tmp_path / "lesions.dcm", "1.0")
    assert not (tmp_path / "lesions.dcm").exists()


def test_a_session_on_a_series_writes_segments_that_refer_to_it(tmp_path: Path) -> None:
    from mois.scans.volumes import read_volume
    from mois.session import InteractiveSession
    from tests.support.session_fakes import make_model, three_lesions

    given = three_lesions()
    series = write_dicom(tmp_path / "series", given.image.numpy().astype(np.int16), given.affine.numpy(), add_names)
    volume = read_volume(series, None, subject="s", patient="s", classes={})
    session = InteractiveSession(make_model(), volume, tmp_path / "out")
    session.save()
    assert not (tmp_path / "out" / "lesions.dcm").exists()  # no lesion, no segment
    mask = np.zeros(volume.shape, bool)
    mask[10:14, 12:15, 1:3] = True
    session.mask(mask)
    session.save()
    seg = highdicom.seg.segread(tmp_path / "out" / "lesions.dcm")
    assert int(seg.pixel_array.sum()) == 24
    assert (tmp_path / "out" / "results.json").read_text().count("lesions.dcm") == 1


def test_segments_of_one_file_of_many_frames_read_back(tmp_path: Path) -> None:
    import pydicom

    path = write_frames(tmp_path / "frames.dcm", scan(), affine(turn=20))
    one = pydicom.dcmread(path)
    add_names(one, 0)
    one.ContentDate, one.ContentTime = "20260101", "120000"
    one.save_as(path)
    voxels, _ = read_image(path)
    given = labels(voxels.shape)
    write_dicom_segments(given, path, SEGMENTS, tmp_path / "lesions.dcm", "1.0")
    seg = highdicom.seg.segread(tmp_path / "lesions.dcm")
    frames = seg.get_pixels_by_source_frame(
        one.SOPInstanceUID,
        list(range(1, voxels.shape[2] + 1)),
        combine_segments=True,
        assert_missing_frames_are_empty=True,
        ignore_spatial_locations=True,
    )
    back = np.array([0, 1, 7])[frames].transpose(2, 1, 0)[:, :, ::-1]  # `write_frames` writes the last one first
    assert np.array_equal(back, given)
