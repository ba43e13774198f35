"""Which scans of a dataset a command takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.nifti import SPLIT_KEYS, NiftiDataModule, trained_subjects
from datamodules.splits import pick
from mois.cli.arguments import as_options
from mois.errors import DataError
from mois.evaluation.sources import Scans
from mois.scans.datasets import read_dataset


def choose_scans(
    data: Path,
    split: str,
    subjects: list[str] | None,
    fold: int | None,
    provenance: Mapping[str, Any],
    channel: int = 0,
    target_class: int | None = None,
) -> tuple[Scans, list[str]]:
    """Return the scans to score, and which of them the bundle was trained on, as far as it says.

    Raises:
        ValueError: If there are none, one lacks the image of this channel, or the class is not declared.
    """
    given = ((provenance.get("config") or {}).get("data") or {}).get("init_args") or {}
    same = bool(given.get("root")) and Path(given["root"]).resolve() == data.resolve()
    options: dict[str, Any] = {name: given[name] for name in SPLIT_KEYS if same and name in given}
    if fold is not None:
        options |= {"fold": fold, "train_subjects": None, "val_subjects": None}
    if options.get("splits"):
        options["splits"] = Path(options["splits"])
    try:
        every = read_dataset(data)
        parts = NiftiDataModule(data, **options).splits
    except DataError as error:
        raise DataError(as_options(str(error), root="--data", fold="--fold")) from error
    if subjects:
        scans = pick(every, subjects, "--subjects")
    elif split == "all":
        scans = every
    else:
        scans = list(getattr(parts, split))
    if not scans:
        raise ValueError(f"split={split}: {data} has no such scans; choose another split, give --fold or --subjects.")
    _check_scans(scans, channel, target_class)
    return scans, sorted(trained_subjects(data, given) & {scan.subject for scan in scans})


def _check_scans(scans: Scans, channel: int, target_class: int | None) -> None:
    for scan in scans:
        if channel not in scan.images:
            there = ", ".join(map(str, sorted(scan.images)))
            raise DataError(
                f"--channel={channel}: scan {scan.subject} has no such image (file *_{channel:04d}.*); it has {there}."
            )
        if target_class is not None and target_class not in scan.classes:
            there = ", ".join(f"{value} ({name})" for value, name in sorted(scan.classes.items()))
            raise DataError(f"--target_class={target_class} is not declared in dataset.json; choose one of {there}.")
