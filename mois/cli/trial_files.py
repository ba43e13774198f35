"""Finds and reads the labels beside a scan, for `mois try`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mois.errors import DataError
from mois.records import Volume
from mois.scans.dataset_description import FILE_ENDINGS, REJECTED, read_description
from mois.scans.image_files import name_of, read_image
from mois.scans.labels import whole_numbers
from mois.scans.layouts.bids import lesion_mask_of
from mois.scans.volumes import read_images, read_volume

_PART = re.compile(r"images(Tr|Ts)")
SUFFIXES = ("_seg", "_label", "_mask", "_dseg", "-label", "-seg", ".seg")


def read_labelled(
    images: Mapping[str, Path], labels: Path | None, needed: bool, target_class: int | None
) -> tuple[Volume, int]:
    """Read a scan with its labels.

    Args:
        images: Name of each channel to its file, or to a folder of DICOM; a single image may have the name "".
        labels: Label map; None looks for one beside the first image, if labels are needed.
        needed: Whether lesions are needed.
        target_class: The class that is wanted; None takes the class with most lesions.

    Returns:
        The scan, and the class; 0 if no labels were read.

    Raises:
        DataError: If labels are needed and there are none, or no lesion of the class is in them.
    """
    (channel, scan), *others = images.items()
    name = name_of(scan)
    if not needed and labels is None:
        return read_images(images, subject=name, patient=name), 0
    found = labels if labels is not None else labels_beside(scan)
    ids = None if labels is not None else lesion_ids_beside(scan)
    if found is None and ids is None:
        read_image(scan)  # says it if there is no such scan
        raise DataError(f"{scan}: there are no labels beside it; give --labels MAP, or --prompts FILE.")
    volume = read_volume(
        scan,
        ids or found,
        subject=name,
        patient=name,
        classes={1: "1"} if found is None else _classes(found),
        instances=ids is not None,
        semantic=found,
        channel=channel,
        further=dict(others),
    )
    rejected = _rejected_classes(scan) if labels is None else ()
    counts = Counter(kind for kind in volume.classes.values() if kind not in rejected)
    chosen = target_class if target_class is not None else max(counts, key=lambda one: (counts[one], -one), default=0)
    if not counts.get(chosen):
        what = "a lesion (voxels above 0)" if target_class is None else f"a lesion of class {target_class}"
        raise DataError(f"{found or ids}: does not hold {what}; give another label map, or --prompts FILE.")
    return volume, chosen


def _classes(labels: Path) -> dict[int, str]:
    """Return the values above 0 of a label map, as classes."""
    values = np.unique(whole_numbers(read_image(labels)[0], labels))
    return {int(value): str(value) for value in values if value}


def _rejected_classes(scan: Path) -> list[int]:
    """Return the class of places that a reader rejected, if the scan's dataset has one: they are no lesions."""
    about = scan.parent.parent / "dataset.json"
    declared = read_description(about).classes if _PART.fullmatch(scan.parent.name) and about.is_file() else {}
    return [number for number, name in declared.items() if name == REJECTED]


def lesion_ids_beside(scan: Path) -> Path | None:
    """Return the map of lesion ids of a scan in imagesTr or imagesTs: in instancesTr or instancesTs."""
    return _map_in_dataset(scan, "instances")


def labels_beside(scan: Path) -> Path | None:
    """Return the label map of a scan: in labelsTr or labelsTs, beside it under a usual name, or in its BIDS dataset."""
    if _PART.fullmatch(scan.parent.name):
        return _map_in_dataset(scan, "labels")
    ending = next((one for one in FILE_ENDINGS if scan.name.endswith(one)), "")
    stem = scan.name.removesuffix(ending)
    names = [f"{stem}{suffix}{one}" for suffix in SUFFIXES for one in FILE_ENDINGS]
    bids = stem.rpartition("_")[0]  # sub-01_FLAIR beside sub-01_dseg
    names += [f"{bids}{suffix}{one}" for suffix in ("_dseg", "_mask") for one in FILE_ENDINGS] if bids else []
    beside = next((scan.parent / name for name in names if (scan.parent / name).is_file()), None)
    return beside if beside is not None else lesion_mask_of(scan)


def _map_in_dataset(scan: Path, kind: str) -> Path | None:
    """Return the map of a scan of a dataset in nnU-Net's raw layout: `labels` or `instances`; None if it has none."""
    part = _PART.fullmatch(scan.parent.name)
    if not part:
        return None
    root, about = scan.parent.parent, scan.parent.parent / "dataset.json"
    ending = next((one for one in FILE_ENDINGS if scan.name.endswith(one)), "")
    subject = re.sub(r"_\d{4}$", "", scan.name.removesuffix(ending))
    ending = read_description(about).file_ending if about.is_file() else ending
    file = root / f"{kind}{part[1]}" / f"{subject}{ending}"
    return file if file.is_file() else None
