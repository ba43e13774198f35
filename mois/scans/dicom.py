"""DICOM: a folder with the files of one series, or one file of many frames."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, MutableSequence, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mois.errors import DataError, one_line
from mois.files.atomic import open_regular
from mois.scans.decompress import Decompressor
from mois.scans.stored import DAMAGED, check_size

PREAMBLE = 132
_MARK = b"DICM"
_FIRST_GROUP = b"\x08\x00"  # of a file without preamble
_DEFLATED = "1.2.840.10008.1.2.1.99"
_ORTHOGONAL = 1e-3
_UNEVEN = 0.1
"""How far a slice may lie off its place, as a share of the gap: positions are often rounded to a tenth of a mm."""
_PLAIN = {True: "1.2.840.10008.1.2", False: "1.2.840.10008.1.2.1"}  # implicit, explicit
_DIRECTORY = "1.2.840.10008.1.3.10"


def is_dicom(start: bytes) -> bool:
    """Tell whether a file begins like DICOM."""
    return start[PREAMBLE - len(_MARK) : PREAMBLE] == _MARK or (len(start) >= 8 and start[:2] == _FIRST_GROUP)


@dataclass(frozen=True, eq=False)
class _Slice:
    """A picture of a series.

    Attributes:
        path: The file.
        header: Everything but the pixels.
        frame: Number of the picture in its file, None where that has no other.
        size: Columns and rows.
        position: Of the first pixel's centre, LPS mm.
        axes: (3, 2), how far a step along a row's columns and along the rows leads, LPS mm.
        thickness_mm: None where nobody says.
    """

    path: Path
    header: Any
    frame: int | None
    size: tuple[int, int]
    position: NDArray[np.float64]
    axes: NDArray[np.float64]
    thickness_mm: float | None

    @property
    def normal(self) -> NDArray[np.float64]:
        normal = np.cross(self.axes[:, 0], self.axes[:, 1])
        return normal / np.linalg.norm(normal)


def read_dicom(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return voxels (I, J, K), rescaled as the files say, and the affine to RAS mm.

    Columns, rows and slices are I, J and K. Slices are sorted by their positions, whatever the files are called; where
    these run askew (a tilted gantry), so does the affine.

    Args:
        path: A folder that holds one series, or one file.

    Raises:
        DataError: If it is no series of parallel, evenly spaced pictures, naming the entry and the files.
    """
    with _quiet():
        slices, step = _series(path)
        first = slices[0]
        shape = (*first.size, len(slices))
        check_size(path, shape, np.dtype(np.float64))
        pictures = _Pictures().all_of(slices)
    kind = np.result_type(*(picture.dtype for picture in pictures))
    voxels = np.empty(shape, kind, order="F")
    for number, (one, picture) in enumerate(zip(slices, pictures, strict=True)):
        if picture.shape != (shape[1], shape[0]):
            raise DataError(f"{one.path}: has {picture.shape} pixels, the series {shape[1::-1]}; export it again.")
        voxels[:, :, number] = picture.T
    affine = np.eye(4)
    affine[:3, :2], affine[:3, 2], affine[:3, 3] = first.axes, step, first.position
    return voxels, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _series(path: Path) -> tuple[list[_Slice], NDArray[np.float64]]:
    """Return the pictures of a series, sorted, and the step from one to the next, LPS mm."""
    headers = _headers(path)
    _check_one_series(path, headers)
    return _in_order(path, [one for file, header in headers for one in _slices(file, header)])


