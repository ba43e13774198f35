"""Turns sessions into a dataset for a training: judged lesions become instances, rejected ones a class of their own."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mois.errors import DataError, told_where
from mois.files.atomic import whole_folder, write_text
from mois.files.csv_tables import csv_text
from mois.geometry import SliceGrid
from mois.lesions import InstanceMap
from mois.records import Volume
from mois.scans.dataset_description import REJECTED
from mois.scans.image_files import write_volume
from mois.session.header import check_about, read_scan, scan_digest
from mois.session.history import reachable_states
from mois.session.journal import find_journal, read_journal
from mois.session.state import State
from mois.session.store import SessionStore, StateReader

LESION = "lesion"
"""Class of lesions whose session has no types."""
_PARTS = ("imagesTr", "labelsTr", "instancesTr")
RESERVED = ("background", REJECTED)
"""Classes with a meaning of their own in a dataset. A type of this name becomes the class NAME-lesion."""
_ODD = re.compile(r"(?:[^\w.-]|_)+")


class JudgedScan(NamedTuple):
    """A scan with the lesions that a reader judged.

    Attributes:
        folder: Folder of the session.
        volume: The scan.
        lesions: (I, J, K) int32: lesions from 1 on, then rejected lesions.
        types: Class of each id; `REJECTED` for rejected lesions.
        open: Number of found lesions that nobody judged. They are background.
        digest: SHA-256 of the voxels and the grid of the scan.
    """

    folder: Path
    volume: Volume
    lesions: InstanceMap
    types: dict[int, str]
    open: int
    digest: str


def read_judged(folder: Path) -> JudgedScan:
    """Read a session: its scan, and the lesions that the reader prompted, accepted or rejected.

    Args:
        folder: Folder of the session. It must not be open elsewhere.

    Raises:
        ValueError: If the folder holds no session, the session is damaged or open, or its scan is missing or changed.
    """
    journal = read_journal(find_journal(folder))
    header = journal.header
    with told_where(str(folder)):
        check_about(header)
        volume = read_scan(header)
    settings = header["inference"]
    if scan_digest(volume, settings.get("channels", ())) != header["scan_sha256"]:
        raise DataError(f"{volume.path}: is not the scan of session {folder} any more; put the right file there.")
    grid = SliceGrid.of(volume.shape, volume.affine, settings["slice_axis"])
    numbers, position = reachable_states(journal.actions)
    state = State()
    if numbers[position]:
        store = SessionStore(folder, journal)
        try:
            state = StateReader(store, journal.actions, grid.stack_shape).read(numbers[position])
        finally:
            store.close()
    stack, types, unjudged = _judged(state, grid.stack_shape)
    lesions: InstanceMap = grid.to_volume(torch.from_numpy(stack)).numpy()
    return JudgedScan(folder, volume, lesions, types, unjudged, header["scan_sha256"])


def _judged(state: State, shape: tuple[int, int, int]) -> tuple[InstanceMap, dict[int, str], int]:
    """Return the judged lesions as a map (S, H, W), the type of each id, and the number of lesions nobody judged."""
    stack = np.zeros(shape, dtype=np.int32)
    kept = [
        lesion for lesion in state.lesions.values() if lesion.origin == "prompted" or lesion.accepted or lesion.locked
    ]
    types = {}
    for number, mask in enumerate(state.rejected.values(), start=len(kept) + 1):
        mask.paint(stack, number)
        types[number] = REJECTED
    # a lesion has its voxels even where something was rejected before
    for number, lesion in enumerate(kept, start=1):
        lesion.mask.paint(stack, number)
        types[number] = f"{lesion.type}-lesion" if lesion.type.casefold() in RESERVED else lesion.type or LESION
    there = set(np.unique(stack).tolist())
    return stack, {number: kind for number, kind in types.items() if number in there}, len(state.lesions) - len(kept)


def write_judged(out: Path, scans: Sequence[JudgedScan]) -> list[str]:
    """Write scans with judged lesions as a dataset in nnU-Net's raw layout, whole or not at all.

    Args:
        out: Folder to write; it must not exist.
        scans: One scan or more, each of its own.

    Returns:
        The names of the scans in the dataset, in the order of `scans`.

    Raises:
        ValueError: If the folder exists, two sessions are on one scan, the scans have other channels, or nothing was
            judged to be a lesion.
    """
    if out.exists():
        raise ValueError(f"out={out} is there already; choose another folder, or remove it.")
    names = _names_of(scans)
    channels = _channels(scans)
    types = sorted({kind for scan in scans for kind in scan.types.values()} - {REJECTED})
    if not types:
        raise ValueError("no lesion of these sessions was prompted or accepted; judge some first.")
    rejected = [REJECTED] if any(REJECTED in scan.types.values() for scan in scans) else []
    classes = {kind: number for number, kind in enumerate([*types, *rejected], start=1)}
    rows = [(name, scan.volume.patient) for name, scan in zip(names, scans, strict=True)]
    about = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": {"background": 0, **classes},
        "numTraining": len(scans),
        "file_ending": ".nii.gz",
    }
    with whole_folder(out, ()) as part:
        for name, scan in zip(names, scans, strict=True):
            _write_scan(part, name, scan, classes)
        write_text(part / "subjects.csv", csv_text(("subject", "patient"), rows))
        write_text(part / "dataset.json", json.dumps(about, indent=2) + "\n")
    return names


def _write_scan(out: Path, name: str, scan: JudgedScan, classes: dict[str, int]) -> None:
    for part in _PARTS:
        (out / part).mkdir(parents=True, exist_ok=True)
    volume = scan.volume
    for number, image in enumerate([volume.image, *(channel.image for channel in volume.further)]):
        write_volume(image, volume.affine, out / "imagesTr" / f"{name}_{number:04d}.nii.gz")
    values = np.zeros(max(scan.types, default=0) + 1, np.int32)
    for lesion, kind in scan.types.items():
        values[lesion] = classes[kind]
    write_volume(values[scan.lesions], volume.affine, out / "labelsTr" / f"{name}.nii.gz")
    write_volume(scan.lesions, volume.affine, out / "instancesTr" / f"{name}.nii.gz")


def _names_of(scans: Sequence[JudgedScan]) -> list[str]:
    """Return the names of the scans in the dataset: those of the subjects, as file names.

    Two scans may have one name, such as FLAIR in the folders of two patients. The second then gets a number: FLAIR-2.

    Raises:
        ValueError: If two sessions are on one scan.
    """
    names: list[str] = []
    first_of: dict[str, Path] = {}
    for scan in scans:
        for same in (scan.digest, scan.volume.path):  # models of other channels give one scan two digests
            if (first := first_of.setdefault(same, scan.folder)) is not scan.folder:
                raise ValueError(f"{first} and {scan.folder} are both on scan {scan.volume.subject}; leave one out.")
        plain = _ODD.sub("-", unicodedata.normalize("NFC", scan.volume.subject)).strip("-.") or "scan"
        taken = {name.casefold() for name in names}
        numbered = (plain if number == 1 else f"{plain}-{number}" for number in count(1))
        names.append(next(name for name in numbered if name.casefold() not in taken))
    return names


def patients_of_equal_names(scans: Sequence[JudgedScan], names: Sequence[str]) -> dict[str, list[str]]:
    """Return patients with several scans of one name, and their scans: files may be called alike for all patients.

    Args:
        scans: The scans.
        names: Their names in the dataset, as `write_judged` returns them.
    """
    by_patient: dict[str, dict[str, str]] = {}
    for name, scan in zip(names, scans, strict=True):
        by_patient.setdefault(scan.volume.patient, {})[name] = scan.volume.subject
    return {
        patient: [name for name, subject in own.items() if [*own.values()].count(subject) > 1]
        for patient, own in by_patient.items()
        if len({*own.values()}) < len(own)
    }


def _channels(scans: Sequence[JudgedScan]) -> list[str]:
    every = [[scan.volume.channel, *(channel.name for channel in scan.volume.further)] for scan in scans]
    for scan, channels in zip(scans, every, strict=True):
        if channels != every[0]:
            first, here = (", ".join(filter(None, names)) or "one image" for names in (every[0], channels))
            raise ValueError(f"{scan.folder}: its scan has {here}, that of {scans[0].folder} {first}; leave one out.")
    return [name or "image" for name in every[0]]
