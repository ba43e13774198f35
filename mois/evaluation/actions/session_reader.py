"""A simulated reader at work in a session: each action, and the state of the session after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from mois.evaluation.reader import Reader
from mois.evaluation.true_lesions import ScanPlan
from mois.lesions import Mask
from mois.session.advice import Suggestion, inner_voxel, suggestions
from mois.session.masks import BoxMask
from mois.session.points import stack_point
from mois.session.prompts.refusals import NothingLeft
from mois.session.state import State
from mois.session.workbench import Workbench

SessionStrategy = Literal["random", "suggested", "corrects"]
SESSION_STRATEGIES: tuple[SessionStrategy, ...] = ("random", "suggested", "corrects")
VERDICTS_BETWEEN_PROPAGATIONS = 3
"""Number of found lesions that the reader `corrects` judges before all lesions are found again."""
ACCEPTED_IOU = 0.5
"""IoU with a true lesion from which a reader accepts a found lesion as well drawn."""

Place = tuple[int, int, int]
"""Slice, row and column in the scan's stack."""


@dataclass(frozen=True)
class Progress:
    """What a reader has done so far.

    Attributes:
        state: State of the session.
        actions: Number of actions: clicks, acceptances and rejections.
        lesions: Ids of the true lesions that were clicked or accepted, in order.
        accepted: Number of accepted lesions.
        rejected: Number of rejected lesions.
        verdicts: Number of acceptances and rejections since the latest propagation.
    """

    state: State = field(default_factory=State)
    actions: int = 0
    lesions: tuple[int, ...] = ()
    accepted: int = 0
    rejected: int = 0
    verdicts: int = 0


