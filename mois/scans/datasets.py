"""Lists the scans of a dataset folder, in the nnU-Net raw layout or in that of BIDS, each with its files."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mois.errors import DataError, as_text
from mois.files.atomic import named, one_form
from mois.files.text import read_table
from mois.records import Volume
from mois.scans.channels import channel_numbers
from mois.scans.dataset_description import FILE_ENDINGS, REJECTED, DatasetDescription, read_description
from mois.scans.image_files import check_link
from mois.scans.layouts.bids import is_bids, read_bids
from mois.scans.volumes import read_volume


@dataclass(frozen=True)
class SubjectFiles:
    """The files of one scan of a dataset.

    Attributes:
        subject: Name of the scan.
        patient: Name of the patient; the name of the scan if subjects.csv names none.
        images: Channel number to file.
        label: Semantic label map, or None.
        instances: Map of lesion ids, or None.
        classes: Declared label values above 0 and their names.
        held_out: Whether the scan lies in imagesTs instead of imagesTr.
        session: Time point of the scan, as in subjects.csv.
        site: Hospital or scanner, as in subjects.csv.
        channels: Channel number to its name in dataset.json; empty if dataset.json names none.
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

    def numbers(self, channel: int, channels: Sequence[str] = ()) -> list[int]:
        """Return the numbers of the images to read.

        Args:
            channel: Number of the image, if no names are given.
            channels: Names of a model's channels (`mois.scans.channels`).

        Raises:
            DataError: If dataset.json does not name a channel, or the scan lacks its image.
        """
        numbers = channel_numbers(channels, self.channels, f"scan {self.subject}") or [channel]
        for number in numbers:
            if number not in self.images:
                cure = "add it, or leave the scan out" if channels else "set data.init_args.channel"
                raise DataError(
                    f"{self.subject} has no image of channel {number} (file *_{number:04d}.*), only of "
                    f"{sorted(self.images)}; {cure}."
                )
        return numbers

    @property
    def rejected_class(self) -> int:
        """The class of places that a reader rejected; 0 if the dataset has none."""
        return next((number for number, name in self.classes.items() if name == REJECTED), 0)

    @property
    def lesion_classes(self) -> dict[int, str]:
        """The declared classes of lesions: all but that of places that a reader rejected."""
        return {number: name for number, name in self.classes.items() if name != REJECTED}

    def read(
        self, channel: int = 0, *, instances: bool = True, channels: Sequence[str] = (), rejected: bool = False
    ) -> Volume:
        """Read the scan with its lesions.

        Args:
            channel: Number of the image, if no names are given.
            instances: Whether to use the map of lesion ids, if the scan has one.
            channels: Names of a model's channels, to read them all.
            rejected: Whether to keep places that a reader rejected. They are no lesions, and are background otherwise.

        Raises:
            DataError: If a channel is missing or a file is broken.
        """
        first, *others = self.numbers(channel, channels)
        ids = self.instances if instances else None
        volume = read_volume(
            self.images[first],
            ids or self.label,
            subject=self.subject,
            patient=self.patient,
            classes=self.classes,
            instances=ids is not None,
            semantic=self.label,
            channel=self.channels.get(first, ""),
            further={self.channels[number]: self.images[number] for number in others},
        )
        return volume if rejected or not self.rejected_class else _without(volume, self.rejected_class)


def _without(volume: Volume, kind: int) -> Volume:
    """Return a scan without the lesions of a class."""
    classes = {lesion: other for lesion, other in volume.classes.items() if other != kind}
    kept = torch.isin(volume.lesions, torch.tensor([*classes], dtype=volume.lesions.dtype))
    declared = tuple(other for other in volume.declared if other != kind)
    return volume._replace(lesions=volume.lesions * kept, classes=classes, declared=declared)


def read_dataset(root: Path) -> list[SubjectFiles]:
    """List the scans of a dataset in the nnU-Net raw layout: imagesTr, then imagesTs, each sorted by name.

    A BIDS dataset with lesion masks as derivatives is read as well (`mois.scans.layouts.bids`); all of it may train.
    Otherwise the folder holds dataset.json, imagesTr, labelsTr, imagesTs and labelsTs. An image is a file, or a folder
    SUBJECT_0000 that holds one DICOM series. The dataset may also hold instancesTr and instancesTs (lesion ids), and
    subjects.csv (subject, patient, session, site).

    Args:
        root: The folder of the dataset.

    Raises:
        DataError: If the folder is no dataset, or subjects.csv leaves out a scan. Also if an image or a map has another
            ending, or the ending in another case.
    """
    scans = list_scans(root)
    if is_bids(root):
        return scans
    ending = describe_dataset(root).file_ending
    for part, held_out in (("Tr", False), ("Ts", True)):
        channels = {scan.subject: scan.images for scan in scans if scan.held_out == held_out}
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
    return scans


