"""`mois export sam2 | nnunet`; `mois export_nnunet` is the older name of the second."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mois.cli.messages import say

if TYPE_CHECKING:
    from mois.interfaces import Backbone

CHECKPOINTS = (".pt", ".safetensors")
"""Endings of a checkpoint with the names of Meta."""


def export_sam2(
    bundle: Path,
    out: Path,
    layout: Literal["meta", "transformers"] = "meta",
    trust: list[str] | None = None,
    backbone_weights: Path | None = None,
) -> None:
    """Write a bundle's backbone, with its adapter merged, as a checkpoint of SAM 2.1.

    Clicks give the same masks there. The propagation, which finds the lesions that look like exemplars, is not part of
    such a checkpoint.

    Args:
        bundle: Folder `bundle` of a training; the word shipped stands for the model that ships with the package.
        out: File to write (.pt or .safetensors); with the layout transformers, a folder.
        layout: Names of the tensors: those of Meta's sam2, or those of transformers.
        trust: Modules outside this project whose classes the bundle may name.
        backbone_weights: File of the backbone's weights, if it is not where it was in the training.

    Raises:
        ValueError: If the bundle cannot be loaded, its backbone is not SAM 2.1, its adapter cannot be merged, or
            the file has another ending.
    """
    from mois.backbones import SAM2
    from mois.backbones.checkpoint_export import write_meta, write_transformers
    from mois.serve.shipped_model import check_shipped_options
    from mois.sharing.bundle import Bundle
    from mois.sharing.bundle_record import is_shipped

    if out.exists():
        raise ValueError(f"out={out} exists; name another one.")
    if layout == "meta" and out.suffix not in CHECKPOINTS:
        raise ValueError(
            f"out={out} is written as {' or '.join(CHECKPOINTS)}; choose a name with one of these endings."
        )
    check_shipped_options([bundle], None, backbone_weights)
    if is_shipped(bundle):
        backbone: Backbone = SAM2()
    else:
        made = Bundle.load(bundle, "cpu", trust or (), backbone_weights)
        backbone = made.backbone
        if not isinstance(backbone, SAM2):
            raise ValueError(f"bundle={bundle} is of {type(backbone).__name__}, which other programs do not know.")
        made.adapter.merge()
    size, tensors = backbone.identity.name, backbone.weights()
    out.parent.mkdir(parents=True, exist_ok=True)
    if layout == "transformers":
        write_transformers(tensors, size, backbone.patch_px, out)
        say(f"{out}: SAM 2.1 {size} for from_pretrained of transformers (Sam2Model, Sam2VideoModel, Sam2Processor)")
    else:
        write_meta(tensors, out)
        known = " (sam2 itself has no configuration of this size)" if size == "nano" else ""
        say(f"{out}: SAM 2.1 {size} with the names of Meta, at {backbone.patch_px} px{known}")


def export_nnunet(
    data: Path,
    out: Path,
    dataset: int = 701,
    name: str | None = None,
    train: list[str] | None = None,
    val: list[str] | None = None,
    test: list[str] | None = None,
    channels: tuple[int | str, ...] = (0,),
) -> None:
    """Write a dataset for nnU-Net. No patient is in two of its splits.

    Name the scans as in the training that nnU-Net is compared with: the same ones train, validate and test. Without
    train and val, the folds are those of the dataset's splits_final.json or else of its patients, five or fewer.

    Args:
        data: Folder with dataset.json, imagesTr, labelsTr.
        out: nnU-Net's folder of raw datasets (nnUNet_raw).
        dataset: Number of the dataset, 1 to 999.
        name: Name of the dataset; None takes the name of the data folder.
        train: Scans to train on; None takes the remaining scans of imagesTr.
        val: Scans to validate on.
        test: Scans to predict; None takes all scans of imagesTs.
        channels: Which images of a scan to use, such as [FLAIR,T2]: names in dataset.json, or the numbers in their
            files' names.

    Raises:
        ValueError: If a patient is in two splits, a file is broken, or a dataset of this number exists.
    """
    import re

    from datamodules.nifti import NiftiDataModule
    from datamodules.splits import SplitSettings, check_leak, patient_folds, pick, read_splits
    from mois.baselines.raw_dataset import RawExport, channel_choice, read_channel_names, write_raw
    from mois.files.folder_lock import locked

    chosen = SplitSettings(train_subjects=train, val_subjects=val, test_subjects=test)
    splits = NiftiDataModule(data, split=chosen).splits
    subjects = [*splits.train, *splits.val]
    listed = data / "splits_final.json"
    if train is not None or val is not None:
        folds = [([s.subject for s in splits.train], [s.subject for s in splits.val])] if splits.val else []
    elif listed.exists():
        folds = [(fold.train, fold.val) for fold in read_splits(listed)]
        for train_names, val_names in folds:
            both = {"train": pick(subjects, train_names, str(listed)), "val": pick(subjects, val_names, str(listed))}
            check_leak(both)
    elif len({subject.patient for subject in subjects}) > 1:
        folds = [(fold.train, fold.val) for fold in patient_folds(subjects)]
    else:
        folds = []
    if name is None:
        name = re.sub(r"^Dataset\d+_", "", re.sub(r"[^A-Za-z0-9]+", "_", data.resolve().name).strip("_")) or "mois"
    declared = read_channel_names(data)
    export = RawExport(subjects, splits.test, folds, dataset, name, channel_choice(channels, declared, data), declared)
    with locked(out):
        folder = write_raw(export, out, say)
    say(f"{len(subjects)} scans to train on, {len(splits.test)} to predict, {len(folds)} folds in {folder}")
