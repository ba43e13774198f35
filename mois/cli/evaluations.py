"""What `mois evaluate` evaluates: a bundle or another system's maps, and which scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datamodules.nifti import SPLIT_KEYS, NiftiDataModule, trained_subjects
from datamodules.splits import pick
from mois.arguments import as_options
from mois.bundle import Bundle
from mois.evaluation.run import Evaluation
from mois.evaluation.scorers import map_files, read_maps, score_by_model, score_maps
from mois.evaluation.settings import ProtocolSettings
from mois.execution import settled
from mois.io import DataError, SubjectFiles, read_dataset
from mois.provenance import code_version, package_versions

Scans = Sequence[SubjectFiles]


class Common(NamedTuple):
    """What both ways of evaluating have in common."""

    protocol: ProtocolSettings
    channel: int
    instances: bool
    robustness: bool
    seed: int
    title: str


def of_bundle(base: Common, bundle: Bundle, trained_on: list[str]) -> Evaluation:
    """Return how to score a model by itself."""
    segmenter = bundle.segmenter()
    identity = bundle.identity.as_dict()
    precision = settled(segmenter.device, bundle.inference.precision)  # `auto` differs by device
    inference = {**asdict(bundle.inference), "precision": precision}
    provenance = {
        "code": code_version(),
        "bundle": str(bundle.path),
        "backbone": identity["backbone"],
        "trainable_fraction": bundle.provenance.get("trainable_fraction"),
        "seed": base.seed,
        "device": str(segmenter.device),
        "trained_on": trained_on,
        "packages": package_versions(),
        "model": identity,
        "inference": inference,
        "training": bundle.provenance,
    }
    decides = {"code": code_version(), "model": identity, "inference": inference}
    return Evaluation(
        score_by_model(segmenter), identity=decides, provenance=provenance, calibration=bundle.calibration,
        **base._asdict(),
    )  # fmt: skip


def of_maps(
    base: Common, predictions: Path, prompted: Path | None, kind: Literal["semantic", "instance"], scans: Scans
) -> Evaluation:
    """Return how to score the maps of another system, all of which must be there."""
    for folder in (predictions, prompted):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{folder}: there is no such folder; give one with a map SUBJECT.nii.gz for each scan.")
    for scan in scans:
        if not map_files(predictions, scan.subject):
            read_maps(predictions, scan.read(base.channel))  # says what is missing
    decides = {"predictions": str(predictions), "prompted_masks": str(prompted or ""), "kind": kind}
    decides["code"] = code_version()
    provenance = {"seed": base.seed, **decides, "packages": package_versions()}
    return Evaluation(
        score_maps(predictions, prompted, kind),
        identity=decides,
        provenance=provenance,
        more_files=lambda subject: [
            file for folder in (predictions, prompted) if folder is not None for file in map_files(folder, subject)
        ],
        **base._asdict(),
    )


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
