"""Figures of the lesions that a system found in a scan. The system is our model or another system."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mois.evaluation.actions.points import ActionPoint, NegativePoint
from mois.evaluation.figures import (
    CandidateRow,
    ClassReport,
    CountPoint,
    Figures,
    PaperFigures,
    TrueLesionRow,
    mean_of,
    measured,
)
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.true_lesions import ClassPlan, TrueLesions
from mois.lesions import Candidates, InstanceMap, LesionVoxels, Mask, components, dilate_in_plane
from mois.metrics.counts import VoxelCounts
from mois.metrics.overlap import Matches, Overlap, any_overlap, dice, join_tracked_and_found
from mois.metrics.surface import surface_dice_of_voxels


@dataclass(frozen=True)
class ClassResult:
    """The lesions of one class that a system found in a scan.

    Attributes:
        prompted: Ids of the prompted lesions, in order; they are taken out where the other lesions are scored.
        found: Instance map (S, H, W) of the propagated lesions.
        tracked: Instance map of the prompted lesions; the n-th has id n + 1. None if the system was not given them.
        clicks: Number of clicks.
    """

    prompted: tuple[int, ...]
    found: InstanceMap
    tracked: InstanceMap | None
    clicks: int = 0


class Question(NamedTuple):
    """A set of exemplars that is propagated: the first prompted lesions of a class, after some clicks on each.

    Attributes:
        target_class: Class of the prompted lesions; 0 without exemplars.
        exemplars: Number of prompted lesions that are used.
        clicks: Intended number of clicks on each.
    """

    target_class: int
    exemplars: int
    clicks: int

    @classmethod
    def of(cls, plan: ClassPlan, target_class: int, count: int, clicks: int) -> Question:
        """Return the question with the first `count` prompted lesions; with all of them if the class has fewer."""
        used = min(count, len(plan.order))
        return cls(target_class, used, clicks) if used else NO_EXEMPLARS


NO_EXEMPLARS = Question(0, 0, 0)


@dataclass(frozen=True)
class Propagated:
    """The results of all questions that are scored.

    Attributes:
        candidates: Candidates of each final question (`Answers.final_question`).
        never: By question and class: overlap of the found lesions with the never-prompted lesions of the class.
        false_without_exemplars: Lesions found without exemplars that touch no true lesion.
        peak_threshold: A candidate is a found lesion if a voxel of it reaches this probability.
    """

    candidates: dict[Question, Candidates]
    never: dict[tuple[Question, int], Overlap]
    false_without_exemplars: int
    peak_threshold: float


@dataclass(frozen=True)
class PromptedClass:
    """The prompted lesions of a class in the reader's final result; see `ClassResult`."""

    order: tuple[int, ...]
    tracked: InstanceMap
    clicks: int = 0


class FurtherResults(NamedTuple):
    """What else a class's report holds: figures by the paper's rules, and points over actions."""

    paper: PaperFigures | None = None
    actions: tuple[ActionPoint, ...] = ()
    negatives: tuple[NegativePoint, ...] = ()


