"""Tiny datasets in the real file format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

SPACING_MM = (2.0, 6.0, 2.0)  # right-left, anterior-posterior, superior-inferior: slices are coronal

SHAPE = (40, 8, 48)


def save_nifti(path: Path, array: NDArray[Any], affine: NDArray[Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*SPACING_MM, 1.0]) if affine is None else affine), path)
    return path


def scan_with_lesions(seed: int = 0, lesions: int = 12) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return image, class map (1 bright, 2 dark, in turn) and lesion ids of cubes of 3 x 2 x 3 voxels in noise."""
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 3, SHAPE).astype(np.float32)
    image[:4], image[-4:] = 0, 0
    classes, ids = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.int32)
    cells = [(x, y, z) for x in range(6, 32, 8) for y in (0, 3, 6) for z in range(2, 44, 8)]
    for number, cell in enumerate(rng.permutation(cells)[:lesions]):
        place = tuple(slice(at, at + edge) for at, edge in zip(cell, (3, 2, 3), strict=True))
        ids[place] = number + 1
        classes[place] = 1 + number % 2
        image[place] = 180 if number % 2 == 0 else 30
    return image, classes, ids


def write_dataset(root: Path, subjects: int = 2, held_out: int = 0, lesions: int = 12, instances: bool = False) -> Path:
    """Write scans p0, p1, ... in nnU-Net's raw layout; return their folder."""
    for number in range(subjects + held_out):
        part = "Tr" if number < subjects else "Ts"
        image, classes, ids = scan_with_lesions(number, lesions)
        save_nifti(root / f"images{part}" / f"p{number}_0000.nii.gz", image)
        save_nifti(root / f"labels{part}" / f"p{number}.nii.gz", classes)
        if instances:
            save_nifti(root / f"instances{part}" / f"p{number}.nii.gz", ids)
    description = {
        "channel_names": {"0": "T2"},
        "labels": {"background": 0, "bright": 1, "dark": 2},
        "numTraining": subjects,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


BIDS_PLACE = "sub-{patient}/{session}/anat/sub-{patient}_{session}"


def write_bids(root: Path, mask: str = "label-lesion_mask", patients: int = 2, values: int = 1) -> Path:
    """Write two sessions of each patient: FLAIR and T1w, and a mask as derivative."""
    for patient in range(1, patients + 1):
        for number, session in enumerate(("ses-1", "ses-2")):
            image, classes, _ = scan_with_lesions(10 * patient + number)
            place = BIDS_PLACE.format(patient=f"{patient:02d}", session=session)
            for suffix in ("FLAIR", "T1w"):
                save_nifti(root / f"{place}_{suffix}.nii.gz", image)
            save_nifti(root / "derivatives" / "lesions" / f"{place}_{mask}.nii.gz", np.minimum(classes, values))
            save_nifti(root / "derivatives" / "bet" / f"{place}_desc-brain_mask.nii.gz", (image > 0).astype(np.uint8))
    for folder in (root, root / "derivatives" / "lesions"):
        (folder / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.9.0"}))
    (root / "participants.tsv").write_text("participant_id\tsite\nsub-01\tA\nsub-02\tB\n")
    return root