def headers_in_order(path: Path) -> tuple[list[Any], list[int]]:
    """Return the headers of the files of a series, and which voxel slice each of their pictures is.

    Args:
        path: As for `read_dicom`.

    Returns:
        pydicom data sets without pixels: one for each slice of the volume, or one of many frames. Then, for each
        picture in their order, its index along K in the volume of `read_dicom`.

    Raises:
        DataError: As `read_dicom`.
    """
    with _quiet():
        slices, _ = _series(path)
    if slices[0].frame is None:
        return [one.header for one in slices], list(range(len(slices)))
    place = {one.frame: number for number, one in enumerate(slices)}
    return [slices[0].header], [place[frame] for frame in sorted(place, key=lambda frame: frame or 0)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what pydicom remarks to itself: what it leads to is said in our line."""
    log = logging.getLogger("pydicom")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _headers(path: Path) -> list[tuple[Path, Any]]:
    """Return the DICOM files of a folder (or the one) with their headers; what is no DICOM is passed over."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    found = []
    for file in files:
        with open_regular(file) as stream:
            if not is_dicom(stream.read(PREAMBLE)):
                continue
        header = _read(file, pixels=False)
        kind = _value(file, getattr(header, "file_meta", {}), "MediaStorageSOPClassUID", "")
        if kind != _DIRECTORY and "SOPClassUID" in header and "DirectoryRecordSequence" not in header:
            found.append((file, header))
    return found


def _read(file: Path, *, pixels: bool) -> Any:
    import pydicom  # most scans are NIfTI and do without
    from pydicom.filereader import read_file_meta_info

    with open_regular(file) as stream:
        has_preamble = stream.read(PREAMBLE)[-len(_MARK) :] == _MARK
    try:
        deflated = has_preamble and read_file_meta_info(file).get("TransferSyntaxUID") == _DEFLATED
        header = None if deflated else pydicom.dcmread(file, force=True, stop_before_pixels=not pixels)
    except Exception as error:  # pydicom raises whatever the parser met
        raise DataError(f"{file}: no DICOM file, or {DAMAGED}.") from error
    if header is None:  # whatever its size, it would be inflated whole
        raise DataError(f"{file}: its TransferSyntaxUID is deflated; convert it with dcm2niix, or dcmconv +te.")
    return header


def _check_one_series(path: Path, headers: Sequence[tuple[Path, Any]]) -> None:
    """Refuse several series in one folder, and coordinates of several origins."""
    series = sorted({str(_value(file, header, "SeriesInstanceUID", "")) for file, header in headers})
    if len(series) != 1:
        others = [] if series else sorted(file.name for file in path.glob("*") if file.is_file())
        there = f" (its {len(others)} files, such as {others[0]}, are of none)" if others else ""
        cure = f"give one image, such as {path / others[0]}, or" if others else "give"
        raise DataError(
            f"{path}: holds {len(series)} DICOM series{there}; {cure} a folder with the files of exactly one."
        )
    frames = {str(_value(file, header, "FrameOfReferenceUID", "")) for file, header in headers}
    if len(frames) > 1:
        raise DataError(
            f"{path}: FrameOfReferenceUID differs between its files, so their positions do not belong together; give "
            "a folder with one acquisition."
        )


def _slices(file: Path, header: Any) -> Iterator[_Slice]:
    """Yield the pictures of a file."""
    if "MOSAIC" in (_value(file, header, "ImageType", []) or []):
        raise DataError(f"{file}: ImageType MOSAIC holds many slices in one picture; convert it with dcm2niix.")
    if _whole(file, header, "SamplesPerPixel", 1) != 1:
        raise DataError(f"{file}: SamplesPerPixel says colours; write one file per channel.")
    shown_as = str(_value(file, header, "PhotometricInterpretation", "") or "")
    if shown_as == "PALETTE COLOR":  # its pixels are places in a table of colours, which mean nothing by themselves
        raise DataError(f"{file}: PhotometricInterpretation PALETTE COLOR says colours; export it in grey values.")
    frames = _whole(file, header, "NumberOfFrames", 1)
    if "PerFrameFunctionalGroupsSequence" not in header:
        if frames > 1:
            raise DataError(
                f"{file}: NumberOfFrames is {frames}, and nothing says where each lies; convert it with dcm2niix."
            )
        yield _slice(file, header, None, header, header, header)
        return
    groups = _sequence(file, header, "PerFrameFunctionalGroupsSequence")
    if len(groups) != frames:
        raise DataError(f"{file}: NumberOfFrames is {frames}, but {len(groups)} frames are described: {DAMAGED}.")
    shared = next(iter(_sequence(file, header, "SharedFunctionalGroupsSequence")), None)
    for number, own in enumerate(groups):
        position, orientation, measures = (
            _group(file, name, own, shared)
            for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        )
        yield _slice(file, header, number, position, orientation, measures)


def _group(file: Path, name: str, own: Any, shared: Any) -> Any:
    for place in (own, shared):
        if place is not None and (items := _sequence(file, place, name)):
            return items[0]
    raise DataError(f"{file}: has no {name}, so nothing says where its pictures lie; export the series again.")


def _slice(file: Path, header: Any, frame: int | None, position: Any, orientation: Any, measures: Any) -> _Slice:
    at = _numbers(file, position, "ImagePositionPatient", 3)
    along = _numbers(file, orientation, "ImageOrientationPatient", 6).reshape(2, 3)
    between = _numbers(file, measures, "PixelSpacing", 2)
    if np.abs(along @ along.T - np.eye(2)).max() > _ORTHOGONAL:
        raise DataError(f"{file}: ImageOrientationPatient {along.ravel().tolist()} is no right angle; export it again.")
    if min(between) <= 0:
        raise DataError(f"{file}: PixelSpacing {between.tolist()} is not above 0; export it again.")
    axes = np.stack([along[0] * between[1], along[1] * between[0]], axis=1)
    thickness = _value(file, measures, "SliceThickness", None)
    size = _whole(file, header, "Columns", 0), _whole(file, header, "Rows", 0)
    return _Slice(file, header, frame, size, at, axes, _number(file, "SliceThickness", thickness, 0.0) or None)


def _numbers(file: Path, holder: Any, name: str, count: int) -> NDArray[np.float64]:
    value = _value(file, holder, name, None)
    if value is None or value == "":
        raise DataError(f"{file}: has no {name}, so nothing says where it lies; export the series again.")
    try:
        numbers = np.array([float(number) for number in value])
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise DataError(f"{file}: {name} is not {count} finite numbers; export the series again.")
    return numbers


def _number(file: Path, name: str, value: Any, usual: float) -> float:
    """Return a finite number; the usual one where there is none."""
    if value is None or value == "":
        return usual
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{file}: {name} is no finite number; export the series again.")
    return number


def _whole(file: Path, holder: Any, name: str, usual: int) -> int:
    number = _number(file, name, _value(file, holder, name, None), usual)
    if number != int(number) or number < 1:
        raise DataError(f"{file}: {name} is not a whole number of 1 or more; export the series again.")
    return int(number)


def _sequence(file: Path, holder: Any, name: str) -> list[Any]:
    value = _value(file, holder, name, None)
    if value is None or (isinstance(value, MutableSequence) and all(hasattr(item, "get") for item in value)):
        return list(value or [])
    raise DataError(f"{file}: {name} is no sequence: {DAMAGED}.")


def _value(file: Path, holder: Any, name: str, usual: Any) -> Any:
    """Return an entry; one that is there and cannot be read is a fault of the file."""
    try:
        return holder.get(name, usual)
    except Exception as error:  # pydicom reads values when they are asked for
        raise DataError(f"{file}: {name} cannot be read: {DAMAGED}.") from error


def _in_order(path: Path, slices: Sequence[_Slice]) -> tuple[list[_Slice], NDArray[np.float64]]:
    """Return pictures in order of place, and the step from one to the next, LPS mm."""
    first = slices[0]
    for one in slices[1:]:
        size = one.size != first.size
        if size or np.abs(one.axes - first.axes).max() > _ORTHOGONAL * np.linalg.norm(first.axes[:, 0]):
            what = "Rows and Columns differ" if size else "ImageOrientationPatient or PixelSpacing differs"
            raise DataError(
                f"{path}: {what} between {first.path.name} and {one.path.name}; take out what is no slice of the scan."
            )
    normal = first.normal
    ordered = sorted(slices, key=lambda one: float(one.position @ normal))
    if len(ordered) == 1:
        if not first.thickness_mm or not 0 < first.thickness_mm < np.inf:
            raise DataError(f"{first.path}: is one slice without SliceThickness; add it.")
        return ordered, normal * first.thickness_mm
    places = np.stack([one.position for one in ordered])
    gaps_mm = np.diff(places @ normal)
    usual_mm = float(np.median(gaps_mm))
    if gaps_mm.min() <= _UNEVEN * max(usual_mm, 1e-6):
        twice = ordered[int(gaps_mm.argmin())], ordered[int(gaps_mm.argmin()) + 1]
        raise DataError(
            f"{path}: {_name(twice[0])} and {_name(twice[1])} lie in the same place; give a folder with one picture "
            "for each place (one echo, one time point)."
        )
    step = (places[-1] - places[0]) / (len(ordered) - 1)
    off_mm = np.linalg.norm(places - (places[0] + np.arange(len(ordered))[:, None] * step), axis=1)
    if off_mm.max() > _UNEVEN * usual_mm:
        if np.ptp(gaps_mm) > _UNEVEN * usual_mm:
            what = f"slices lie {gaps_mm.min():.3g} to {gaps_mm.max():.3g} mm apart; add the missing files"
        else:
            worst = _name(ordered[int(off_mm.argmax())])
            what = f"ImagePositionPatient of {worst} lies {off_mm.max():.3g} mm off the line of the others; take it out"
        raise DataError(f"{path}: {what}.")
    return ordered, step


def _name(one: _Slice) -> str:
    return one.path.name if one.frame is None else f"frame {one.frame + 1} of {one.path.name}"


class _Pictures:
    """Reads pictures; the file that was read last is kept for its other frames."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._stored: NDArray[Any] = np.zeros(0)
        self._rescaled = False
        self._decompressor = Decompressor()

    def all_of(self, slices: Sequence[_Slice]) -> list[NDArray[Any]]:
        """Return pictures (rows, columns), rescaled; whole numbers stay whole where the rescaling is trivial."""
        try:
            return [self._picture(one) for one in slices]
        finally:
            self._decompressor.close()

    def _picture(self, one: _Slice) -> NDArray[Any]:
        if one.path != self._path:
            self._stored, self._rescaled = self._read(one)
            self._path = one.path
        picture = self._stored
        if one.frame is not None:
            picture = picture.reshape(-1, *picture.shape[-2:])[one.frame]
        slope, intercept = (1.0, 0.0) if self._rescaled else _rescale(one)
        return picture if (slope, intercept) == (1.0, 0.0) else picture * slope + intercept

    def _read(self, one: _Slice) -> tuple[NDArray[Any], bool]:
        """Return the pictures of a file, and whether they are rescaled already."""
        file, whole = one.path, _read(one.path, pixels=True)
        try:
            if "TransferSyntaxUID" not in whole.file_meta:  # a file without preamble does not say it
                whole.file_meta.TransferSyntaxUID = _PLAIN[bool(whole.original_encoding[0])]
            return whole.pixel_array, False
        except Exception as error:  # missing, cut off, or of a codec that pydicom has not
            syntax = _value(file, getattr(whole, "file_meta", {}), "TransferSyntaxUID", None)
            packed = syntax is not None and syntax.is_transfer_syntax and syntax.is_compressed
            if not packed or one.frame is not None:
                what = one_line(str(error))[:80]
                raise DataError(f"{file}: its pixels cannot be read ({what}): {DAMAGED}.") from error
        if _value(file, one.header, "PhotometricInterpretation", "") == "MONOCHROME1":  # ITK would invert it
            raise DataError(
                f"{file}: MONOCHROME1 in lossless JPEG or JPEG-LS is not read; decompress it (gdcmconv --raw)."
            )
        picture = self._decompressor.read(file, (one.size[1], one.size[0]))
        if picture is None:
            raise DataError(f"{file}: its pixels cannot be decompressed: {DAMAGED}.")
        return picture, True


def _rescale(one: _Slice) -> tuple[float, float]:
    holder = one.header
    if "ModalityLUTSequence" in holder:
        raise DataError(f"{one.path}: ModalityLUTSequence is not honoured; convert it with dcm2niix.")
    if one.frame is not None:
        shared = _sequence(one.path, holder, "SharedFunctionalGroupsSequence")[:1]
        own = _sequence(one.path, holder, "PerFrameFunctionalGroupsSequence")[one.frame]
        given = (_sequence(one.path, place, "PixelValueTransformationSequence") for place in (own, *shared))
        holder = next((items[0] for items in given if items), holder)
    slope, intercept = (_value(one.path, holder, f"Rescale{name}", None) for name in ("Slope", "Intercept"))
    if slope == 0:
        raise DataError(f"{one.path}: RescaleSlope is 0, so that every voxel is the same; export it again.")
    return _number(one.path, "RescaleSlope", slope, 1.0), _number(one.path, "RescaleIntercept", intercept, 0.0)
