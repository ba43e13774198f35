"""Which scans train, validate and test: named scans, folds by patient, splits_final.json, and the leak check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mois.errors import DataError
from mois.files.atomic import one_form
from mois.files.text import read_json
from mois.scans.datasets import SubjectFiles


@dataclass(frozen=True)
class SplitSettings:
    """Which scans train, validate and test.

    `train_subjects` or `fold` names the scans to train on. Without them, all of imagesTr train that do nothing else.

    Attributes:
        fold: Fold of splits_final.json; without that file, one of five folds of patients.
        file: Path of splits_final.json, if it does not lie in the dataset's folder.
        train_subjects: Names of the scans to train on.
        val_subjects: Names of the scans to validate on.
        test_subjects: Names of the scans to test and predict on; None takes all scans of imagesTs.
        val_slab: Share of the slices of every training scan that do not train but validate; 0 for none.
    """

    fold: int | None = None
    file: Path | None = None
    train_subjects: list[str] | None = None
    val_subjects: list[str] | None = None
    test_subjects: list[str] | None = None
    val_slab: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        key = "data.init_args.split"
        if not 0 <= self.val_slab < 1:
            raise ValueError(f"{key}.val_slab={self.val_slab} is a share of the slices; choose 0 to below 1.")
        if self.val_slab and (self.fold is not None or self.val_subjects):
            raise ValueError(f"{key}.val_slab validates on training scans; leave out fold and val_subjects.")
        if self.fold is not None and (self.train_subjects or self.val_subjects):
            raise ValueError(f"{key}.fold says who trains; leave out train_subjects and val_subjects.")


class Splits(NamedTuple):
    """The scans of each split. No patient is in two splits."""

    train: list[SubjectFiles]
    val: list[SubjectFiles]
    test: list[SubjectFiles]


class Fold(NamedTuple):
    """Names of the scans that train, and names of the scans that validate."""

    train: list[str]
    val: list[str]


def patient_folds(subjects: Sequence[SubjectFiles], folds: int = 5, seed: int = 0) -> list[Fold]:
    """Deal patients, with all of their scans, into folds. Each patient validates once.

    Args:
        subjects: The scans to split.
        folds: Number of folds, at most the number of patients.
        seed: Seed of the shuffling of patients.

    Raises:
        DataError: If there are fewer than two patients.
    """
    patients = sorted({subject.patient for subject in subjects})
    if len(patients) < 2:
        raise DataError(
            f"{len(patients)} patient cannot be split into folds; set data.init_args.split.val_slab to validate on "
            "slices that are kept from training."
        )
    if folds < 2:
        raise DataError(f"folds={folds}: a fold needs something to train on; choose 2 or more.")
    order = np.random.default_rng(seed).permutation(len(patients))
    fold_of = {patients[at]: number % min(folds, len(patients)) for number, at in enumerate(order)}
    return [
        Fold(
            [subject.subject for subject in subjects if fold_of[subject.patient] != fold],
            [subject.subject for subject in subjects if fold_of[subject.patient] == fold],
        )
        for fold in range(min(folds, len(patients)))
    ]


def read_splits(path: Path) -> list[Fold]:
    """Read nnU-Net's splits_final.json.

    Raises:
        DataError: If the file holds no list of {"train": [...], "val": [...]}.
    """
    example = '[{"train": ["p1"], "val": ["p2"]}], as nnU-Net writes it'
    content = read_json(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: must be a list of folds: {example}.")
    folds = []
    for number, fold in enumerate(content):
        parts: list[Any] = [fold.get(key) if isinstance(fold, dict) else None for key in Fold._fields]
        if not all(isinstance(part, list) and all(isinstance(name, str) for name in part) for part in parts):
            raise DataError(f"{path}: fold {number} has no lists of names called train and val; write {example}.")
        folds.append(Fold(*parts))
    return folds


def pick(subjects: Sequence[SubjectFiles], names: Sequence[str], key: str) -> list[SubjectFiles]:
    """Return the scans of these names, in their order.

    Args:
        subjects: All scans.
        names: Names of the wanted scans.
        key: Config key or file that the names come from, for the message.

    Raises:
        DataError: If a scan does not exist.
    """
    by_name = {one_form(subject.subject): subject for subject in subjects}
    names = [one_form(name) for name in names]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{key}: scan {twice[0]} is named twice; name it once.")
    missing = [name for name in names if name not in by_name]
    if missing:
        raise DataError(f"{key}: no scan is called {missing[0]!r}; choose from {', '.join(sorted(by_name))}.")
    return [by_name[name] for name in names]


def check_leak(splits: Mapping[str, Sequence[SubjectFiles]]) -> None:
    """Check that no patient stands in two splits.

    Args:
        splits: Name of each split and its scans.

    Raises:
        DataError: If a patient does; it names the patient and both splits.
    """
    split_of: dict[str, tuple[str, str]] = {}
    for split, subjects in splits.items():
        for subject in subjects:
            other, name = split_of.setdefault(subject.patient, (split, subject.subject))
            if other != split and name == subject.subject:
                raise DataError(f"scan {name} is named in {other} and in {split}; leave it in one of them.")
            if other != split:
                raise DataError(
                    f"patient {subject.patient} stands in {other} ({name}) and in {split} ({subject.subject}); move "
                    "all scans of a patient into one split, or correct subjects.csv."
                )


def folds_of(subjects: Sequence[SubjectFiles], settings: SplitSettings, root: Path, seed: int = 0) -> list[Fold]:
    """Return all folds of a dataset, as `divide` numbers them.

    Args:
        subjects: All scans of the dataset.
        settings: File of the folds, and the scans that are left out because they test.
        root: Folder of the dataset, where splits_final.json may lie.
        seed: Seed of the folds, if there is no such file.

    Raises:
        DataError: If there is only one patient, or a named scan does not exist.
    """
    test = pick(subjects, settings.test_subjects or [], "data.init_args.split.test_subjects")
    rest = [subject for subject in subjects if not subject.held_out and subject not in test]
    return _folds(rest, settings, root, seed)


def _folds(rest: Sequence[SubjectFiles], settings: SplitSettings, root: Path, seed: int) -> list[Fold]:
    file = settings.file or root / "splits_final.json"
    return read_splits(file) if settings.file or file.exists() else patient_folds(rest, seed=seed)


def divide(subjects: Sequence[SubjectFiles], settings: SplitSettings, root: Path, seed: int = 0) -> Splits:
    """Return the scans of each split.

    Args:
        subjects: All scans of the dataset.
        settings: Which of them train, validate and test.
        root: Folder of the dataset, where splits_final.json may lie.
        seed: Seed of the folds, if there is no such file.

    Raises:
        DataError: If a scan or a fold does not exist, or a patient stands in two splits.
    """
    key = "data.init_args.split"
    test = (
        [subject for subject in subjects if subject.held_out]
        if settings.test_subjects is None
        else pick(subjects, settings.test_subjects, f"{key}.test_subjects")
    )
    val = pick(subjects, settings.val_subjects or [], f"{key}.val_subjects")
    rest = [subject for subject in subjects if not subject.held_out and subject not in test and subject not in val]
    if settings.fold is not None:
        file = settings.file or root / "splits_final.json"
        folds = _folds(rest, settings, root, seed)
        if not 0 <= settings.fold < len(folds):
            raise DataError(f"{key}.fold={settings.fold}: there are {len(folds)} folds; choose 0 to {len(folds) - 1}.")
        fold = folds[settings.fold]
        splits = Splits(pick(subjects, fold.train, str(file)), pick(subjects, fold.val, str(file)), test)
    elif settings.train_subjects is not None:
        splits = Splits(pick(subjects, settings.train_subjects, f"{key}.train_subjects"), val, test)
    else:
        splits = Splits(rest, val, test)
    check_leak(splits._asdict())
    return splits
