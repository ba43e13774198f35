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
from mois.evaluation.scoring import Answer, curve_point, score_answer, score_by_paper
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.truth import Plan, Truth
from mois.geometry import SliceAxis, SliceGrid
from mois.lesions import InstanceMap, Mask, components, dilate_in_plane, renumber
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
    truth = Truth.of(volume, grid)
    most = max(settings.prompted, *settings.counts, 0)
    plans = {c: Plan.of(truth.of_class(c), settings.reader, most) for c in sorted(set(truth.classes.values()))}
    scored = settings.scored(plans, volume.declared)
    found = _Maps(volume, grid, prediction, "the prediction")
    if kind == "semantic" and volume.declared and 0 in found.maps:
        check_declared(found.maps[0], volume.declared, f"{volume.subject}: the prediction")
    given = None if prompted_masks is None else _Maps(volume, grid, prompted_masks, "the map of prompted masks")
    if given is not None:
        given.check_ids(truth.ids)
    promptable = [lesion for plan in plans.values() for lesion in plan.promptable]
    taken_out = dilate_in_plane(truth.only(promptable) > 0, settings.margin_px)
    reports = []
    for c in scored:
        lesions = found.lesions(c, kind)
        order = plans[c].order[: settings.prompted]
        answer = Answer(order, lesions, None if given is None else _places(volume, given.of(c), order, plans[c]))
        reports.append(_report(c, truth, plans[c], answer, settings, taken_out))
    false = len(Overlap.of(found.everything(kind), truth.index).apart())
    return SubjectReport(volume.subject, volume.patient, tuple(reports), false, {})


def _report(
    target_class: int, truth: Truth, plan: Plan, answer: Answer, settings: ProtocolSettings, taken_out: Mask
) -> ClassReport:
    never = Overlap.of(answer.found, truth.only(plan.never), taken_out)
    dice = measured(never.dice())
    words = Figures.of_words(dice, None, None, dice)
    figures, rows, false_ml, _ = score_answer(truth, plan, answer, settings, words)
    curve = tuple(
        curve_point(clicks, count, min(count, len(plan.order)), never, None, None)
        for clicks in settings.every_clicks
        for count in settings.counts
    )
    paper = None
    if settings.rules == "paper":
        tracked = np.zeros_like(answer.found) if answer.tracked is None else answer.tracked
        paper = score_by_paper(truth.only(plan.lesions) > 0, answer.found > 0, tracked > 0, truth.voxel_ml)
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


def _places(volume: Volume, prompted: InstanceMap, order: tuple[int, ...], plan: Plan) -> InstanceMap:
    """Return prompted lesions with the n-th of the order as n + 1, those of other classes left out."""
    others = set(np.unique(prompted).tolist()) & set(plan.lesions) - set(order)
    if others:
        raise ValueError(
            f"{volume.subject}: the prompted masks hold lesions {sorted(others)[:5]}, which the reader would not "
            "prompt; give the protocol (prompted, reader) of the run that they come from."
        )
    return renumber(prompted, {lesion: place for place, lesion in enumerate(order, start=1)})
