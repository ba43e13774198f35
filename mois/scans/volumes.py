"""Reads a scan and its label maps from files, and checks that they lie on one grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import torch
from numpy.typing import NDArray

from mois.errors import DataError, as_text
from mois.grid import Grid, put_on
from mois.intensities import normalise
from mois.records import Channel, Volume
from mois.scans.image_files import read_image, write_volume
from mois.scans.labels import check_declared, whole_numbers

__all__ = ["DataError", "normalise", "read_image", "read_on_grid", "read_volume", "write_volume"]


def read_volume(
    image: Path,
    label: Path | None,
    *,
    subject: str,
    patient: str,
    classes: dict[int, str],
    instances: bool = False,
    semantic: Path | None = None,
    channel: str = "",
    further: Mapping[str, Path] | None = None,
) -> Volume:
    """Read a scan and its lesions.

    Args:
        image: NIfTI, NRRD or MHA file, or a folder that holds one DICOM series.
        label: Label map on the same grid, or None if nothing was annotated. The values of a semantic map are classes;
            lesions are the 26-connected components of each class.
        subject: Name of the scan.
        patient: Name of the patient.
        classes: Declared label values and their names; 0 is background, declared or not.
        instances: Whether the values of `label` are lesion ids instead of classes.
        semantic: With `instances`, the label map with the class of each lesion. It may be left out if only one class
            is declared.
        channel: Name of the image in dataset.json.
        further: Further channels: name to file. They lie on the grid of the image.

    Raises:
        DataError: If a file is missing, cut off or not finite, or if the image is constant. Also if image, label and
            further channels lie on different grids, or a label value is not declared.
    """
    raw, affine = read_image(image)
    grid = Grid.of(raw.shape, affine)
    voxels = _intensities(raw, image)
    declared = {value for value in classes if value}
    if label is None:
        lesions, class_of_lesion = np.zeros(voxels.shape, np.int32), {}
    else:
        values = _read_labels(label, image, grid)
        if instances:
            class_of_lesion = _classes_of_instances(values, label, semantic, image, grid, declared)
            lesions = values
        else:
            check_declared(values, declared, label)
            lesions, class_of_lesion = _components(values)
    return Volume(
        as_text(subject),
        as_text(patient),
        torch.from_numpy(voxels),
        torch.from_numpy(affine),
        torch.from_numpy(lesions),
        class_of_lesion,
        str(image),
        tuple(sorted(declared)),
        channel,
        further=tuple(_further(name, path, grid, image.name) for name, path in (further or {}).items()),
    )


def read_images(images: Mapping[str, Path], *, subject: str, patient: str) -> Volume:
    """Read a scan without labels.

    Args:
        images: Name of each channel to its file; a single image may have the name "".
        subject: Name of the scan.
        patient: Name of the patient.

    Raises:
        DataError: As `read_volume`.
    """
    (channel, first), *others = images.items()
    return read_volume(first, None, subject=subject, patient=patient, classes={}, channel=channel, further=dict(others))


def _intensities(raw: NDArray[Any], path: Path) -> NDArray[np.float32]:
    voxels = np.ascontiguousarray(raw, np.float32)
    broken = int(voxels.size - np.isfinite(voxels).sum())
    if broken:
        raise DataError(
            f"{path}: {broken} voxels are NaN or infinite; replace them (numpy.nan_to_num) and save it again."
        )
    if voxels.min() == voxels.max():
        raise DataError(
            f"{path}: every voxel is {voxels.flat[0]:g}; export it from its source again, or leave the scan out."
        )
    return voxels


def _further(name: str, path: Path, grid: Grid, of: str) -> Channel:
    image = _intensities(read_on_grid(path, grid, of, "the channel"), path)
    return Channel(name, torch.from_numpy(image), path=str(path))


def read_on_grid(path: Path, grid: Grid, of: str, what: str = "it") -> NDArray[Any]:
    """Read an array that must lie on the grid of a scan: a label map, a mask, a map of another system.

    Args:
        path: A file or folder, as for `read_image`.
        grid: The grid of the scan.
        of: Name of the scan, for messages.
        what: Name of the array, for messages.

    Returns:
        Voxels (I, J, K) in the type of the file and the voxel order of the scan.

    Raises:
        DataError: If the file is broken, or lies on another grid; the message says how far apart the grids lie.
    """
    values, affine = read_image(path)
    try:
        return put_on(values, Grid.of(values.shape, affine), grid, of, what)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _read_labels(path: Path, image: Path, grid: Grid) -> NDArray[np.int32]:
    return whole_numbers(read_on_grid(path, grid, image.name, "the label map"), path)


def _components(values: NDArray[np.int32]) -> tuple[NDArray[np.int32], dict[int, int]]:
    """Return the ids of the 26-connected components of equal values, 1 and up, and the value of each component."""
    lesions = cc3d.connected_components(values, connectivity=26, out_dtype=np.uint32).astype(np.int32)
    return lesions, _value_of_each(lesions, values)


def _value_of_each(lesions: NDArray[np.int32], values: NDArray[np.int32]) -> dict[int, int]:
    """Return the value at one voxel of each lesion. `_classes_of_instances` checks that the others are equal."""
    places = np.flatnonzero(lesions != 0)
    ids, first = np.unique(lesions.flat[places], return_index=True)
    return dict(zip(ids.tolist(), values.flat[places[first]].tolist(), strict=True))


def _classes_of_instances(
    lesions: NDArray[np.int32],
    path: Path,
    semantic: Path | None,
    image: Path,
    grid: Grid,
    declared: set[int],
) -> dict[int, int]:
    if semantic is None:
        if len(declared) != 1:
            raise DataError(f"{path}: lesion ids without a label map do not say their class; add labelsTr/{path.name}.")
        only = next(iter(declared))
        return {int(lesion): only for lesion in np.unique(lesions) if lesion}
    values = _read_labels(semantic, image, grid)
    check_declared(values, declared, semantic)
    class_of_lesion = _value_of_each(lesions, values)
    there = np.flatnonzero((lesions != 0) | (values != 0))
    at, value = lesions.flat[there], values.flat[there]
    expected = np.array([0, *class_of_lesion.values()], np.int32)[
        np.searchsorted([0, *class_of_lesion], at)
    ]  # ids are ascending
    wrong = np.flatnonzero((expected != value) | (value == 0))
    if len(wrong):
        where = np.unravel_index(there[wrong[0]], lesions.shape)
        raise DataError(
            f"{path}: lesion id {lesions[where]} meets class {values[where]} of {semantic.parent.name} "
            f"at voxel {[int(at) for at in where]}; every lesion has one class, and both maps cover the same voxels."
        )
    return class_of_lesion
