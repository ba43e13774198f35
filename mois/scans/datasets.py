"""A dataset's folder in nnU-Net's raw layout: which files belong to which subject."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mois.errors import DataError, as_text
from mois.files.atomic import named, one_form
from mois.files.text import read_table
from mois.records import Volume
from mois.scans.dataset_description import FILE_ENDINGS, read_description
from mois.scans.volumes import read_volume


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
