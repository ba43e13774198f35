"""The two kinds of systems that `mois evaluate` scores: a model that is prompted, or maps of another system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mois.errors import DataError
from mois.evaluation.evaluate_scans import Evaluation, Score
from mois.evaluation.figures import SubjectReport
from mois.evaluation.overlays import save_overlay
from mois.evaluation.predictions import score_predictions
from mois.evaluation.protocol import ScoringWork, ask_about_volume
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.true_lesions import TrueLesions
from mois.files.atomic import named, one_form
from mois.geometry import SliceGrid
from mois.inference.execution import resolve_precision
from mois.inference.segmenter import VolumeSegmenter
from mois.lesions import components
from mois.records import Volume
from mois.scans.dataset_description import FILE_ENDINGS
from mois.scans.datasets import SubjectFiles
from mois.scans.image_files import write_volume
from mois.scans.labels import check_declared, whole_numbers
from mois.scans.volumes import read_on_grid
from mois.sharing.bundle import Bundle
from mois.sharing.bundle_record import SHIPPED
from mois.sharing.calibration import Calibration
from mois.sharing.lesion_model import LesionModel
from mois.sharing.provenance import code_version, package_versions

MapKind = Literal["semantic", "instance"]
Maps = Tensor | Mapping[int, Tensor]
CURE_FOR_IDS = (
    "give --kind instance if its numbers are those of lesions; else add it to labels there, or set its voxels to 0"
)
"""End of the message about a map whose values are not classes."""


def score_by_model(segmenter: VolumeSegmenter, calibration: Calibration | None = None) -> Score:
    """Return a function that prompts a model on a scan, and leaves the scoring as work for any process.

    Args:
        segmenter: The model.
        calibration: Confidence of found lesions, for readers who follow suggestions.
    """

    def score(volume: Volume, settings: ProtocolSettings, out: Path | None) -> ScoringWork:
        return ask_about_volume(segmenter, volume, settings, out, calibration=calibration)

    return score


def score_maps(
    predictions: Path,
    prompted: Path | None,
    kind: MapKind,
    volume: Volume,
    settings: ProtocolSettings,
    out: Path | None,
) -> SubjectReport:
    """Score the maps that another system wrote for a scan.

    Args:
        predictions: Folder of the maps SUBJECT.nii.gz, or SUBJECT_class1.nii.gz and so on.
        prompted: Folder `prompted` of another evaluation; None scores the system alone.
        kind: Whether the values are classes or ids of lesions.
        volume: The scan.
        settings: How to score.
        out: Where results are written; None writes nothing.
    """
    found = read_maps(predictions, volume)
    given = None if prompted is None else read_maps(prompted, volume)
    by_class: MapKind = "instance" if isinstance(found, dict) else kind
    if by_class == "semantic" and volume.declared and isinstance(found, Tensor):
        check_declared(found.numpy(), volume.declared, map_files(predictions, volume.subject)[0], CURE_FOR_IDS)
    report = score_predictions(volume, found, settings, given, kind=by_class)
    if out is not None:
        _write_maps(volume, found, report, by_class, out)
    return report


def map_files(folder: Path, subject: str) -> list[Path]:
    """Return the map files of a scan: SUBJECT.nii.gz, or SUBJECT_class1.nii.gz and so on; [] if there are none."""
    whole = [path for ending in FILE_ENDINGS if (path := named(folder / f"{subject}{ending}")).is_file()]
    start = one_form(subject)
    return whole or sorted(
        path
        for ending in FILE_ENDINGS
        for path in folder.glob(f"*_class*{ending}")
        if _class(path) and one_form(path.name).rpartition("_class")[0] == start
    )


def read_maps(folder: Path, volume: Volume) -> Maps:
    """Return the map of a scan (I, J, K) int32, or a map for each class.

    Raises:
        DataError: If the scan has no map, or a map is not on its grid.
    """
    files = map_files(folder, volume.subject)
    if not files:
        raise DataError(
            f"{folder}: no map of scan {volume.subject}; write {volume.subject}.nii.gz (or one file "
            f"{volume.subject}_class1.nii.gz for each class), an empty map if nothing was found."
        )
    by_name = {path.name.removesuffix(_ending(path)): path for path in files}
    if len(by_name) < len(files):
        raise DataError(
            f"{folder}: holds {' and '.join(path.name for path in files)[:200]}, several maps of one class; keep "
            "one of them."
        )
    if volume.subject in by_name:
        return _read(by_name[volume.subject], volume)
    return {_class(path): _read(path, volume) for path in files}


def _read(path: Path, volume: Volume) -> Tensor:
    values = read_on_grid(path, volume.grid, f"scan {volume.subject}")
    return torch.from_numpy(whole_numbers(values, path))


def _write_maps(volume: Volume, found: Maps, report: SubjectReport, kind: MapKind, out: Path) -> None:
    """Write the lesions of each class as one map, and a picture of them."""
    grid = SliceGrid.of(volume.shape, volume.affine)
    true_lesions = TrueLesions.of(volume, grid)
    image = grid.to_stack(volume.image.float().cpu()).numpy()
    for class_report in report.classes:
        class_map = found.get(class_report.target_class) if not isinstance(found, Tensor) else found
        class_map = torch.zeros_like(volume.lesions) if class_map is None else class_map
        lesions = grid.to_stack(class_map).numpy()
        if kind == "semantic":
            lesions = components(lesions == class_report.target_class)
        name = f"{volume.subject}_class{class_report.target_class}"
        write_volume(grid.to_volume(torch.from_numpy(lesions)), volume.affine, out / "predictions" / f"{name}.nii.gz")
        true_map = true_lesions.only([row.lesion for row in class_report.lesions])
        save_overlay(
            out / "overlays" / f"{name}.png",
            image,
            true_map,
            lesions,
            class_report,
            (grid.row_mm, grid.column_mm),
            volume.channel,
        )


def _ending(path: Path) -> str:
    return next(ending for ending in FILE_ENDINGS if path.name.endswith(ending))


def _class(path: Path) -> int:
    """Return the class in a file's name; 0 if the name holds no class."""
    number = path.name.removesuffix(_ending(path)).rpartition("_class")[2]
    return int(number) if number.isdigit() else 0


