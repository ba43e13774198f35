"""Scores the predictions of another system with the code that scores our model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.errors import DataError
from mois.evaluation.figures import ClassReport, Figures, SubjectReport, measured
from mois.evaluation.scoring import ClassResult, curve_point, score_answer, score_by_paper
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.true_lesions import ClassPlan, ScanPlan
from mois.geometry import SliceAxis, SliceGrid
from mois.lesions import InstanceMap, components, renumber
from mois.metrics.overlap import Overlap
from mois.records import Volume
from mois.scans.labels import array_of, check_declared, whole_numbers

Prediction = Tensor | npt.NDArray[Any] | Mapping[int, Tensor | npt.NDArray[Any]]
"""A map (I, J, K) on the grid of the scan, or a map for each class."""


def score_predictions(
    volume: Volume,
    prediction: Prediction,
    settings: ProtocolSettings,
    prompted_masks: Prediction | None = None,
    *,
    kind: Literal["semantic", "instance"] = "semantic",
    slice_axis: SliceAxis = "auto",
) -> SubjectReport:
    """Score the lesions that another system found, on the same lesions that our model is scored on.

    Args:
        volume: The scan with its true lesions.
        prediction: Whole numbers (`mois.scans.labels.whole_numbers`).
            `semantic`: classes that the dataset declares. Their 26-connected components are the lesions. In a map for
            one class, every value above 0 is that class.
            `instance`: ids of lesions, of any class unless there is a map for each class.
        settings: The settings of the evaluation to compare with. The lesions that its reader prompts are taken out of
            `unprompted`.
        prompted_masks: Prompted lesions of another evaluation with their true ids, as in `prompted/*.nii.gz`. They are
            merged into the result. None scores the system alone.
        kind: What the numbers in the prediction mean.
        slice_axis: Direction across the slices, as in `InferenceSettings`.

    Raises:
        ValueError: If a map is not on the grid of the scan, or holds a value that is no whole number or no declared
            class. Also if the prompted masks hold lesions that the scan lacks, or that the settings do not prompt.
    """
    grid = SliceGrid.of(volume.shape, volume.affine, slice_axis)
    settings.scored((), volume.declared)  # refused before anything is read
    plan = ScanPlan.of(volume, grid, settings)
    found = _PredictedMaps(volume, grid, prediction, "the prediction")
    if kind == "semantic" and volume.declared and 0 in found.maps:
        check_declared(found.maps[0], volume.declared, f"{volume.subject}: the prediction")
    prompted = (
        None if prompted_masks is None else _PredictedMaps(volume, grid, prompted_masks, "the map of prompted masks")
    )
    if prompted is not None:
        prompted.check_ids(plan.lesions.ids)
    reports = []
    for target_class in plan.scored:
        class_plan = plan.classes[target_class]
        order = class_plan.order[: settings.prompted]
        tracked = None if prompted is None else _in_order(volume, prompted.of_class(target_class), order, class_plan)
        result = ClassResult(order, found.lesions(target_class, kind), tracked)
        reports.append(_report(target_class, plan, result, settings))
    false = len(Overlap.of(found.all_lesions(kind), plan.lesions.index).apart())
    return SubjectReport(volume.subject, volume.patient, tuple(reports), false, {})


def _report(target_class: int, plan: ScanPlan, result: ClassResult, settings: ProtocolSettings) -> ClassReport:
    class_plan = plan.classes[target_class]
    never = Overlap.of(result.found, plan.lesions.only(class_plan.never), plan.taken_out)
    dice = measured(never.dice())
    exemplar_figures = Figures.of_exemplar_dice(dice, None, None, dice)
    figures, rows, false_ml, _ = score_answer(plan.lesions, class_plan, result, settings, exemplar_figures)
    curve = tuple(
        curve_point(clicks, count, min(count, len(class_plan.order)), never, None, None)
        for clicks in settings.every_clicks
        for count in settings.counts
    )
    paper = None
    if settings.rules == "paper":
        tracked = np.zeros_like(result.found) if result.tracked is None else result.tracked
        true = plan.lesions.only(class_plan.lesions) > 0
        paper = score_by_paper(true, result.found > 0, tracked > 0, plan.lesions.voxel_ml)
    return ClassReport(target_class, figures, curve, rows, false_ml, paper)


class _PredictedMaps:
    """Maps of a scan as stacks (S, H, W) int32: one for all classes, or one for each class."""

    def __init__(self, volume: Volume, grid: SliceGrid, prediction: Prediction, name: str) -> None:
        self.name = f"{volume.subject}: {name}"
        self.shared = not isinstance(prediction, Mapping)
        maps = {
            c: array_of(one)
            for c, one in (prediction.items() if isinstance(prediction, Mapping) else [(0, prediction)])
        }
        strange = sorted(set(maps) - set(volume.declared)) if volume.declared and not self.shared else []
        if strange:
            raise DataError(
                f"{self.name}: there is a map of class {strange[0]}, dataset.json declares {sorted(volume.declared)}; "
                "add it to labels there, or remove the map."
            )
        for one in maps.values():
            if one.shape != volume.image.shape:
                raise ValueError(
                    f"{self.name} has shape {tuple(one.shape)}, the scan {tuple(volume.image.shape)}; write it on the "
                    "scan's grid."
                )
        self.maps: dict[int, InstanceMap] = {
            c: grid.to_stack(torch.from_numpy(whole_numbers(one, self.name))).numpy() for c, one in maps.items()
        }
        self.empty: InstanceMap = np.zeros(grid.stack_shape, dtype=np.int32)

    def check_ids(self, scan_ids: npt.NDArray[np.int32]) -> None:
        """Refuse lesions that the scan does not have.

        Raises:
            DataError: If a map holds a lesion id that is not in `scan_ids`.
        """
        for one in self.maps.values():
            strange = np.setdiff1d(one, [0, *scan_ids])
            if len(strange):
                raise DataError(
                    f"{self.name}: holds lesion {strange[0]}, which the scan does not have; give masks that were "
                    "written for the same labels (instances true or false as then)."
                )

    def of_class(self, target_class: int) -> InstanceMap:
        """Return the map that holds a class."""
        return self.maps.get(0 if self.shared else target_class, self.empty)

    def lesions(self, target_class: int, kind: str) -> InstanceMap:
        """Return the instance map of the lesions of a class."""
        class_map = self.of_class(target_class)
        if kind == "instance":
            return class_map
        return components(class_map == target_class if self.shared else class_map > 0)

    def all_lesions(self, kind: str) -> InstanceMap:
        """Return the instance map of the lesions of all classes."""
        if kind == "instance" and self.shared:
            return self.maps[0]
        return components(np.logical_or.reduce([self.empty > 0, *(one > 0 for one in self.maps.values())]))


def _in_order(volume: Volume, prompted: InstanceMap, order: tuple[int, ...], plan: ClassPlan) -> InstanceMap:
    """Return the prompted lesions of a class, renumbered: the n-th of the order gets id n + 1.

    Raises:
        ValueError: If the map holds a lesion of the class that is not in the order.
    """
    others = set(np.unique(prompted).tolist()) & set(plan.lesions) - set(order)
    if others:
        raise ValueError(
            f"{volume.subject}: the prompted masks hold lesions {sorted(others)[:5]}, which the reader would not "
            "prompt; give the protocol (prompted, reader) of the run that they come from."
        )
    return renumber(prompted, {lesion: number for number, lesion in enumerate(order, start=1)})
