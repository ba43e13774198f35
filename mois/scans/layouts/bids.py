"""Reads BIDS datasets: images with lesion masks as derivatives, found by the entities in the names of files.

    ROOT/dataset_description.json
    ROOT/participants.tsv                                          optional: column site
    ROOT/sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz
    ROOT/derivatives/NAME/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz, or ..._dseg.nii.gz

The root may also be a folder of `derivatives`: its masks, with images beside them or in the dataset above.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mois.errors import DataError, listed
from mois.files.text import read_table
from mois.grid import match_grids
from mois.scans.dataset_description import DatasetDescription
from mois.scans.image_files import check_link, read_image
from mois.scans.labels import whole_numbers
from mois.scans.nifti import read_nifti_grid

ABOUT = "dataset_description.json"
MASKS = ("dseg", "mask")
ENDINGS = (".nii.gz", ".nii")
_NO_IMAGES = (*MASKS, "probseg", "xfm", "warp", "sbref", "bold", "dwi")
_NO_LESIONS = re.compile(r"brain|tissue|head|skull", re.IGNORECASE)
_ENTITY = re.compile(r"([a-zA-Z]+)-([a-zA-Z0-9]+)")


class BidsFile(NamedTuple):
    """An image or a mask.

    Attributes:
        path: The file.
        entities: Entities in its name, such as {"sub": "01", "ses": "1"}.
        suffix: Last word of its name, such as "FLAIR".
    """

    path: Path
    entities: dict[str, str]
    suffix: str

    @property
    def scan(self) -> str:
        """Name of the scan: patient and session."""
        session = self.entities.get("ses")
        return f"sub-{self.entities['sub']}" + (f"_ses-{session}" if session else "")


class BidsScan(NamedTuple):
    """An annotated scan of a BIDS dataset.

    Attributes:
        name: Patient and session, such as "sub-01_ses-1".
        patient: Patient, such as "sub-01".
        session: Session, such as "ses-1", or "".
        site: Column `site` of participants.tsv, or "".
        images: Suffix to image.
        mask: Map of lesions.
    """

    name: str
    patient: str
    session: str
    site: str
    images: dict[str, Path]
    mask: Path


def is_bids(root: Path) -> bool:
    """Return whether a folder is a BIDS dataset or a derivative, and no dataset of nnU-Net."""
    return (root / ABOUT).is_file() and not (root / "dataset.json").is_file()


def read_bids(root: Path) -> tuple[list[BidsScan], DatasetDescription]:
    """List the annotated scans of a BIDS dataset, by name. Scans without a mask of lesions are left out.

    Args:
        root: Folder with dataset_description.json.

    Raises:
        DataError: If there is no mask of lesions, a scan has two of them, or a mask has no image in its space. Also if
            two tables name the classes differently, or a mask or a needed image is a link to nothing.
    """
    places = _places(root)
    files = _files_of(places)
    masks = _lesion_masks([file for file in files if file.suffix in MASKS and root in file.path.parents])
    if not masks:
        raise DataError(
            f"{root}: no mask of lesions (sub-*_dseg.nii.gz, sub-*_label-lesion_mask.nii.gz) in it or its derivatives."
        )
    for mask in masks.values():
        check_link(mask.path)
    images = [file for file in files if file.suffix not in _NO_IMAGES]
    sites = _sites(places, {f"sub-{mask.entities['sub']}" for mask in masks.values()})
    scans = [
        BidsScan(
            name,
            f"sub-{mask.entities['sub']}",
            f"ses-{mask.entities['ses']}" if "ses" in mask.entities else "",
            sites[f"sub-{mask.entities['sub']}"],
            _images_of(mask, images),
            mask.path,
        )
        for name, mask in sorted(masks.items())
    ]
    counts = Counter(suffix for scan in scans for suffix in scan.images)
    for scan in scans:  # a sequence that other scans have
        for image in images:
            if image.scan == scan.name and image.suffix in counts.keys() - scan.images.keys():
                check_link(image.path)
    suffixes = sorted(counts, key=lambda suffix: (counts[suffix] < len(scans), suffix))  # first what every scan has
    return scans, DatasetDescription(_classes(list(masks.values()), places), ".nii.gz", dict(enumerate(suffixes)))


def scans_without_mask(root: Path) -> list[str]:
    """Return the names of the scans of a BIDS dataset that have images but no mask of lesions: `read_bids` omits them.

    Args:
        root: Folder with dataset_description.json.

    Raises:
        DataError: If a scan has two masks of lesions.
    """
    files = _files_of(_places(root))
    masks = _lesion_masks([file for file in files if file.suffix in MASKS and root in file.path.parents])
    return sorted({file.scan for file in files if file.suffix not in _NO_IMAGES} - masks.keys())


def _places(root: Path) -> list[Path]:
    """Return the folders with the files of a dataset: its own, and for a folder of derivatives that of the dataset."""
    return [root, *([root.parent.parent] if root.parent.name == "derivatives" else [])]


def _files_of(places: Sequence[Path]) -> list[BidsFile]:
    """Return the files of folders, of which one may lie in another, each file once."""
    return list({file.path: file for place in places for file in _files(place)}.values())


def _files(root: Path) -> list[BidsFile]:
    """Return the NIfTI files of all patients, of the dataset and of its derivatives, and links to nothing."""
    named = (_named(path) for path in sorted(root.rglob("sub-*.nii*")))
    return [file for file in named if file is not None and (file.path.is_file() or file.path.is_symlink())]


def _named(path: Path) -> BidsFile | None:
    """Return a file by its name; None if it is not named as an image or a mask of a patient."""
    ending = next((one for one in ENDINGS if path.name.endswith(one)), None)
    stem, _, suffix = path.name.removesuffix(ending or "").rpartition("_")
    entities = dict(_ENTITY.findall(stem))
    return BidsFile(path, entities, suffix) if ending and "sub" in entities and suffix else None


def lesion_mask_of(image: Path) -> Path | None:
    """Return the mask of lesions of an image: of its scan and in its space, in the dataset around it.

    Args:
        image: The image. Of datasets in each other, the innermost that holds such a mask decides.

    Returns:
        The mask; None if the image lies in no BIDS dataset, or there is no mask.

    Raises:
        DataError: If there are two of them.
    """
    own = _named(image.absolute())
    for root in own.path.parents if own is not None else ():
        if own is not None and is_bids(root):
            masks = [file for file in _files(root) if file.suffix in MASKS and file.scan == own.scan]
            masks = [mask for mask in masks if mask.entities.get("space") == own.entities.get("space")]
            if (mask := _one_of(own.scan, masks)) is not None:
                check_link(mask.path)
                return mask.path
    return None


def _lesion_masks(masks: Sequence[BidsFile]) -> dict[str, BidsFile]:
    """Return the mask of lesions of each scan: one that is called so, else a segmentation, else another mask."""
    chosen: dict[str, list[BidsFile]] = {}
    for mask in masks:
        chosen.setdefault(mask.scan, []).append(mask)
    return {name: one for name, some in chosen.items() if (one := _one_of(name, some)) is not None}


def _one_of(name: str, masks: Sequence[BidsFile]) -> BidsFile | None:
    def said(mask: BidsFile) -> str:
        return f"{mask.entities.get('label', '')} {mask.entities.get('desc', '')}"

    others = [mask for mask in masks if not _NO_LESIONS.search(said(mask))]
    for group in (
        [mask for mask in masks if "lesion" in said(mask).lower()],
        [mask for mask in others if mask.suffix == "dseg"],
        [mask for mask in others if mask.suffix == "mask"],
    ):
        if len(group) > 1:
            raise DataError(f"{group[0].path} and {group[1].path} are both lesions of {name}; move one away.")
        if group:
            return group[0]
    return None


def _images_of(mask: BidsFile, images: Sequence[BidsFile]) -> dict[str, Path]:
    """Return the images of a mask by suffix: of its scan, in its space and on its grid, with most entities in common.

    Of equal ones, that beside the mask is taken, else that of the dataset itself. Where no image lies on the grid of
    the mask, all are returned: reading them says by how much the grids differ.
    """
    there = [image for image in images if image.scan == mask.scan]
    there = [image for image in there if image.entities.get("space") == mask.entities.get("space")]
    if not there:
        space = mask.entities.get("space")
        where = f" in space-{space}" if space else ""
        raise DataError(f"{mask.path}: there is no image of {mask.scan}{where}; add it, or move the mask away.")
    fetched = [image for image in there if image.path.is_file()]
    if not fetched:
        check_link(there[0].path)
    there = _on_grid(mask, fetched) or fetched

    def near(image: BidsFile) -> tuple[int, bool, bool]:
        in_common = sum(mask.entities.get(key) == value for key, value in image.entities.items())
        return in_common, image.path.parent == mask.path.parent, "derivatives" not in image.path.parts

    best: dict[str, BidsFile] = {}
    for image in there:
        if image.suffix not in best or near(image) > near(best[image.suffix]):
            best[image.suffix] = image
    return {suffix: image.path for suffix, image in best.items()}


def _on_grid(mask: BidsFile, images: Sequence[BidsFile]) -> list[BidsFile]:
    """Return the images on the grid of a mask. One with a damaged header is kept: reading it says what is wrong."""
    try:
        wanted = read_nifti_grid(mask.path)
    except ValueError:
        return []
    kept = []
    for image in images:
        try:
            fits = match_grids(read_nifti_grid(image.path), wanted).same
        except ValueError:
            fits = True
        if fits:
            kept.append(image)
    return kept


def _sites(places: Sequence[Path], patients: Set[str]) -> dict[str, str]:
    """Return the site of each patient, such as "sub-01", from the first participants.tsv with such a column, or "".

    Ids without the prefix `sub-`, which BIDS asks for, are taken with it. Patients without a line are named in a
    warning.
    """
    for place in places:
        file = place / "participants.tsv"
        if file.is_file() and {"participant_id", "site"} <= set((table := read_table(file)).columns):
            sites = {f"sub-{row['participant_id'].removeprefix('sub-')}": row["site"] for row in table.rows}
            if missing := sorted(patients - sites.keys()):
                warnings.warn(
                    f"{file}: no line for {listed(missing)}; their scans have no site, add the lines", stacklevel=1
                )
            return {patient: sites.get(patient, "") for patient in patients}
    return dict.fromkeys(patients, "")


def _classes(masks: Sequence[BidsFile], places: Sequence[Path]) -> dict[int, str]:
    """Return the classes: of the tables of the maps (*_dseg.tsv with index and name), else the values of all maps.

    Raises:
        DataError: If two tables give an index different names, or the lesions of two masks have different values.
    """
    named: dict[int, tuple[str, Path]] = {}
    for file in dict.fromkeys(file for mask in masks for file in _tables_of(mask, places)):
        table = read_table(file)
        rows = table.rows if {"index", "name"} <= set(table.columns) else []
        for index, name in [(int(row["index"]), row["name"]) for row in rows if row["index"].isdecimal()]:
            other, first = named.setdefault(index, (name, file))
            if other != name and index:
                raise DataError(f"{first}: index {index} is {other}, in {file} it is {name}; give one class one index.")
    named.pop(0, None)
    if named:
        return {index: name for index, (name, _) in named.items()}
    values = _values_of(masks)
    return {value: "lesion" if values == {1} else f"lesion {value}" for value in sorted(values)} or {1: "lesion"}


def _values_of(masks: Sequence[BidsFile]) -> set[int]:
    """Return the values of lesions in all maps.

    Raises:
        DataError: If the lesions of two binary masks have different values.
    """
    values: set[int] = set()
    of_binary: dict[int, Path] = {}  # value to the first mask with it
    for mask in masks:
        here = {int(value) for value in np.unique(whole_numbers(read_image(mask.path)[0], mask.path))} - {0}
        if mask.suffix == "mask" and len(here) == 1:
            of_binary.setdefault(min(here), mask.path)
        values |= here
    if len(of_binary) > 1:
        (value, mask_path), (other, other_path) = list(of_binary.items())[:2]
        raise DataError(
            f"{other_path}: its lesions are {other}, those of {mask_path} are {value}; write one value, or call maps "
            "of several classes *_dseg."
        )
    return values


def _tables_of(mask: BidsFile, places: Sequence[Path]) -> list[Path]:
    """Return the tables for a segmentation: in its folder or above it, with no entity that the segmentation lacks."""
    if mask.suffix != "dseg":
        return []
    folders = [folder for folder in mask.path.parents if any(folder.is_relative_to(place) for place in places)]
    tables = [file for folder in reversed(folders) for file in sorted(folder.glob("*dseg.tsv"))]
    return [file for file in tables if {*_ENTITY.findall(file.name)} <= mask.entities.items()]
