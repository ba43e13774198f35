"""Scans and label maps from files and to files, with the checks that keep a broken file from being trained on."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import torch
from numpy.typing import NDArray

from mois.dataset_description import FILE_ENDINGS, read_description
from mois.files import named, one_form
from mois.grid import Grid, put_on
from mois.image_files import DataError, read_image, write_volume
from mois.intensities import normalise
from mois.interfaces import Volume
from mois.labels import check_declared, whole_numbers
from mois.shown_text import as_text
from mois.text_files import read_table

__all__ = [
    "DataError",
    "SubjectFiles",
    "normalise",
    "read_dataset",
    "read_image",
    "read_on_grid",
    "read_volume",
    "write_volume",
]


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
) -> Volume:
    """Read a scan and its lesions.

    Args:
        image: NIfTI, NRRD or MHA file, or a folder that holds one DICOM series.
        label: Label map on the same grid, or None where nothing was annotated. Semantic: values are classes, and
            lesions are the 26-connected components of each class.
        subject: Name of the scan.
        patient: Whom it was taken of.
        classes: Declared label values and their names; 0 is background, declared or not.
        instances: Whether the values of `label` are lesion ids instead of classes.
        semantic: With `instances`, the label map that says which class each lesion is of; may be left out where only
            one class is declared.
        channel: What the dataset calls the image.

    Raises:
        DataError: If a file is missing, cut off or not finite, if the image is constant, if the grids of image and
            label are not the same, or if a label value is not declared.
    """
    raw, affine = read_image(image)
    grid = Grid.of(raw.shape, affine)
    voxels = np.ascontiguousarray(raw, np.float32)
    broken = int(voxels.size - np.isfinite(voxels).sum())
    if broken:
        raise DataError(
            f"{image}: {broken} voxels are NaN or infinite; replace them (numpy.nan_to_num) and save it again."
        )
    if voxels.min() == voxels.max():
        raise DataError(
            f"{image}: every voxel is {voxels.flat[0]:g}; export it from its source again, or leave the scan out."
        )
    declared = {value for value in classes if value}
    if label is None:
        lesions, kinds = np.zeros(voxels.shape, np.int32), {}
    else:
        values = _read_labels(label, image, grid)
        if instances:
            kinds = _classes_of_instances(values, label, semantic, image, grid, declared)
            lesions = values
        else:
            check_declared(values, declared, label)
            lesions, kinds = _components(values)
    return Volume(
        as_text(subject),
        as_text(patient),
        torch.from_numpy(voxels),
        torch.from_numpy(affine),
        torch.from_numpy(lesions),
        kinds,
        str(image),
        tuple(sorted(declared)),
        channel,
    )


def read_on_grid(path: Path, grid: Grid, of: str, what: str = "it") -> NDArray[Any]:
    """Read an array that must lie on a scan's grid: label maps, masks, other systems' maps.

    Args:
        path: As for `read_image`.
        grid: Of the scan.
        of: What has that grid, as a message names it.
        what: The array, as a message names it.

    Returns:
        Voxels (I, J, K) in the file's own type and the scan's voxel order, in whatever order the file holds them.

    Raises:
        DataError: If the file is broken or lies on another grid, saying by how much.
    """
    values, affine = read_image(path)
    try:
        return put_on(values, Grid.of(values.shape, affine), grid, of, what)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


@dataclass(frozen=True)
class SubjectFiles:
    """The files of one scan of a dataset.

    Attributes:
        subject: Name of the scan.
        patient: Whom it was taken of; the subject where nobody says.
        images: Channel number to file.
        label: Semantic label map, or None.
        instances: Map of lesion ids, or None.
        classes: Declared label values above 0 and their names.
        held_out: Whether it lies in imagesTs instead of imagesTr.
        session: When it was taken, in the words of subjects.csv.
        site: Where it was taken, in the words of subjects.csv.
        channels: Channel number to what dataset.json calls it; empty where it does not say.
    """

    subject: str
    patient: str
    images: dict[int, Path]
    label: Path | None
    instances: Path | None
    classes: dict[int, str] = field(default_factory=dict)
    held_out: bool = False
    session: str = ""
    site: str = ""
    channels: dict[int, str] = field(default_factory=dict)

    def read(self, channel: int = 0, *, instances: bool = True) -> Volume:
        """Read the scan, with its lesion ids where it has some and they are wanted.

        Raises:
            DataError: If the channel is missing or a file is broken.
        """
        if channel not in self.images:
            raise DataError(
                f"{self.subject} has no image of channel {channel} (file *_{channel:04d}.*), only of "
                f"{sorted(self.images)}; set data.init_args.channel."
            )
        ids = self.instances if instances else None
        return read_volume(
            self.images[channel],
            ids or self.label,
            subject=self.subject,
            patient=self.patient,
            classes=self.classes,
            instances=ids is not None,
            semantic=self.label,
            channel=self.channels.get(channel, ""),
        )


def read_dataset(root: Path) -> list[SubjectFiles]:
    """List the scans of a dataset in nnU-Net's raw layout, those of imagesTr first, each in order of name.

    Besides dataset.json, imagesTr, labelsTr, imagesTs and labelsTs: instancesTr and instancesTs (lesion ids) and
    subjects.csv (subject, patient, session, site) where they exist.

    Raises:
        DataError: If it is no such dataset, subjects.csv leaves a scan out, or an image or a map has another ending or
            case.
    """
    found = list_scans(root)
    ending = read_description(root / "dataset.json").file_ending
    for part, held_out in (("Tr", False), ("Ts", True)):
        channels = {scan.subject: scan.images for scan in found if scan.held_out == held_out}
        for path in sorted((root / f"images{part}").glob("[!.]*")):
            other = next((one for one in FILE_ENDINGS if path.name.casefold().endswith(one)), None)
            name, _, channel = path.name[: -len(other)].rpartition("_") if other else ("", "", "")
            if path.name.endswith(ending) or not (name and channel.isdecimal() and len(channel) == 4):
                continue
            if int(channel) not in channels.get(name, {}):
                raise DataError(
                    f"{path}: scan {name} is not read: dataset.json declares file_ending {ending}; convert it to "
                    f"{name}_{channel}{ending}, or move it away."
                )
    return found


def list_scans(root: Path) -> list[SubjectFiles]:
    """List the scans as `read_dataset` does, whatever else lies beside their images."""
    classes, ending, channels = read_description(root / "dataset.json")
    people = _read_people(root / "subjects.csv")
    found: list[SubjectFiles] = []
    for part in ("Tr", "Ts"):
        images: dict[str, dict[int, Path]] = {}
        for path in sorted((root / f"images{part}").glob(f"*{ending}")):
            name, _, channel = path.name.removesuffix(ending).rpartition("_")
            if not (name and channel.isdigit() and len(channel) == 4):
                raise DataError(f"{path}: images are called SUBJECT_0000{ending} (0000 is the channel); rename it.")
            if as_text(name) != name:
                raise DataError(f"{path}: its name is no UTF-8; rename it, and its label map.")
            images.setdefault(name, {})[int(channel)] = path
        if twice := [name for name in images if sum(one_form(name) == one_form(one) for one in images) > 1]:
            raise DataError(
                f"{root / f'images{part}'}: two scans are called {twice[0]}, whose letters are stored in two ways; "
                "rename one."
            )
        for subject, files in images.items():
            if people and one_form(subject) not in people:
                raise DataError(f"{root / 'subjects.csv'}: subject {subject} is missing; {_line_for(subject, people)}.")
            person = people.get(one_form(subject), {})
            found.append(
                SubjectFiles(
                    subject,
                    person.get("patient") or subject,
                    files,
                    _map_of(root / f"labels{part}", subject, ending),
                    _map_of(root / f"instances{part}", subject, ending),
                    classes,
                    part == "Ts",
                    person.get("session") or "",
                    person.get("site") or "",
                    channels,
                )
            )
    if not found:
        raise DataError(f"{root / 'imagesTr'}: no images (SUBJECT_0000{ending}); {_without_images(root)}.")
    return found


def _line_for(subject: str, people: Mapping[str, object]) -> str:
    """Return what to do where a table of people lacks a scan."""
    bare = subject.lstrip("0") or "0"
    if bare != subject and bare in people:  # spreadsheets take names for numbers
        return f"it has {bare} instead; write {subject} there (as text, so that the zeros stay)"
    return "add a line for it"


def _without_images(root: Path) -> str:
    """Return what to do where no image has the ending that dataset.json declares."""
    there = sorted(path.name for path in (root / "imagesTr").glob("[!.]*"))
    other = next((ending for ending in FILE_ENDINGS if any(name.endswith(ending) for name in there)), None)
    if other is not None:
        return f"set file_ending in dataset.json to {other}"
    if there:
        return f"convert {there[0]} and whatever else is there"
    return "set data.init_args.root to the dataset's folder"


def _read_labels(path: Path, image: Path, grid: Grid) -> NDArray[np.int32]:
    return whole_numbers(read_on_grid(path, grid, image.name, "the label map"), path)


def _components(values: NDArray[np.int32]) -> tuple[NDArray[np.int32], dict[int, int]]:
    """Return lesion ids 1.. of 26-connected components of equal values, and the value of each."""
    lesions = cc3d.connected_components(values, connectivity=26, out_dtype=np.uint32).astype(np.int32)
    return lesions, _majority(lesions, values)


def _majority(lesions: NDArray[np.int32], values: NDArray[np.int32]) -> dict[int, int]:
    """Return one value of each lesion; the same one everywhere in it, as `_classes_of_instances` checks."""
    places = np.flatnonzero(lesions)
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
    kinds = _majority(lesions, values)
    there = np.flatnonzero((lesions != 0) | (values != 0))
    at, value = lesions.flat[there], values.flat[there]
    expected = np.array([0, *kinds.values()], np.int32)[np.searchsorted([0, *kinds], at)]  # ids are ascending
    wrong = np.flatnonzero((expected != value) | (value == 0))
    if len(wrong):
        where = np.unravel_index(there[wrong[0]], lesions.shape)
        raise DataError(
            f"{path}: lesion id {lesions[where]} meets class {values[where]} of {semantic.parent.name} "
            f"at voxel {[int(at) for at in where]}; every lesion has one class, and both maps cover the same voxels."
        )
    return kinds


def _read_people(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    table = read_table(path)
    if not {"subject", "patient"} <= set(table.columns):
        raise DataError(
            f"{path}: columns {table.columns}; it needs subject and patient (session and site if you like)."
        )
    if not table.rows:
        raise DataError(f"{path}: names no subject; add a line for each scan, or delete the file.")
    people: dict[str, dict[str, str]] = {}
    written: dict[str, str] = {}  # a patient as it sounds, and as it was written first
    for row, line in zip(table.rows, table.lines, strict=True):
        subject, patient = row["subject"], row["patient"]
        if not subject or not patient:
            lacks = "patient" if subject else "subject"
            raise DataError(f"{path}: line {line} has no {lacks}; fill it in, or delete the line.")
        if one_form(subject) in people:
            raise DataError(f"{path}: line {line} lists subject {subject} a second time; keep one of them.")
        other = written.setdefault(_as_it_sounds(patient), patient)
        if other != patient:
            raise DataError(
                f"{path}: line {line}: are patients {other!r} and {patient!r} the same person? Write them alike, or "
                "give them names that differ in more than case and blanks."
            )
        people[one_form(subject)] = row
    return people


def _as_it_sounds(name: str) -> str:
    """Return a name without what the eye does not tell apart: case, kinds of blanks, invisible and composed signs."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return " ".join("".join(sign for sign in plain if unicodedata.category(sign) != "Cf").split())


def _map_of(folder: Path, subject: str, ending: str) -> Path | None:
    """Return a scan's label map or lesion ids, None where there are none; one of another name is not passed over."""
    path = named(folder / f"{subject}{ending}")
    if path.exists():
        return path
    alike = {f"{subject}{other}".casefold() for other in FILE_ENDINGS}
    for file in sorted(folder.glob("[!.]*")):
        if file.name.casefold() in alike:
            raise DataError(f"{file}: the map of scan {subject} is called {path.name}; convert or rename it.")
    return None
