"""Whole scans in a training: scores of validation and test, predictions, mean figures over all ranks, warnings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer

from mois.evaluation.figures import SubjectReport
from mois.evaluation.protocol import evaluate_volume
from mois.evaluation.result_files import add_confidence, write_result_files
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.statistics import means
from mois.files.atomic import write_text
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.shared_work import SharedWork
from mois.records import Volume
from mois.report.evaluation_page import write_report
from mois.scans.image_files import write_volume
from mois.sharing.calibration import Calibration
from mois.sharing.remarks import clicks_spoilt, exemplars_harm, made_worse

_NEVER_BEST = ", so that this checkpoint does not become best.ckpt"

HARM_ON_TRAINED_SCANS = (
    "the exemplars do harm on these slices. Other slices of the same scans trained, so the model knows these scans "
    "without exemplars; test on another scan"
)
"""What is said of exemplars where slices of the scans that train validate."""


def score_scan(
    segmenters: Mapping[str, VolumeSegmenter], volume: Volume, protocol: ProtocolSettings, out: Path | None
) -> dict[str, SubjectReport]:
    """Score a scan with each propagation; the propagations share features and prompted masks.

    Args:
        segmenters: Segmenters by the prefix of their propagation's figures; the first prefix is "".
        volume: The scan with its annotated lesions.
        protocol: How the scan is prompted and scored.
        out: Folder for predictions and pictures; None writes nothing.

    Returns:
        A report for each prefix.
    """
    shared = SharedWork()
    return {
        prefix: evaluate_volume(segmenter, volume, protocol, None if out is None else out / prefix, shared)
        for prefix, segmenter in segmenters.items()
    }


def predict_scan(segmenter: VolumeSegmenter, volume: Volume, protocol: ProtocolSettings, out: Path) -> None:
    """Write the lesions found in a scan as `predictions/SUBJECT.nii.gz` in `out`, on the scanner's grid.

    Annotated lesions of the scan are prompted as in a test. A scan without lesions is searched without exemplars.
    """
    if bool(volume.lesions.any()):
        evaluate_volume(segmenter, volume, protocol, out)
        return
    encoded = segmenter.encode(volume)
    grid = encoded.grid
    lesions = segmenter.lesions(segmenter.find(encoded), volume.voxel_ml, grid.edges_mm)
    path = out / "predictions" / f"{volume.subject}.nii.gz"
    write_volume(grid.to_volume(torch.from_numpy(lesions)), volume.affine, path)


def gather_reports(reports: dict[str, list[SubjectReport]], world_size: int) -> dict[str, list[SubjectReport]]:
    """Return the reports of all ranks by prefix, sorted by subject. All ranks have to call this function."""
    of_ranks = [reports]
    if world_size > 1:
        of_ranks = [{} for _ in range(world_size)]
        torch.distributed.all_gather_object(of_ranks, reports)
    return {
        prefix: sorted((report for part in of_ranks for report in part[prefix]), key=lambda report: report.subject)
        for prefix in reports
    }


def mean_figures(reports: Mapping[str, Sequence[SubjectReport]]) -> dict[str, float]:
    """Return the mean of each figure over the scans, named `PREFIXfigure`. Figures without a value are left out."""
    return {
        prefix + name: value
        for prefix, of_prefix in reports.items()
        for name, value in means(of_prefix).items()
        if value is not None
    }


def with_score(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the figures of a validation with the score that decides on best.ckpt: the model's own unprompted Dice."""
    score = {"score": figures["unprompted_dice"]} if "unprompted_dice" in figures else {}
    return {**figures, **score}


def recorded_figures(validation: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the figures of the validation records in a checkpoint, named `PREFIXfigure`."""
    return {prefix + name: value for prefix, record in validation.items() for name, value in record["figures"].items()}


def figures_of(figures: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Return the figures of one propagation, without its prefix."""
    own = {name.removeprefix(prefix): value for name, value in figures.items() if name.startswith(prefix)}
    return {name: value for name, value in own.items() if "/" not in name}


def validates_on_trained_scans(trainer: Trainer) -> bool:
    """Return whether slices of the scans that train validate, as the datamodule says; others may not say it."""
    return bool(getattr(getattr(trainer, "datamodule", None), "validates_on_trained_scans", False))


def validation_warnings(
    figures: Mapping[str, float], step_0: Mapping[str, float], prefix: str, on_trained_scans: bool = False
) -> list[str]:
    """Return warnings on a propagation: it ignores its exemplars, they do harm, or figures became worse.

    Args:
        figures: Mean figures of the validation.
        step_0: Mean figures of the validation before the first step; empty if there was none.
        prefix: Prefix of the propagation's figures.
        on_trained_scans: Whether the validation is on slices of the scans that train.
    """
    warnings = []
    right, wrong = figures.get(f"{prefix}right"), figures.get(f"{prefix}wrong")
    if right is not None and wrong is not None and right > 0.1 and wrong > 0.8 * right:
        warnings.append(
            f"val/{prefix}right={right:.2f} and val/{prefix}wrong={wrong:.2f} are close: the propagation "
            "ignores its exemplars. Give the episodes more of another class (data.init_args.mix), or train on."
        )
    if harm := harm_warning("val", figures, prefix, on_trained_scans):
        warnings.append(harm)
    before, after = figures_of(step_0, prefix), figures_of(figures, prefix)
    worse = [f"val/{prefix}{sentence}" for sentence in made_worse(before, after)]
    if not prefix and clicks_spoilt(before, after):  # `made_worse` has the clicks first
        worse[0] = f"{worse[0].removesuffix('.')}{_NEVER_BEST}."
    return [*warnings, *worse]


def harm_warning(
    split: Literal["val", "test"], figures: Mapping[str, float], prefix: str, on_trained_scans: bool = False
) -> str | None:
    """Return a warning if a propagation finds less with exemplars than without; else None."""
    right, without = figures.get(f"{prefix}right"), figures.get(f"{prefix}no_exemplars")
    if not exemplars_harm(right, without):
        return None
    below = f"{split}/{prefix}right={right:.3f} is below {split}/{prefix}no_exemplars={without:.3f}"
    if on_trained_scans:
        return f"{below}: {HARM_ON_TRAINED_SCANS}."
    never_best = _NEVER_BEST if split == "val" and not prefix else ""
    return (
        f"{below}: the exemplars do harm{never_best}. Train on, or compare with the model before the training (test "
        "without --ckpt_path)."
    )


def write_test_results(
    folder: Path,
    title: str,
    reports: Sequence[SubjectReport],
    record: Mapping[str, Any],
    protocol: ProtocolSettings,
    calibration: Calibration | None,
) -> None:
    """Write metrics.json, tables and report.html of a test. A calibration adds the confidence of each candidate.

    `reports.json` holds the whole report on each scan, so that tests of several folds can be put together.
    """
    write_text(folder / "reports.json", json.dumps([report.to_json() for report in reports], allow_nan=False) + "\n")
    write_result_files(folder, reports, record, protocol=protocol)
    if calibration is not None:
        add_confidence(folder / "candidates.csv", calibration)
    write_report(folder, title)