@dataclass(frozen=True)
class Answers:
    """What a model answered on a scan, with all that is needed to score it.

    Attributes:
        lesions: The true lesions.
        classes: Plan for the lesions of each class.
        settings: How to prompt and score.
        propagated: The results of all questions.
        prompted: The prompted lesions of each class that is scored.
        further: What else the reports on these classes hold.
    """

    lesions: TrueLesions
    classes: dict[int, ClassPlan]
    settings: ProtocolSettings
    propagated: Propagated
    prompted: dict[int, PromptedClass]
    further: dict[int, FurtherResults]

    def question(self, target_class: int, count: int, clicks: int) -> Question:
        """Return the question with the first `count` prompted lesions of a class."""
        return Question.of(self.classes[target_class], target_class, count, clicks)

    def final_question(self, target_class: int) -> Question:
        """Return the question whose answer is the final result of the reader."""
        return self.question(target_class, self.settings.prompted, self.settings.clicks)

    def score_class(self, target_class: int) -> tuple[ClassReport, ClassResult, InstanceMap]:
        """Return the report on a class, the lesions that were scored, and the final result as an instance map."""
        settings, plan, never = self.settings, self.classes[target_class], self.propagated.never
        right, wrong, swapped = self._exemplar_dice(target_class, settings.prompted, settings.clicks)
        without = measured(never[NO_EXEMPLARS, target_class].dice())
        exemplar_figures = Figures.of_exemplar_dice(measured(right.dice()), wrong, swapped, without)
        candidates = self.propagated.candidates[self.final_question(target_class)]
        found, prompted = candidates.sure(self.propagated.peak_threshold).lesions, self.prompted[target_class]
        result = ClassResult(prompted.order, found, prompted.tracked, prompted.clicks)
        figures, rows, false_ml, final = score_answer(self.lesions, plan, result, settings, exemplar_figures)
        curve = tuple(
            curve_point(k, n, self.question(target_class, n, k).exemplars, *self._exemplar_dice(target_class, n, k))
            for k in settings.every_clicks
            for n in settings.counts
        )
        return ClassReport(target_class, figures, curve, rows, false_ml, *self.further[target_class]), result, final

    def candidate_rows(self, target_class: int) -> list[CandidateRow]:
        """Return the candidates of a class outside of the prompted lesions."""
        question, plan = self.final_question(target_class), self.classes[target_class]
        prompted, candidates = plan.order[: question.exemplars], self.propagated.candidates[question]
        taken_out = grown(self.lesions, prompted, self.settings.margin_px)
        counts = self.lesions.count(LesionVoxels.of(candidates.lesions), taken_out)
        return candidate_rows(candidates, counts, set(plan.lesions).difference(prompted), self.lesions.voxel_ml)

    def _exemplar_dice(self, target_class: int, count: int, clicks: int) -> tuple[Overlap, float | None, float | None]:
        """Return `right` as an overlap, and `wrong` and `swapped` as Dice; see `Figures`."""
        never = self.propagated.never
        others = {c: self.question(c, count, clicks) for c in self.classes if c != target_class}
        wrong = mean_of([never[question, target_class].dice() for question in others.values()])
        swapped = mean_of([never[question, c].dice() for c, question in others.items()])
        return never[self.question(target_class, count, clicks), target_class], wrong, swapped


def score_answer(
    true_lesions: TrueLesions, plan: ClassPlan, answer: ClassResult, settings: ProtocolSettings, conditioning: Figures
) -> tuple[Figures, tuple[TrueLesionRow, ...], tuple[float, ...], InstanceMap]:
    """Score the lesions of one class that a system found in a scan.

    Args:
        true_lesions: The true lesions.
        plan: Which lesions of this class are prompted.
        answer: The lesions that the system found.
        settings: Margin around prompted lesions, and tolerance of the surface Dice.
        conditioning: Figures that are known already.

    Returns:
        All figures, a row per true lesion, the volumes of the false lesions in millilitres, and the final result as an
        instance map.
    """
    result = answer.found if answer.tracked is None else join_tracked_and_found(answer.tracked, answer.found)
    taken_out = grown(true_lesions, answer.prompted, settings.margin_px)
    found, final = LesionVoxels.of(answer.found), LesionVoxels.of(result)
    counts, final_counts = true_lesions.count(found, taken_out), true_lesions.count(final)
    rest = set(plan.lesions).difference(answer.prompted)
    unprompted_overlap, scan_overlap = counts.overlap(rest), final_counts.overlap(plan.lesions)
    matches, scan_matches = unprompted_overlap.match(), scan_overlap.match()
    own_dice = {} if answer.tracked is None else _own_dice(answer.tracked, true_lesions, answer.prompted)
    kept = found.pick(_counts(found, true_lesions, rest, taken_out))
    surfaces = [
        surface_dice_of_voxels(
            one.where, true.where, true_lesions.index.shape, true_lesions.edges_mm, settings.surface_mm
        )
        for one, true in ((kept, true_lesions.voxels_of(rest)), (final, true_lesions.voxels_of(plan.lesions)))
    ]
    figures = replace(
        conditioning,
        prompted_dice=mean_of(list(own_dice.values())),
        prompted_lesions=len(own_dice),
        prompted_clicks=answer.clicks,
        unprompted_surface_dice=measured(surfaces[0]),
        scan_surface_dice=measured(surfaces[1]),
        **_unprompted_figures(unprompted_overlap, matches, counts, true_lesions.voxel_ml),
        **_scan_figures(scan_overlap, scan_matches, final_counts, true_lesions.voxel_ml),
    )
    found_ml = dict(zip(counts.found_ids.tolist(), counts.found_voxels.tolist(), strict=True))
    false_ml = tuple(found_ml[lesion] * true_lesions.voxel_ml for lesion in matches.false)
    rows = [
        *_lesion_rows(answer.prompted, true_lesions, plan, scan_overlap, scan_matches),
        *_lesion_rows(rest, true_lesions, plan, unprompted_overlap, matches),
    ]
    rows_with_roles = tuple(
        replace(row, role="prompted", dice=own_dice.get(row.lesion, row.dice)) if row.lesion in answer.prompted else row
        for row in sorted(rows, key=lambda row: row.lesion)
    )
    return figures, rows_with_roles, false_ml, result


