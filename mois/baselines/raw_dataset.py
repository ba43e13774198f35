"""Writes a dataset as an nnU-Net raw dataset: semantic labels, checked files, a split that groups patients."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mois.errors import DataError
from mois.grid import put_on
from mois.lesions import renumber
from mois.records import Volume
from mois.scans.channels import channel_numbers
from mois.scans.datasets import SubjectFiles, describe_dataset
from mois.scans.image_files import write_volume

ENDING = ".nii.gz"


@dataclass(frozen=True)
class RawExport:
    """Content of the dataset to write.

    Attributes:
        train: Scans of imagesTr, with the validation scans.
        test: Scans of imagesTs.
        folds: (train, val) names of scans for splits_final.json. If empty, no such file is written, and nnU-Net trains
            its fold "all".
        number: Id of the dataset in nnU-Net, 1 to 999.
        name: Name of the dataset: letters, digits, underscores.
        channels: Numbers of the images of a scan, in this order.
        channel_names: Channel number to name.
    """

    train: Sequence[SubjectFiles]
    test: Sequence[SubjectFiles]
    folds: Sequence[tuple[list[str], list[str]]]
    number: int
    name: str
    channels: tuple[int, ...] = (0,)
    channel_names: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse settings that nnU-Net could not read, before anything is written."""
        if not 1 <= self.number <= 999:
            raise ValueError(f"dataset={self.number} must lie between 1 and 999, as nnU-Net numbers its datasets.")
        if not re.fullmatch(r"\w+", self.name, flags=re.ASCII):
            raise ValueError(f"name={self.name!r} must consist of letters, digits and underscores; set name.")
        if not self.channels or len(set(self.channels)) < len(self.channels):
            raise ValueError(f"channels={list(self.channels)} must name one or more images, each once.")
        if not self.train:
            raise DataError("no scan is left to train on; name some in train.")
        for subject in self.train:
            if subject.label is None and subject.instances is None:
                raise DataError(f"scan {subject.subject} has no label map to train on; add it, or leave the scan out.")
        known = {subject.subject for subject in self.train}
        for train, val in self.folds:
            if strange := sorted({*train, *val} - known):
                raise DataError(f"splits_final.json names {strange[0]}, which is no training scan; correct the split.")

    @property
    def folder(self) -> str:
        """Name of the dataset's folder."""
        return f"Dataset{self.number:03d}_{self.name}"


def channel_choice(channels: Sequence[int | str], declared: dict[int, str], root: Path) -> tuple[int, ...]:
    """Return the numbers of images that are given by number or by name.

    Args:
        channels: Numbers, or names as in dataset.json.
        declared: Number and name of each image in dataset.json.
        root: Folder of the dataset, for messages.

    Raises:
        DataError: If dataset.json does not name an image.
    """
    return tuple(one if isinstance(one, int) else channel_numbers([one], declared, str(root))[0] for one in channels)


def read_channel_names(root: Path) -> dict[int, str]:
    """Return the names of a dataset's images. They choose the normalisation of nnU-Net: "CT" has its own."""
    return describe_dataset(root).channels


def write_raw(export: RawExport, out: Path, tell: Callable[[str], None] | None = None) -> Path:
    """Write a raw dataset, whole or not at all.

    Every scan is read with our checks and written as NIfTI on its own grid. So nnU-Net gets no broken file, and no
    affine with a rounding difference. Classes become 1, 2, ... as nnU-Net demands, without the class of
    rejected places. dataset.json keeps their own values under "mois".

    Args:
        export: Content of the dataset.
        out: The folder of raw datasets of nnU-Net; it is made if it is missing.
        tell: Called with the name of each scan that is written.

    Returns:
        The folder of the dataset.

    Raises:
        DataError: If a dataset of this number exists already, or a file is broken.
    """
    taken = sorted(out.glob(f"Dataset{export.number:03d}_*"))
    if taken:
        raise DataError(f"{taken[0]} exists already; set another number with dataset, or delete that folder.")
    part = out / f".{export.folder}.{os.getpid()}.part"
    try:
        content = hashlib.sha256()
        values = sorted(export.train[0].lesion_classes)
        for place, subjects in (("Tr", export.train), ("Ts", export.test)):
            for subject in subjects:
                _write_scan(subject, export.channels, values, part, place, content)
                if tell is not None:
                    tell(f"images{place}/{subject.subject}")
        if export.folds:
            split = [{"train": train, "val": val} for train, val in export.folds]
            (part / "splits_final.json").write_text(json.dumps(split, indent=4) + "\n", encoding="utf-8")
        about = _describe(export, values, content.hexdigest())
        (part / "dataset.json").write_text(json.dumps(about, indent=4) + "\n", encoding="utf-8")
        part.replace(out / export.folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out / export.folder


def semantic_map(volume: Volume, values: Sequence[int]) -> NDArray[np.int32]:
    """Return the class of every voxel, (I, J, K) int32: n + 1 for the n-th of `values`, 0 for background."""
    return renumber(
        volume.lesions.numpy(), {lesion: 1 + values.index(value) for lesion, value in volume.classes.items()}
    )


def _write_scan(
    subject: SubjectFiles, channels: Sequence[int], values: Sequence[int], part: Path, split: str, content: Any
) -> None:
    """Write the images and the label map of a scan, and add their voxels to the fingerprint."""
    content.update(f"{split} {subject.subject}\n".encode())
    volume: Volume | None = None
    for number, channel in enumerate(channels):
        scan = subject.read(channel, instances=subject.label is None)
        if volume is not None:
            scan = _on_grid(scan, volume)
        volume = volume or scan
        write_volume(scan.image, scan.affine, part / f"images{split}" / f"{subject.subject}_{number:04d}{ENDING}")
        content.update(scan.image.numpy().tobytes())
    if volume is not None and (subject.label is not None or subject.instances is not None):
        classes = semantic_map(volume, values)
        write_volume(torch.from_numpy(classes), volume.affine, part / f"labels{split}" / f"{subject.subject}{ENDING}")
        content.update(classes.tobytes())


def _on_grid(scan: Volume, first: Volume) -> Volume:
    """Return a channel in the voxel order of the first channel of the scan."""
    try:
        image = put_on(scan.image.numpy(), scan.grid, first.grid, Path(first.path).name)
    except ValueError as error:
        raise DataError(f"{scan.path}: {error}") from error
    return scan._replace(image=torch.from_numpy(np.ascontiguousarray(image)), affine=first.affine)


def _describe(export: RawExport, values: Sequence[int], sha256: str) -> dict[str, Any]:
    names = export.train[0].classes
    return {
        "channel_names": {
            str(number): export.channel_names.get(channel, f"channel {channel}")
            for number, channel in enumerate(export.channels)
        },
        "labels": {"background": 0} | {names[value]: 1 + number for number, value in enumerate(values)},
        "numTraining": len(export.train),
        "file_ending": ENDING,
        "overwrite_image_reader_writer": "NibabelIO",  # keeps affines as they are, sheared ones too
        "mois": {"values": list(values), "channels": list(export.channels), "sha256": sha256},
    }