def list_scans(root: Path) -> list[SubjectFiles]:
    """List the scans like `read_dataset`, without a check of other files beside the images."""
    if is_bids(root):
        return _bids_scans(root)
    classes, ending, channels = read_description(root / "dataset.json")
    people = _read_people(root / "subjects.csv")
    scans: list[SubjectFiles] = []
    for part in ("Tr", "Ts"):
        images: dict[str, dict[int, Path]] = {}
        for path in _images(root / f"images{part}", ending):
            name, _, channel = path.name.removesuffix(ending).rpartition("_")
            if not (name and channel.isdigit() and len(channel) == 4):
                raise DataError(f"{path}: images are called SUBJECT_0000{ending} (0000 is the channel); rename it.")
            if as_text(name) != name:
                raise DataError(f"{path}: its name is no UTF-8; rename it, and its label map.")
            if int(channel) in images.setdefault(name, {}):
                raise DataError(f"{path}: scan {name} has this image as a file, too; keep one of them.")
            images[name][int(channel)] = path
        if twice := [name for name in images if sum(one_form(name) == one_form(one) for one in images) > 1]:
            raise DataError(
                f"{root / f'images{part}'}: two scans are called {twice[0]}, whose letters are stored in two ways; "
                "rename one."
            )
        for subject, files in images.items():
            if people and one_form(subject) not in people:
                advice = _advice_for_missing_subject(subject, people)
                raise DataError(f"{root / 'subjects.csv'}: subject {subject} is missing; {advice}.")
            person = people.get(one_form(subject), {})
            scans.append(
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
    _refuse_same_name(root, scans)
    if not scans:
        raise DataError(f"{root / 'imagesTr'}: no images (SUBJECT_0000{ending}); {_advice_without_images(root)}.")
    return scans


def _refuse_same_name(root: Path, scans: Sequence[SubjectFiles]) -> None:
    """Refuse a scan of the test with the name of a training scan: results and splits go by names.

    Raises:
        DataError: If there is one.
    """
    training = {one_form(scan.subject) for scan in scans if not scan.held_out}
    for scan in scans:
        if scan.held_out and one_form(scan.subject) in training:
            raise DataError(
                f"{root}: scan {scan.subject} is in imagesTr and in imagesTs; keep it in one of them, or rename one "
                "if they are two scans."
            )


def describe_dataset(root: Path) -> DatasetDescription:
    """Return classes, channels and ending of a dataset.

    Raises:
        DataError: If the folder holds no dataset, or dataset.json cannot be used.
    """
    return read_bids(root)[1] if is_bids(root) else read_description(root / "dataset.json")


def _bids_scans(root: Path) -> list[SubjectFiles]:
    scans, description = read_bids(root)
    number_of = {suffix: number for number, suffix in description.channels.items()}
    return [
        SubjectFiles(
            scan.name,
            scan.patient,
            {number_of[suffix]: path for suffix, path in scan.images.items()},
            scan.mask,
            None,
            description.classes,
            session=scan.session,
            site=scan.site,
            channels=description.channels,
        )
        for scan in scans
    ]


def _images(folder: Path, ending: str) -> list[Path]:
    """Return the images of a folder: files with this ending, and folders SUBJECT_0000 with one DICOM series each."""
    series = [path for path in folder.glob("[!.]*_[0-9][0-9][0-9][0-9]") if path.is_dir()]
    return sorted([*folder.glob(f"[!.]*{ending}"), *series])


def _advice_for_missing_subject(subject: str, people: Mapping[str, object]) -> str:
    """Return the advice for a scan that is missing in subjects.csv."""
    bare = subject.lstrip("0") or "0"
    if bare != subject and bare in people:  # a spreadsheet turned the name into a number
        return f"it has {bare} instead; write {subject} there (as text, so that the zeros stay)"
    return "add a line for it"


def _advice_without_images(root: Path) -> str:
    """Return the advice for a folder without images of the declared ending."""
    images = sorted(path.name for path in (root / "imagesTr").glob("[!.]*"))
    other = next((ending for ending in FILE_ENDINGS if any(name.endswith(ending) for name in images)), None)
    if other is not None:
        return f"set file_ending in dataset.json to {other}"
    if images:
        return f"convert {images[0]} and the other images"
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
    written: dict[str, str] = {}  # normalised name of a patient to its first spelling
    for row, line in zip(table.rows, table.lines, strict=True):
        subject, patient = row["subject"], row["patient"]
        if not subject or not patient:
            lacks = "patient" if subject else "subject"
            raise DataError(f"{path}: line {line} has no {lacks}; fill it in, or delete the line.")
        if one_form(subject) in people:
            raise DataError(f"{path}: line {line} lists subject {subject} a second time; keep one of them.")
        other = written.setdefault(_normalised_name(patient), patient)
        if other != patient:
            raise DataError(
                f"{path}: line {line}: are patients {other!r} and {patient!r} the same person? Write them alike, or "
                "give them names that differ in more than case and blanks."
            )
        people[one_form(subject)] = row
    return people


def _normalised_name(name: str) -> str:
    """Return a name without differences that the eye does not see.

    These are case, kinds of blanks, invisible signs, and accents stored in two ways.
    """
    plain = unicodedata.normalize("NFKC", name).casefold()
    return " ".join("".join(sign for sign in plain if unicodedata.category(sign) != "Cf").split())


def _map_of(folder: Path, subject: str, ending: str) -> Path | None:
    """Return the label map or map of lesion ids of a scan; None if there is none.

    Raises:
        DataError: If a map has the name of the scan with another ending, or with other upper and lower case. Also if it
            is a link to nothing.
    """
    path = named(folder / f"{subject}{ending}")
    check_link(path)
    if path.exists():
        return path
    alike = {f"{subject}{other}".casefold() for other in FILE_ENDINGS}
    for file in sorted(folder.glob("[!.]*")):
        if file.name.casefold() in alike:
            raise DataError(f"{file}: the map of scan {subject} is called {path.name}; convert or rename it.")
    return None
