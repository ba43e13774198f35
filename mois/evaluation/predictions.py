"""Any other system's predictions, scored by the code that scores ours."""

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
"""A map (I, J, K) on the scan's own grid, or one for each class."""


def score_predictions(
    volume: Volume,
    prediction: Prediction,
    settings: ProtocolSettings,
    prompted_masks: Prediction | None = None,
    *,
    kind: Literal["semantic", "instance"] = "semantic",
    slice_axis: SliceAxis = "auto",
) -> SubjectReport:
    """Score what another system found in a scan, on the lesions that ours is scored on with the same settings.

    Args:
        volume: The scan with its true lesions.
        prediction: Whole numbers (`mois.scans.labels.whole_numbers`). `semantic`: classes that the dataset declares,
            whose lesions are the 26-connected components; `instance`: lesions by id, of whatever class unless there is
            a map for each. In a semantic map that is of one class, anything above 0 is it.
        settings: Those of the run to compare with; its reader's choice is taken out of `unprompted`.
        prompted_masks: Prompted lesions of another run with their true ids, as `prompted/*.nii.gz` holds them: they are
            merged into the answer. None scores the system alone.
        kind: What the numbers in the prediction mean.
        slice_axis: Direction across the slices, as in `InferenceSettings`.

    Raises:
        ValueError: If a map is not on the scan's grid, holds anything but whole numbers, or a class that the dataset
            does not declare; or shows prompted lesions that the settings would not prompt or the scan does not have.
    """
    grid = SliceGrid.of(volume.shape, volume.affine, slice_axis)
    settings.scored((), volume.declared)  # refused before anything is read
    plan = ScanPlan.of(volume, grid, settings)
    found = _Maps(volume, grid, prediction, "the prediction")
    if kind == "semantic" and volume.declared and 0 in found.maps:
        check_declared(found.maps[0], volume.declared, f"{volume.subject}: the prediction")
    given = None if prompted_masks is None else _Maps(volume, grid, prompted_masks, "the map of prompted masks")
    if given is not None:
        given.check_ids(plan.lesions.ids)
    reports = []
    for target_class in plan.scored:
        class_plan = plan.classes[target_class]
        order = class_plan.order[: settings.prompted]
        tracked = None if given is None else _in_order(volume, given.of(target_class), order, class_plan)
        result = ClassResult(order, found.lesions(target_class, kind), tracked)
        reports.append(_report(target_class, plan, result, settings))
    false = len(Overlap.of(found.everything(kind), plan.lesions.index).apart())
    return SubjectReport(volume.subject, volume.patient, tuple(reports), false, {})


def _report(target_class: int, plan: ScanPlan, result: ClassResult, settings: ProtocolSettings) -> ClassReport:
    class_plan = plan.classes[target_class]
    never = Overlap.of(result.found, plan.lesions.only(class_plan.never), plan.taken_out)
    dice = measured(never.dice())
    words = Figures.of_words(dice, None, None, dice)
    figures, rows, false_ml, _ = score_answer(plan.lesions, class_plan, result, settings, words)
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


class _Maps:
    """Maps of a scan as stacks (S, H, W) int32, one for all classes or one for each."""

    def __init__(self, volume: Volume, grid: SliceGrid, given: Prediction, name: str) -> None:
        self.name = f"{volume.subject}: {name}"
        self.shared = not isinstance(given, Mapping)
        maps = {c: array_of(one) for c, one in (given.items() if isinstance(given, Mapping) else [(0, given)])}
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

    def check_ids(self, known: npt.NDArray[np.int32]) -> None:
        """Refuse lesions that the scan does not have."""
        for one in self.maps.values():
            strange = np.setdiff1d(one, [0, *known])
            if len(strange):
                raise DataError(
                    f"{self.name}: holds lesion {strange[0]}, which the scan does not have; give masks that were "
                    "written for the same labels (instances true or false as then)."
                )

    def of(self, target_class: int) -> InstanceMap:
        """Return the map that holds a class."""
        return self.maps.get(0 if self.shared else target_class, self.empty)

    def lesions(self, target_class: int, kind: str) -> InstanceMap:
        """Return the lesions found for a class."""
        held = self.of(target_class)
        if kind == "instance":
            return held
        return components(held == target_class if self.shared else held > 0)

    def everything(self, kind: str) -> InstanceMap:
        """Return all lesions found, whatever their class."""
        if kind == "instance" and self.shared:
            return self.maps[0]
        return components(np.logical_or.reduce([self.empty > 0, *(one > 0 for one in self.maps.values())]))


def _in_order(volume: Volume, prompted: InstanceMap, order: tuple[int, ...], plan: ClassPlan) -> InstanceMap:
    """Return prompted lesions with the n-th of the order as n + 1, those of other classes left out."""
    others = set(np.unique(prompted).tolist()) & set(plan.lesions) - set(order)
    if others:
        raise ValueError(
            f"{volume.subject}: the prompted masks hold lesions {sorted(others)[:5]}, which the reader would not "
            "prompt; give the protocol (prompted, reader) of the run that they come from."
        )
    return renumber(prompted, {lesion: place for place, lesion in enumerate(order, start=1)})