class SessionReader:
    """A reader who looks for the lesions of one class in a session, and knows the truth.

    - A never-prompted lesion, of any class, is never clicked, accepted or rejected. A found lesion or a suggestion that
      touches one is passed over, and costs no action.
    - A lesion is clicked once. A place that a clicked or accepted lesion covers already is not clicked.
    - Every strategy begins with the same random lesion, and takes the next random lesion if it has nothing else to do.

    Args:
        bench: The scan and the model.
        plan: Which lesions may be prompted.
        target_class: Class that the reader looks for.
        reader: Seed, precision of the clicks, and share of overlooked lesions.
    """

    def __init__(self, bench: Workbench, plan: ScanPlan, target_class: int, reader: Reader) -> None:
        lesions = plan.lesions
        self._bench, self._true, self._reader = bench, lesions, reader
        self._promptable = frozenset(plan.classes[target_class].promptable)
        self._never: Mask = lesions.only([lesion for each in plan.classes.values() for lesion in each.never]) > 0
        volumes_ml = {lesion: lesions.volumes_ml[lesion] for lesion in sorted(self._promptable)}
        self._random_order = replace(reader, strategy="random").choose_lesions(volumes_ml, len(volumes_ml))

    def work(self, strategy: SessionStrategy) -> Iterator[Progress]:
        """Yield the progress at the start, and after each step until nothing is left to do. Most steps are one action.

        Args:
            strategy: `random` clicks one random lesion after the other. `suggested` goes where the session suggests:
                it accepts a lesion that is well drawn, clicks any other lesion, and rejects what is no lesion.
                `corrects` goes through the list of found lesions, and accepts or rejects them.
        """
        look: dict[SessionStrategy, Callable[[Progress], Progress | None]] = {
            "random": self._click_random,
            "suggested": self._follow_suggestion,
            "corrects": self._judge_list,
        }
        following: Progress | None = Progress()
        while following is not None:
            progress = following
            yield progress
            following = look[strategy](progress) if progress.lesions else None
            following = following if following is not None else self._click_random(progress)

    def _click_random(self, progress: Progress) -> Progress | None:
        """Click the middle of the next random lesion; None if none is left."""
        for lesion in self._random_order:
            if lesion not in progress.lesions:
                middle = inner_voxel(self._on_its_slice(lesion))
                if (clicked := self._click(progress, middle, lesion)) is not None:
                    return clicked
        return None

    def _on_its_slice(self, lesion: int) -> BoxMask:
        """Return a true lesion on the slice on which the reader clicks it."""
        index = self._true.clicked_slice(lesion, self._reader)
        on_slice = np.zeros(self._true.index.shape, dtype=bool)
        on_slice[index] = self._true.only([lesion])[index] > 0
        return BoxMask.of(on_slice)

    def _click(self, progress: Progress, place: Place, lesion: int) -> Progress | None:
        """Click a lesion at a place; None if the place, or all that the click shows, is of lesions that are judged."""
        index = self._aimed_at(place, progress.actions)
        spot = BoxMask((int(index[0]), round(float(index[1])), round(float(index[2]))), np.ones((1, 1, 1), dtype=bool))
        if any(mask.overlap(spot) for mask in progress.state.owned()):
            return None
        point = self._bench.grid.to_lps_mm(index[None])[0].tolist()
        try:
            state, _ = self._bench.apply("click", progress.state, {"point_lps_mm": point})
        except NothingLeft:  # no voxel of the click's mask is free: a reader would see it, and go on
            return None
        return replace(
            progress, state=state, actions=progress.actions + 1, lesions=(*progress.lesions, lesion), verdicts=0
        )

    def _aimed_at(self, place: Place, action: int) -> torch.Tensor:
        """Return where a click falls that aims at a place: slice, row and column, (3,) float64."""
        grid = self._bench.grid
        index = torch.tensor(place, dtype=torch.float64)
        if self._reader.noise_mm:
            rng = np.random.default_rng([self._reader.seed, 4, action])
            off = rng.normal(0, self._reader.noise_mm, 2) / (grid.row_mm, grid.column_mm)
            last = torch.tensor(grid.stack_shape[1:], dtype=torch.float64) - 1
            index[1:] = torch.minimum((index[1:] + torch.from_numpy(off)).round().clamp(min=0), last)
        return index

    def _follow_suggestion(self, progress: Progress) -> Progress | None:
        """Do what the session suggests: accept, click or reject the lesion there; None without a place."""
        bench = self._bench
        state, _ = bench.apply("propagate", progress.state, {})
        looked = replace(progress, state=state)
        for suggestion in suggestions(state, bench.grid, bench.voxel_ml, len(state.lesions) + len(state.unsure)):
            done = self._look_at(looked, suggestion)
            if done is not None:
                return done
        return None

    def _look_at(self, progress: Progress, suggestion: Suggestion) -> Progress | None:
        """Return the progress after what the reader does at a suggested place; None if it is passed over."""
        place = stack_point(self._bench.grid, suggestion.point_lps_mm).voxel
        if suggestion.lesion is None:
            shown = BoxMask(place, np.ones((1, 1, 1), dtype=bool))
        else:
            shown = progress.state.lesions[suggestion.lesion].mask
            judged = self._judge_found(progress, suggestion.lesion)
            if judged is not None:
                return judged
        if self._touches_never(shown):
            return None
        here = int(self._true.index[place])
        lesion = int(self._true.ids[here - 1]) if here else 0
        if lesion in self._promptable:
            return None if lesion in progress.lesions else self._click(progress, place, lesion)
        return self._click_and_reject(progress, place) if suggestion.lesion is None and not lesion else None

    def _click_and_reject(self, progress: Progress, place: Place) -> Progress | None:
        """Show the session that a place is no lesion: two actions; None if the click would take a true lesion along."""
        clicked = self._click(progress, place, 0)
        if clicked is None:
            return None
        before = progress.state.lesions  # the click may have fallen on a found lesion, which keeps its id
        number = next(
            n for n, each in clicked.state.lesions.items() if each.owns and not (n in before and before[n].owns)
        )
        mask = clicked.state.lesions[number].mask
        if not self._is_false(mask):
            return None
        return self._judge(replace(clicked, lesions=progress.lesions), number, "reject")

    def _judge_list(self, progress: Progress) -> Progress | None:
        """Judge the next lesion of the list; None if the list holds nothing to judge, even after a propagation."""
        judged = self._judge_next(progress) if 0 < progress.verdicts < VERDICTS_BETWEEN_PROPAGATIONS else None
        if judged is None:
            state, _ = self._bench.apply("propagate", progress.state, {})
            judged = self._judge_next(replace(progress, state=state, verdicts=0))
        return judged

    def _judge_next(self, progress: Progress) -> Progress | None:
        """Accept or reject the first lesion of the list that the reader is sure about; None if there is none."""
        for number, found in sorted(progress.state.lesions.items()):
            judged = None if found.owns else self._judge_found(progress, number)
            if judged is not None:
                return judged
        return None

    def _judge_found(self, progress: Progress, number: int) -> Progress | None:
        """Reject a found lesion that is none, or accept it if it is well drawn; None if the reader does neither."""
        mask = progress.state.lesions[number].mask
        if self._is_false(mask):
            return self._judge(progress, number, "reject")
        touched = {lesion: n for lesion, n in self._touched(mask).items() if lesion in self._promptable}
        if not touched or self._touches_never(mask):
            return None
        lesion = max(touched, key=lambda one: touched[one])
        true_voxels = int(self._true.slice_voxels[:, np.searchsorted(self._true.ids, lesion)].sum())
        iou = touched[lesion] / (mask.voxels + true_voxels - touched[lesion])
        if lesion in progress.lesions or iou < ACCEPTED_IOU:
            return None
        return replace(self._judge(progress, number, "accept"), lesions=(*progress.lesions, lesion))

    def _judge(self, progress: Progress, number: int, verdict: Literal["accept", "reject"]) -> Progress:
        """Accept or reject a lesion of the session."""
        state, _ = self._bench.apply(verdict, progress.state, {"lesion": number})
        return replace(
            progress,
            state=state,
            actions=progress.actions + 1,
            accepted=progress.accepted + (verdict == "accept"),
            rejected=progress.rejected + (verdict == "reject"),
            verdicts=progress.verdicts + 1,
        )

    def largest_false(self, state: State) -> int | None:
        """Return the id of the largest found lesion that the reader would reject; None if there is none."""
        false = [n for n, lesion in state.lesions.items() if not lesion.owns and self._is_false(lesion.mask)]
        return max(false, key=lambda number: state.lesions[number].mask.voxels, default=None)

    def _is_false(self, mask: BoxMask) -> bool:
        """Return whether a mask touches no promptable lesion of the class, and no never-prompted lesion at all."""
        return not self._touches_never(mask) and self._promptable.isdisjoint(self._touched(mask))

    def _touches_never(self, mask: BoxMask) -> bool:
        return bool(self._never[mask.region][mask.inside].any())

    def _touched(self, mask: BoxMask) -> dict[int, int]:
        """Return the true lesions that a mask touches, each with the number of shared voxels."""
        positions, counts = np.unique(self._true.index[mask.region][mask.inside], return_counts=True)
        return {
            int(self._true.ids[position - 1]): int(count)
            for position, count in zip(positions, counts, strict=True)
            if position
        }
