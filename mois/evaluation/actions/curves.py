"""Curves over the actions of simulated readers, each scored on the same never-prompted lesions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from mois.evaluation.actions.points import ActionPoint, NegativePoint
from mois.evaluation.actions.session_reader import SESSION_STRATEGIES, Progress, SessionReader, SessionStrategy
from mois.evaluation.figures import measured
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.true_lesions import ScanPlan
from mois.inference.segmenter import VolumeSegmenter
from mois.lesions import InstanceMap, Mask, dilate_in_plane
from mois.metrics.overlap import Overlap
from mois.records import Volume
from mois.session.found_lesions import find_lesions
from mois.session.masks import BoxMask
from mois.session.state import State
from mois.session.workbench import Workbench
from mois.sharing.calibration import Calibration
from mois.sharing.lesion_model import LesionModel


class ReadersAtWork:
    """Readers who work in sessions on one scan with one model. They share its features.

    Args:
        model: The model.
        volume: The scan.
        plan: Which lesions may be prompted, and which never are.
        settings: The reader, and the numbers of actions.
    """

    def __init__(self, model: LesionModel, volume: Volume, plan: ScanPlan, settings: ProtocolSettings) -> None:
        self._bench = Workbench(model, volume, "", {})
        self._plan, self._settings = plan, settings

    @classmethod
    def asked_for(
        cls,
        segmenter: VolumeSegmenter,
        calibration: Calibration | None,
        volume: Volume,
        plan: ScanPlan,
        settings: ProtocolSettings,
    ) -> ReadersAtWork | None:
        """Return the readers; None if the settings need no reader who works in a session."""
        if not settings.actions and settings.reader.strategy not in ("suggested", "corrects"):
            return None
        return cls(LesionModel.of(segmenter, calibration), volume, plan, settings)

    def plan(self) -> ScanPlan:
        """Return the plan. With `suggested` and `corrects`, lesions are prompted in the order in which they came up."""
        strategy = self._settings.reader.strategy
        if strategy not in ("suggested", "corrects"):
            return self._plan
        classes = {
            target_class: replace(plan, order=self._order(target_class, strategy, len(plan.order)))
            for target_class, plan in self._plan.classes.items()
        }
        return replace(self._plan, classes=classes)

    def curves(self, target_class: int) -> tuple[tuple[ActionPoint, ...], tuple[NegativePoint, ...]]:
        """Return the points over actions of a class, and what a negative exemplar changes, if they are asked for."""
        if not self._settings.actions:
            return (), ()
        return self.points(target_class), self.negatives(target_class)

    def reader(self, target_class: int) -> SessionReader:
        """Return the reader who looks for the lesions of a class."""
        return SessionReader(self._bench, self._plan, target_class, self._settings.reader)

    def _order(self, target_class: int, strategy: SessionStrategy, count: int) -> tuple[int, ...]:
        """Return the ids of the first `count` lesions that a reader clicks or accepts, in order."""
        lesions: tuple[int, ...] = ()
        for progress in self.reader(target_class).work(strategy):
            lesions = progress.lesions[:count]
            if len(lesions) == count:
                break
        return lesions

    def points(self, target_class: int) -> tuple[ActionPoint, ...]:
        """Return the points of every strategy for a class."""
        return tuple(point for strategy in SESSION_STRATEGIES for point in self._curve(target_class, strategy))

    def _curve(self, target_class: int, strategy: SessionStrategy) -> Iterator[ActionPoint]:
        """Yield a point for each number of actions. A reader with nothing left to do stays where he is."""
        scored: tuple[Progress, ActionPoint] | None = None
        for actions, progress in self._stops(target_class, strategy):
            if scored is None or scored[0] is not progress:
                scored = progress, self._point(target_class, strategy, actions, progress)
            yield replace(scored[1], actions=actions)

    def _stops(self, target_class: int, strategy: SessionStrategy) -> Iterator[tuple[int, Progress]]:
        """Yield each number of actions with the latest progress that took no more."""
        waiting = sorted(set(self._settings.actions))
        latest = Progress()
        for progress in self.reader(target_class).work(strategy):
            while waiting and waiting[0] < progress.actions:
                yield waiting.pop(0), latest
            latest = progress
            if not waiting or progress.actions >= waiting[-1]:
                break
        for actions in waiting:
            yield actions, latest

    def _point(self, target_class: int, strategy: SessionStrategy, actions: int, progress: Progress) -> ActionPoint:
        answer = self._overlap(target_class, self._answer(progress.state))
        shown = self._overlap(target_class, self._shown(progress.state))
        matches = answer.match()
        return ActionPoint(
            strategy=strategy,
            actions=actions,
            used=progress.actions,
            lesions=len(progress.lesions),
            accepted=progress.accepted,
            rejected=progress.rejected,
            right=measured(answer.dice()),
            lesion_f1=measured(matches.f1),
            lesion_precision=measured(matches.precision),
            lesion_recall=measured(matches.recall),
            false_lesions=len(matches.false),
            shown_dice=measured(shown.dice()),
            shown_f1=measured(shown.match().f1),
        )

    def negatives(self, target_class: int) -> tuple[NegativePoint, ...]:
        """Return what one negative exemplar changes, for each number of actions of the random reader.

        The negative exemplar is the largest found lesion that touches no lesion of the class and no never-prompted
        lesion. Numbers of actions at which there is none are left out.
        """
        points: dict[int, NegativePoint] = {}
        reader = self.reader(target_class)
        for actions, progress in self._stops(target_class, "random"):
            if not 0 < progress.actions == actions:
                continue
            state, _ = self._bench.apply("propagate", progress.state, {})
            false = reader.largest_false(state)
            if false is None:
                continue
            after, _ = self._bench.apply("reject", state, {"lesion": false})
            place = self._grown(state.lesions[false].mask)
            before_overlap = self._overlap(target_class, self._answer(state), place)
            after_overlap = self._overlap(target_class, self._answer(after), place)
            points[actions] = NegativePoint(
                exemplars=len(progress.lesions),
                right=measured(before_overlap.dice()),
                right_after=measured(after_overlap.dice()),
                false_lesions=len(before_overlap.match().false),
                false_after=len(after_overlap.match().false),
            )
        return tuple(points.values())

    def _answer(self, state: State) -> InstanceMap:
        """Return all lesions that a propagation finds with the exemplars of a state, (S, H, W)."""
        bench, lesions = self._bench, self._plan.lesions
        answer = bench.on_scan.answer(state)
        candidates = bench.segmenter.candidates(answer, lesions.voxel_ml, lesions.edges_mm)
        return answer.without_vetoed(candidates.sure(bench.segmenter.settings.peak_threshold).lesions)

    def _shown(self, state: State) -> InstanceMap:
        """Return the found lesions that a session shows after a propagation, (S, H, W)."""
        bench = self._bench
        found, _ = find_lesions(bench.segmenter, bench.encoded, state, bench.on_scan.answer(state), bench.voxel_ml)
        shown = np.zeros(bench.grid.stack_shape, dtype=np.int32)
        for number, (mask, _) in enumerate(found, start=1):
            mask.paint(shown, number)
        return shown

    def _overlap(self, target_class: int, found: InstanceMap, left_out: Mask | None = None) -> Overlap:
        """Compare found lesions with the never-prompted lesions of a class, as `Figures.right` does."""
        plan = self._plan
        never = plan.lesions.only(plan.classes[target_class].never)
        return Overlap.of(found, never, plan.taken_out if left_out is None else plan.taken_out | left_out)

    def _grown(self, mask: BoxMask) -> Mask:
        """Return a mask with a margin, (S, H, W) bool."""
        stack = np.zeros(self._bench.grid.stack_shape, dtype=bool)
        mask.paint(stack, True)
        return dilate_in_plane(stack, self._settings.margin_px)
