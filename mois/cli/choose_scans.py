"""The scans that `mois evaluate` scores: a split of the dataset, or scans by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.nifti import NiftiDataModule, split_options, trained_subjects
from datamodules.splits import SplitSettings, pick
from mois.cli.arguments import as_options
from mois.errors import DataError
from mois.evaluation.scored_systems import Scans
from mois.scans.datasets import read_dataset
from mois.sharing.old_settings import SPLIT
from mois.sharing.provenance import data_arguments


class ScanChoice(NamedTuple):
    """Which scans of a dataset a command takes.

    Attributes:
        split: `train`, `val`, `test` or `all`.
        subjects: Names of scans, instead of a split.
        fold: Fold that `train` and `val` belong to; None takes the split of the model's training.
        channel: The image that every scan must have, if no channels are named.
        channels: Names of the channels that every scan must have.
        target_class: The class that the dataset must declare; None for any.
    """

    split: str
    subjects: list[str] | None = None
    fold: int | None = None
    channel: int = 0
    target_class: int | None = None
    channels: tuple[str, ...] = ()


def choose_scans(data: Path, choice: ScanChoice, provenance: Mapping[str, Any]) -> tuple[Scans, list[str]]:
    """Return the chosen scans, and the names of those that the model was trained on.

    Args:
        data: Dataset in nnU-Net's raw layout.
        choice: Which scans to take.
        provenance: Record of the model's training; empty for no model.

    Raises:
        ValueError: If no scan is chosen, a scan lacks the image of this channel, or the class is not declared.
    """
    given = SPLIT.with_group(data_arguments(provenance))
    same = bool(given.get("root")) and Path(given["root"]).resolve() == data.resolve()
    options = split_options(given) if same else {}
    if choice.fold is not None:
        of_training = options.get("split", SplitSettings())
        options["split"] = replace(of_training, fold=choice.fold, train_subjects=None, val_subjects=None)
    try:
        every = read_dataset(data)
        parts = NiftiDataModule(data, **options).splits
    except DataError as error:
        raise DataError(as_options(str(error), root="--data", fold="--fold")) from error
    if choice.subjects:
        scans = pick(every, choice.subjects, "--subjects")
    elif choice.split == "all":
        scans = every
    else:
        scans = list(getattr(parts, choice.split))
    if not scans:
        raise ValueError(
            f"split={choice.split}: {data} has no such scans; choose another split, give --fold or --subjects."
        )
    _check_scans(scans, choice)
    return scans, sorted(trained_subjects(data, given) & {scan.subject for scan in scans})


def _check_scans(scans: Scans, choice: ScanChoice) -> None:
    channel, target_class = choice.channel, choice.target_class
    for scan in scans:
        if choice.channels:
            scan.numbers(0, choice.channels)
        elif channel not in scan.images:
            there = ", ".join(map(str, sorted(scan.images)))
            raise DataError(
                f"--channel={channel}: scan {scan.subject} has no such image (file *_{channel:04d}.*); it has {there}."
            )
        if target_class is not None and target_class not in scan.classes:
            there = ", ".join(f"{value} ({name})" for value, name in sorted(scan.classes.items()))
            raise DataError(
                f"--protocol.target_class={target_class} is not declared in dataset.json; choose one of {there}."
            )
