"""Any other system's predictions, scored by the code that scores ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import Tensor

from mois.components import components
from mois.evaluation.paper import score_by_paper
from mois.evaluation.reports import ClassReport, Figures, SubjectReport, measured
from mois.evaluation.scoring import Answer, curve_point, score_answer
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.truth import Plan, Truth
from mois.geometry import SliceAxis, SliceGrid
from mois.interfaces import Volume
from mois.metrics import InstanceMap, Mask, Overlap, dilate_in_plane, renumber

Prediction = Tensor | Mapping[int, Tensor]
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
        prediction: `semantic`: classes, whose lesions are the 26-connected components; `instance`: lesions by id, of
            whatever class unless there is a map for each. In a semantic map of a single class, anything above 0 is it.
        settings: Those of the run to compare with; its reader's choice is taken out of `unprompted`.
        prompted_masks: Prompted lesions of another run with their true ids, as `prompted/*.nii.gz` holds them: they are
            merged into the answer. None scores the system alone.
        kind: What the numbers in the prediction mean.
        slice_axis: Direction across the slices, as in `InferenceSettings`.

    Raises:
        ValueError: If a map is not on the scan's grid, or shows prompted lesions that the settings would not prompt.
    """
    grid = SliceGrid.of(volume.shape, volume.affine, slice_axis)
    truth = Truth.of(volume, grid)
    most = max(settings.prompted, *settings.counts, 0)
    plans = {c: Plan.of(truth.of_class(c), settings.reader, most) for c in sorted(set(truth.classes.values()))}
    scored = [c for c in plans if settings.target_class in (None, c)]
    found = _Maps(volume, grid, prediction, "the prediction has")
    given = None if prompted_masks is None else _Maps(volume, grid, prompted_masks, "the prompted masks have")
    promptable = [lesion for plan in plans.values() for lesion in plan.promptable]
    taken_out = dilate_in_plane(truth.only(promptable) > 0, settings.margin_px)
    reports = []
    for c in scored:
        lesions = found.lesions(c, kind, alone=len(plans) == 1)
        order = plans[c].order[: settings.prompted]
        answer = Answer(order, lesions, None if given is None else _places(volume, given.of(c), order, plans[c]))
        reports.append(_report(c, truth, plans[c], answer, settings, taken_out))
    anything = found.everything(kind)
    false = int((Overlap.of(anything, truth.index).shared.sum(1) == 0).sum())
    return SubjectReport(volume.subject, volume.patient, tuple(reports), false, {})


def _report(
    target_class: int, truth: Truth, plan: Plan, answer: Answer, settings: ProtocolSettings, taken_out: Mask
) -> ClassReport:
    never = Overlap.of(answer.found, truth.only(plan.never), taken_out)
    dice = measured(never.dice())
    words = Figures(right=dice, no_exemplars=dice)
    figures, rows, false_ml, _ = score_answer(truth, plan, answer, settings.margin_px, words)
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
        self.shared = isinstance(given, Tensor)
        maps = {0: given} if isinstance(given, Tensor) else dict(given)
        for one in maps.values():
            if one.shape != volume.image.shape:
                raise ValueError(
                    f"{volume.subject}: {name} shape {tuple(one.shape)}, the scan "
                    f"{tuple(volume.image.shape)}; write them on the scan's grid."
                )
        self.maps: dict[int, InstanceMap] = {
            c: grid.to_stack(m.cpu()).numpy().astype(np.int32) for c, m in maps.items()
        }
        self.empty: InstanceMap = np.zeros(grid.stack_shape, dtype=np.int32)

    def of(self, target_class: int) -> InstanceMap:
        """Return the map that holds a class."""
        return self.maps.get(0 if self.shared else target_class, self.empty)

    def lesions(self, target_class: int, kind: str, *, alone: bool) -> InstanceMap:
        """Return the lesions found for a class; `alone` where the scan has no other."""
        held = self.of(target_class)
        if kind == "instance":
            return held
        return components(held > 0 if alone or not self.shared else held == target_class)

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
