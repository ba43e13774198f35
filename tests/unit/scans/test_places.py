"""A scan written in many ways: every voxel is found at the same millimetre."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from mois.scans.image_files import read_image
from tests.support.scan_files import (
    ORIENTATIONS,
    affine,
    as_itk,
    scan,
    stored_otherwise,
    write_dicom,
    write_frames,
    write_mha,
    write_nrrd,
)

STRAIGHT, OBLIQUE, TILTED, SMALL = affine(), affine(turn=25), affine(tilt=20), affine(spacing=(2e-3, 6e-3, 3e-3))
GRIDS = {"straight": STRAIGHT, "oblique": OBLIQUE, "tilted": TILTED, "micrometres": SMALL}


def nifti(path: Path, array, matrix, *, q_only=False, unit="mm", kind=nib.Nifti1Image) -> Path:
    """Write with nibabel; the numbers of the affine are in `unit`."""
    scaled = matrix.copy()
    scaled[:3] /= {"mm": 1, "micron": 1e-3, "meter": 1e3, "unknown": 1}[unit]
    picture = kind(array, None if q_only else scaled)
    if q_only:
        picture.set_qform(scaled, 1)
        picture.set_sform(None, 0)
    picture.header.set_xyzt_units(unit)
    nib.save(picture, path)
    return path


def itk(path: Path, array, matrix, *, compressed=False, times=0) -> Path:
    picture = as_itk(array, matrix)
    if times:
        picture = sitk.JoinSeries([picture] * times)
    sitk.WriteImage(picture, str(path), compressed)
    return path


def nifti_files(folder: Path, name: str, matrix) -> Iterator[Path]:
    for number, orientation in enumerate(ORIENTATIONS):
        array, turned = stored_otherwise(scan(), matrix, *orientation)
        path = folder / f"{name}{number}"
        yield nifti(path.with_suffix(".nii"), array, turned, unit=("mm", "micron", "meter", "unknown")[number % 4])
        if name != "tilted":
            yield nifti(path.with_suffix(".q.nii"), array, turned, q_only=True)
    yield nifti(folder / f"{name}.nii.gz", scan(), matrix)
    yield nifti(folder / f"{name}.2.nii.gz", scan(), matrix, kind=nib.Nifti2Image)
    yield nifti(folder / f"{name}.img", scan(), matrix, kind=nib.Nifti1Pair)
    yield nifti(folder / f"{name}.2.hdr", scan(), matrix, kind=nib.Nifti2Pair).with_suffix(".hdr")
    yield nifti(folder / f"{name}.time.nii", scan()[..., None], matrix)
    yield nifti(folder / f"{name}.vector.nii", scan()[..., None, None], matrix)
    big = nib.Nifti1Image(scan().astype(">i2"), matrix, nib.Nifti1Header(endianness=">"))
    nib.save(big, folder / f"{name}.big.nii")
    yield folder / f"{name}.big.nii"


def itk_files(folder: Path, name: str, matrix) -> Iterator[Path]:
    for number, orientation in enumerate(ORIENTATIONS):
        array, turned = stored_otherwise(scan(), matrix, *orientation)
        for ending in ("nrrd", "mha"):
            yield itk(folder / f"{name}{number}.{ending}", array, turned, compressed=bool(number % 2))
    for ending in ("nrrd", "mha", "mhd", "nhdr"):
        yield itk(folder / f"{name}.{ending}", scan(), matrix)
        yield itk(folder / f"{name}.packed.{ending}", scan(), matrix, compressed=True)
        yield itk(folder / f"{name}.time.{ending}", scan(), matrix, times=1)


def nrrd_files(folder: Path, name: str, matrix) -> Iterator[Path]:
    ras, las = matrix[:3], np.diag([-1.0, 1, 1]) @ matrix[:3]

    def vectors(rows):
        return {
            "space_directions": " ".join("(" + ",".join(map(repr, column.tolist())) + ")" for column in rows[:, :3].T),
            "space_origin": "(" + ",".join(map(repr, rows[:, 3].tolist())) + ")",
        }

    lps = np.diag([-1.0, -1, 1]) @ matrix[:3]
    sizes = {"dimension": "4", "sizes": "1 5 6 7"}
    path = folder / f"{name}.hand"
    yield write_nrrd(path.with_suffix(".lps.nrrd"), scan(), matrix)
    yield write_nrrd(path.with_suffix(".ras.nrrd"), scan(), matrix, space="right-anterior-superior", **vectors(ras))
    yield write_nrrd(path.with_suffix(".las.nrrd"), scan(), matrix, space="LAS", **vectors(las))
    for unit, mm in (("um", 1e-3), ("microns", 1e-3), ("m", 1e3), ("cm", 10), ("mm", 1), ("", 1)):
        units = " ".join([f'"{unit}"'] * 3)
        yield write_nrrd(path.with_suffix(f".{unit}.nrrd"), scan(), matrix, space_units=units, **vectors(lps / mm))
    first = vectors(lps)
    first["space_directions"] = "none " + first["space_directions"]
    yield write_nrrd(
        path.with_suffix(".list.nrrd"), scan(), matrix, kinds="vector domain domain domain", **sizes, **first
    )
    last = vectors(lps)
    last["space_directions"] += " (nan,nan,nan)"
    sizes = {"dimension": "4", "sizes": "5 6 7 1"}
    yield write_nrrd(path.with_suffix(".nan.nrrd"), scan(), matrix, kinds="domain domain domain list", **sizes, **last)
    time = {key: value.replace(")", ",0)") for key, value in vectors(lps).items()}
    time["space_directions"] += " (0,0,0,2.5)"
    yield write_nrrd(
        path.with_suffix(".time.nrrd"), scan(), matrix, space="left-posterior-superior-time", **sizes, **time
    )
    yield write_nrrd(path.with_suffix(".raw.nrrd"), scan(), matrix, encoding="raw", byte_skip="-1")


def mha_files(folder: Path, name: str, matrix) -> Iterator[Path]:
    path = folder / f"{name}.hand"
    lps = np.diag([-1.0, -1, 1]) @ matrix[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    yield write_mha(path.with_suffix(".mha"), scan(), matrix)
    for unit, mm in (("um", 1e-3), ("mm", 1), ("cm", 10)):
        yield write_mha(
            path.with_suffix(f".{unit}.mha"), scan(), matrix, DistanceUnits=unit,
            Offset=" ".join(map(repr, (lps[:, 3] / mm).tolist())),
            ElementSpacing=" ".join(map(repr, (spacing / mm).tolist())),
        )  # fmt: skip
    yield write_mha(
        path.with_suffix(".size.mha"), scan(), matrix, ElementSpacing=None,
        ElementSize=" ".join(map(repr, spacing.tolist())),
    )  # fmt: skip
    yield write_mha(
        path.with_suffix(".old.mha"), scan(), matrix, Offset=None, Position=" ".join(map(repr, lps[:, 3].tolist()))
    )


def dicom_files(folder: Path, name: str, matrix) -> Iterator[Path]:
    for number, orientation in enumerate(ORIENTATIONS[::3]):
        array, turned = stored_otherwise(scan(), matrix, *orientation)
        if abs(turned[:3, 0] @ turned[:3, 1]) < 1e-6:  # DICOM's pictures have right angles; its slices may lean
            yield write_dicom(folder / f"{name}{number}.series", array, turned)
            yield write_frames(folder / f"{name}{number}.dcm", array, turned)


WRITERS = [
    *((nifti_files, name) for name in GRIDS),
    *((itk_files, name) for name in ("straight", "oblique", "micrometres")),
    *((write, name) for write in (nrrd_files, mha_files) for name in GRIDS),
    *((dicom_files, name) for name in GRIDS),
]
LEAST = {"nifti_files": 55, "itk_files": 108, "nrrd_files": 13, "mha_files": 6, "dicom_files": 10}


@pytest.mark.parametrize(("write", "name"), WRITERS, ids=lambda what: what if isinstance(what, str) else what.__name__)
def test_every_voxel_lies_where_the_header_says(tmp_path, write, name):
    matrix = GRIDS[name]
    places = np.stack(
        [*np.indices(scan().shape).reshape(3, -1), np.ones(scan().size)]
    )  # in order of the voxels' values
    wanted_mm = (matrix @ places)[:3]
    edge_mm = np.linalg.norm(matrix[:3, :3], axis=0).min()
    files = 0
    for path in write(tmp_path, name, matrix):
        voxels, found = read_image(path)
        order = np.argsort(voxels, axis=None)
        assert np.array_equal(voxels.ravel()[order], np.arange(1, 1 + scan().size)), path
        at = np.stack([*np.unravel_index(order, voxels.shape), np.ones(order.size)])
        assert np.abs((found @ at)[:3] - wanted_mm).max() < 1e-3 * edge_mm, path
        files += 1
    assert files >= LEAST[write.__name__]


def test_the_files_of_this_module_are_many():
    assert sum(LEAST[write.__name__] for write, _ in WRITERS) >= 200