Scans = Sequence[SubjectFiles]


class EvaluationOptions(NamedTuple):
    """Options that hold for both systems; see `Evaluation`."""

    protocol: ProtocolSettings
    channel: int
    instances: bool
    robustness: bool
    seed: int
    title: str


def evaluation_of_bundle(base: EvaluationOptions, bundle: Bundle, trained_on: list[str]) -> Evaluation:
    """Return the evaluation of a bundle's model.

    Args:
        base: Options.
        bundle: The model.
        trained_on: Names of the scored scans that the model was trained on.
    """
    return _evaluation_of_model(base, bundle.model(), str(bundle.path), bundle.provenance, trained_on)


def evaluation_of_shipped(base: EvaluationOptions, model: LesionModel) -> Evaluation:
    """Return the evaluation of the model that ships with the package; no scan of a user trained it."""
    return _evaluation_of_model(base, model, SHIPPED, {}, [])


def _evaluation_of_model(
    base: EvaluationOptions, model: LesionModel, name: str, training: Mapping[str, Any], trained_on: list[str]
) -> Evaluation:
    segmenter, settings = model.segmenter, model.segmenter.settings
    identity = model.identity.as_dict()
    precision = resolve_precision(segmenter.device, settings.precision)  # `auto` differs by device
    inference = {**asdict(settings), "precision": precision}
    provenance = {
        "code": code_version(),
        "bundle": name,
        "backbone": identity["backbone"],
        "trainable_fraction": training.get("trainable_fraction"),
        "seed": base.seed,
        "device": str(segmenter.device),
        "trained_on": trained_on,
        "packages": package_versions(),
        "model": identity,
        "inference": inference,
        "training": training,
    }
    decides = {"code": code_version(), "model": identity, "inference": inference}
    return Evaluation(
        score_by_model(segmenter, model.calibration), identity=decides, provenance=provenance,
        calibration=model.calibration, channels=settings.channels, **base._asdict(),
    )  # fmt: skip


def evaluation_of_maps(
    base: EvaluationOptions,
    predictions: Path,
    prompted: Path | None,
    kind: Literal["semantic", "instance"],
    scans: Scans,
) -> Evaluation:
    """Return the evaluation of another system's maps.

    Raises:
        ValueError: If a folder or the map of a scan is missing.
    """
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
        lambda volume, settings, out: partial(score_maps, predictions, prompted, kind, volume, settings, out),
        identity=decides,
        provenance=provenance,
        more_files=lambda subject: [
            file for folder in (predictions, prompted) if folder is not None for file in map_files(folder, subject)
        ],
        **base._asdict(),
    )
