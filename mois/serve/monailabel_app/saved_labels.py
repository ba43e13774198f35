"""Saved labels as a dataset in the nnU-Net raw layout, for a training elsewhere. `mois fit` reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mois.files.atomic import refuse_links, write_text
from mois.records import Volume
from mois.scans.image_files import write_volume

FOLDER = "dataset"
"""Folder, beside the images, of the dataset."""
_PARTS = ("imagesTr", "labelsTr", "instancesTr")


def add_to_dataset(root: Path, name: str, volume: Volume, lesions: npt.NDArray[np.int32]) -> None:
    """Write an image and its accepted lesions into a dataset; an earlier version of both is replaced.

    Args:
        root: Folder of the dataset; made if it is missing.
        name: Id of the image.
        volume: The image.
        lesions: Accepted lesions, (I, J, K), with the id of the lesion as value.
    """
    for part in _PARTS:
        (root / part).mkdir(parents=True, exist_ok=True)
    refuse_links(root, ("", *_PARTS))
    write_volume(volume.image, volume.affine, root / "imagesTr" / f"{name}_0000.nii.gz")
    write_volume(lesions, volume.affine, root / "instancesTr" / f"{name}.nii.gz")
    write_volume(lesions > 0, volume.affine, root / "labelsTr" / f"{name}.nii.gz")
    description = {
        "channel_names": {"0": volume.channel or "image"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": len(list((root / "labelsTr").glob("*.nii.gz"))),
        "file_ending": ".nii.gz",
    }
    write_text(root / "dataset.json", json.dumps(description, indent=2) + "\n")