def grown(true_lesions: TrueLesions, lesions: Iterable[int], margin_px: int) -> Mask:
    """Return the mask of some true lesions with a margin in plane, (S, H, W)."""
    return dilate_in_plane(true_lesions.only(lesions) > 0, margin_px)


def _counts(found: LesionVoxels, true_lesions: TrueLesions, lesions: Iterable[int], ignore: Mask) -> Mask:
    """Return which found voxels count, (N,): not ignored, or in one of the lesions that are scored."""
    scored = np.concatenate([[False], np.isin(true_lesions.ids, np.fromiter(lesions, dtype=np.int32))])
    on_scored: Mask = scored[true_lesions.index.reshape(-1)[found.where]]
    return on_scored | ~ignore.reshape(-1)[found.where]


def curve_point(
    clicks: int, count: int, used: int, right: Overlap, wrong: float | None, swapped: float | None
) -> CountPoint:
    """Return a point of the curve.

    Args:
        clicks: Clicks on each exemplar.
        count: Number of exemplars asked for.
        used: Number of exemplars used.
        right: Overlap of the found lesions with the never-prompted lesions.
        wrong: Dice `wrong`.
        swapped: Dice `swapped`.
    """
    matches = right.match()
    return CountPoint(
        count=count,
        used=used,
        right=measured(right.dice()),
        wrong=wrong,
        swapped=swapped,
        lesion_f1=measured(matches.f1),
        clicks=clicks,
        lesion_precision=measured(matches.precision),
        lesion_recall=measured(matches.recall),
        false_lesions=len(matches.false),
    )


def candidate_rows(
    candidates: Candidates, counts: VoxelCounts, rest: Iterable[int], voxel_ml: float
) -> list[CandidateRow]:
    """Return a row for each candidate outside of the prompted lesions. The row says if it is a lesion of the class.

    Args:
        candidates: The candidates of a class.
        counts: Their voxels on the true lesions; the prompted lesions with their margin are the ignored region.
        rest: Lesions of the class that were not prompted.
        voxel_ml: Volume of a voxel.
    """
    matches = counts.overlap(rest).match()
    voxels = dict(zip(counts.found_ids.tolist(), counts.found_voxels.tolist(), strict=True))
    hits = set(matches.pairs.values())
    return [
        CandidateRow(float(candidates.peaks[one - 1]), one in hits, float(voxels[one]) * voxel_ml)
        for one in sorted(hits.union(matches.false))
    ]


def _unprompted_figures(
    overlap: Overlap, matches: Matches, counts: VoxelCounts, voxel_ml: float
) -> dict[str, float | None]:
    """Return the figures of the propagated lesions, on the true lesions that were not prompted."""
    apart = len(counts.apart().intersection(matches.false))
    return {
        "unprompted_dice": measured(overlap.dice()),
        "lesion_f1": measured(matches.f1),
        "lesion_precision": measured(matches.precision),
        "lesion_recall": measured(matches.recall),
        "false_lesions": len(matches.false),
        "false_apart": apart,
        "fragments": len(matches.false) - apart,
        **{f"unprompted_{name}": value for name, value in _quality_and_volume(overlap, voxel_ml).items()},
    }


def _scan_figures(overlap: Overlap, matches: Matches, counts: VoxelCounts, voxel_ml: float) -> dict[str, float | None]:
    """Return the figures of the reader's final result, on all lesions of the class."""
    apart = len(counts.apart().intersection(matches.false))
    return {
        "scan_dice": measured(overlap.dice()),
        "scan_lesion_f1": measured(matches.f1),
        "scan_lesion_precision": measured(matches.precision),
        "scan_lesion_recall": measured(matches.recall),
        "scan_false_lesions": len(matches.false),
        "scan_false_apart": apart,
        "scan_fragments": len(matches.false) - apart,
        **{f"scan_{name}": value for name, value in _quality_and_volume(overlap, voxel_ml).items()},
    }


