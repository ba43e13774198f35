"""`mois export_nnunet`."""

from __future__ import annotations

from pathlib import Path

from mois.cli.messages import say


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
