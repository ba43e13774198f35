"""Reads every scan of a dataset: faults by file, and the measures that a plan needs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mois.errors import DataError
from mois.grid import Grid
from mois.planning.contrast import lesion_contrast
from mois.planning.plan import DatasetFacts
from mois.scans.dataset_description import DatasetDescription
from mois.scans.dataset_facts import ScanFacts
from mois.scans.datasets import SubjectFiles, describe_dataset, list_scans
from mois.scans.layouts.bids import is_bids
from mois.scans.volumes import read_on_grid

_IMAGE = re.compile(
    r"(?P<subject>.+?)(?P<channel>_\d{4})?(\.[^\W\d][^\W_]*)*"
)  # image of any format, or a folder of DICOM


class Survey(NamedTuple):
    """What was found in a dataset.

    Attributes:
        scans: All scans, also those that cannot be read.
        facts: Measures of the scans that can be read, in their order.
        contrasts: For each of `facts`: number of a channel, and how much the lesions stand out in it. Empty where
            contrasts are not asked for, the scan has no lesion, or no label.
        faults: Lines on what has to be mended.
        description: The content of dataset.json.
    """

    scans: list[SubjectFiles]
    facts: list[ScanFacts]
    contrasts: list[dict[int, float]]
    faults: list[str]
    description: DatasetDescription

    def uneven_channels(self, root: Path) -> Iterator[str]:
        """Yield a fault for each image that a training scan lacks and another one has.

        In a BIDS dataset, sequences of single scans are usual. There it is a fault if no sequence is there for all.

        Args:
            root: Folder of the dataset.
        """
        training = [scan for scan in self.scans if not scan.held_out]
        every = sorted({channel for scan in training for channel in scan.images})
        if is_bids(root):
            counts = {channel: sum(channel in scan.images for scan in training) for channel in every}
            if len(training) not in counts.values():
                seen = ", ".join(f"{self.description.channels[channel]} for {counts[channel]}" for channel in every)
                yield f"{root}: no sequence is there for every scan ({seen} of {len(training)}); add the missing ones"
            return
        for scan in training:
            for channel in every:
                if channel not in scan.images:
                    file = f"{scan.subject}_{channel:04d}{self.description.file_ending}"
                    lacks = f"has no image of channel {channel}, which other scans have"
                    yield f"{root}: scan {scan.subject} {lacks}; add {file}, or move that of the others away"

    def for_plan(self, root: Path) -> DatasetFacts:
        """Return what a plan needs to know, of the scans to train on.

        Args:
            root: Folder of the dataset.

        Raises:
            DataError: If there is no scan to train on.
        """
        held_out = {scan.subject for scan in self.scans if scan.held_out}
        training = [number for number, facts in enumerate(self.facts) if facts.subject not in held_out]
        if not training:
            raise DataError(f"{root}: no scan to train on; add images to imagesTr and their maps to labelsTr.")
        channels = set.intersection(*({*scan.images} for scan in self.scans if not scan.held_out))
        contrasts = {
            channel: [self.contrasts[number][channel] for number in training if channel in self.contrasts[number]]
            for channel in sorted(channels)
        }
        scans = [self.facts[number] for number in training]
        has_splits = (root / "splits_final.json").is_file()
        return DatasetFacts(root, self.description, scans, contrasts, len(held_out), has_splits)


def survey(root: Path, contrasts: bool = False) -> Survey:
    """Read every scan of a dataset.

    Args:
        root: Folder of the dataset.
        contrasts: Whether to measure how much the lesions stand out in each channel, where there are several.

    Raises:
        DataError: If the folder holds no dataset.
    """
    scans = list_scans(root)
    description = describe_dataset(root)
    ending = description.file_ending
    found = Survey(scans, [], [], [], description)
    for scan in scans:
        facts, measured, wrong = _examine_scan(root, scan, ending, contrasts)
        if facts is not None:
            found.facts.append(facts)
            found.contrasts.append(measured)
        found.faults.extend(wrong)
    found.faults.extend(_strays(root, scans, ending))
    return found


def _examine_scan(
    root: Path, scan: SubjectFiles, ending: str, contrasts: bool
) -> tuple[ScanFacts | None, dict[int, float], list[str]]:
    """Return facts, contrasts and faults of a scan. The facts are None if it cannot be read."""
    facts: ScanFacts | None = None
    measured: dict[int, float] = {}
    wrong = []
    if 0 not in scan.images and not is_bids(root):
        first = scan.images[min(scan.images)]
        cure = f"call it {scan.subject}_0000{ending}, or set data.init_args.channel"
        wrong.append(f"{first}: scan {scan.subject} has no channel 0 (its name ends in {min(scan.images):04d}); {cure}")
    if not scan.held_out and scan.label is None and scan.instances is None:
        cure = f"add labelsTr/{scan.subject}{ending}, all 0 if it has no lesion, or move its image out of imagesTr"
        wrong.append(f"{root}: training scan {scan.subject} has no label map; {cure}")
    grid: Grid | None = None
    for channel, path in scan.images.items():
        try:
            if grid is not None:  # before the labels are read: they are not at fault
                read_on_grid(path, grid, scan.images[min(scan.images)].name, "the channel")
            volume = scan.read(channel)
            grid = grid or Grid.of(volume.shape, volume.affine)
            facts = facts or ScanFacts.of(volume, scan.instances is not None)
            if contrasts and volume.classes and len(scan.images) > 1:
                measured[channel] = lesion_contrast(volume)
        except DataError as error:
            wrong.append(str(error))
    return facts, measured, wrong


def _strays(root: Path, scans: Sequence[SubjectFiles], ending: str) -> Iterator[str]:
    """Yield a fault for each image of another format, and for each map without a scan."""
    for part, held_out in (("Tr", False), ("Ts", True)):
        read = {scan.subject for scan in scans if scan.held_out == held_out}
        files = sorted(
            file for kind in ("labels", "instances") for file in (root / f"{kind}{part}").glob(f"[!.]*{ending}")
        )
        maps = {file: name for file in files if (name := file.name.removesuffix(ending)) not in read}
        unread: dict[str, Path] = {}  # the first image of each scan
        for path in sorted((root / f"images{part}").glob("[!.]*")):
            words = _IMAGE.fullmatch(path.name)
            if words and words["subject"] not in read and (words["channel"] or words["subject"] in maps.values()):
                unread.setdefault(words["subject"], path)
        for name, path in unread.items():
            cure = f"convert it to {name}_0000{ending}, or move it away"
            yield f"{path}: scan {name} is not read: dataset.json declares file_ending {ending}; {cure}"
        for path, name in maps.items():
            if name not in unread:
                cure = "add the image, or remove the map"
                yield f"{path}: there is no image images{part}/{name}_0000{ending}; {cure}"