def _quality_and_volume(overlap: Overlap, voxel_ml: float) -> dict[str, float | None]:
    """Return the panoptic quality and the errors of volume."""
    percent = measured(overlap.volume_error_percent())
    return {
        "panoptic_quality": measured(overlap.panoptic_quality()),
        "volume_error_ml": overlap.volume_error_ml(voxel_ml),
        "volume_error_percent": percent,
        "volume_absolute_error_percent": None if percent is None else abs(percent),
    }


def _own_dice(tracked: InstanceMap, true_lesions: TrueLesions, prompted: Sequence[int]) -> dict[int, float]:
    """Return the Dice of each prompted lesion with the mask of its own clicks; 0 if that mask is empty."""
    overlap = true_lesions.count(LesionVoxels.of(tracked)).overlap(prompted)
    dice = overlap.lesion_dice()
    rows = {int(found): row for row, found in enumerate(overlap.found_ids)}
    columns = {int(lesion): column for column, lesion in enumerate(overlap.true_ids)}
    return {
        lesion: float(dice[rows[number], columns[lesion]]) if number in rows else 0.0
        for number, lesion in enumerate(prompted, start=1)
    }


def _lesion_rows(
    lesions: Iterable[int], true_lesions: TrueLesions, plan: ClassPlan, overlap: Overlap, matches: Matches
) -> list[TrueLesionRow]:
    """Return a row for each of these true lesions."""
    iou, dice = overlap.iou(), overlap.lesion_dice()
    rows = {int(found): row for row, found in enumerate(overlap.found_ids)}
    columns = {int(lesion): column for column, lesion in enumerate(overlap.true_ids)}
    pieces = (overlap.shared[np.isin(overlap.found_ids, matches.false)] > 0).sum(0)
    lesion_rows = []
    for lesion in lesions:
        pair = (rows[matches.pairs[lesion]], columns[lesion]) if lesion in matches.pairs else None
        lesion_rows.append(
            TrueLesionRow(
                lesion=lesion,
                volume_ml=true_lesions.volumes_ml[lesion],
                role="never" if lesion in plan.never else "promptable",
                found=pair is not None,
                iou=float(iou[pair]) if pair else 0.0,
                dice=float(dice[pair]) if pair else 0.0,
                fragments=int(pieces[columns[lesion]]),
                **true_lesions.surroundings[lesion]._asdict(),
            )
        )
    return lesion_rows


PAPER_LESIONS = 20
PAPER_CLICKS = 3
PAPER_MIN_ML = 2.0
"""Rules of the paper: number of prompted lesions, clicks on each, and volume of the smallest component that counts."""


def score_by_paper(true_mask: Mask, found_mask: Mask, prompted_mask: Mask, voxel_ml: float) -> PaperFigures:
    """Score the prompted and propagated lesions by the rules of arXiv 2509.19277.

    Args:
        true_mask: (S, H, W) bool, all lesions of a class.
        found_mask: (S, H, W) bool, the propagated lesions.
        prompted_mask: (S, H, W) bool, the prompted lesions as clicked and tracked.
        voxel_ml: Volume of a voxel in millilitres.
    """
    whole_result, is_gated = found_mask | prompted_mask, int(components(true_mask).max(initial=0)) < PAPER_LESIONS
    scan_dice, f1, precision, recall = _dice_and_f1_of_paper(true_mask, whole_result, voxel_ml)
    gated_scan_dice, gated_f1, _, _ = _dice_and_f1_of_paper(
        true_mask, prompted_mask if is_gated else whole_result, voxel_ml
    )
    return PaperFigures(scan_dice, f1, precision, recall, gated_scan_dice, gated_f1)


def _dice_and_f1_of_paper(
    true_mask: Mask, found_mask: Mask, voxel_ml: float
) -> tuple[float | None, float | None, float | None, float | None]:
    """Return Dice, lesion F1, precision and recall of the components of at least 2 ml."""
    min_voxels = int(np.ceil(PAPER_MIN_ML / voxel_ml - 1e-6))  # 2 ml itself is kept
    true_parts, found_parts = components(true_mask, min_voxels), components(found_mask, min_voxels)
    if not true_parts.any() and not found_parts.any():
        return 1.0, 1.0, 1.0, 1.0
    matches = any_overlap(found_parts, true_parts)
    overall = dice(found_parts > 0, true_parts > 0) if true_parts.any() else 0.0
    return overall, measured(matches.f1), measured(matches.precision), measured(matches.recall)
