"""Figures of the lesions that a system found in a scan. The system is our model or another system."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mois.evaluation.figures import CandidateRow, CountPoint, Figures, PaperFigures, TrueLesionRow, mean_of, measured
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.true_lesions import ClassPlan, TrueLesions
from mois.lesions import Candidates, InstanceMap, LesionVoxels, Mask, components, dilate_in_plane
from mois.metrics.counts import VoxelCounts
from mois.metrics.overlap import Matches, Overlap, any_overlap, dice
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


def join_tracked_and_found(tracked_map: InstanceMap, found_map: InstanceMap) -> InstanceMap:
    """Return prompted and propagated lesions as one instance map.

    - If at least half of a found lesion lies in tracked lesions, it joins the tracked lesion that it shares most with.
    - Any other found lesion keeps its voxels outside the tracked lesions, under a new id.

    Args:
        tracked_map: Instance map (S, H, W) int32 of the prompted lesions, which keep their ids.
        found_map: Instance map of the propagated lesions.
    """
    overlap = Overlap.of(found_map, tracked_map)
    if not len(overlap.found_ids):
        return tracked_map.copy()
    first = int(tracked_map.max()) + 1
    new = np.arange(first, first + len(overlap.found_ids), dtype=np.int32)
    if len(overlap.true_ids):
        same = 2 * overlap.shared.sum(1) >= overlap.found_voxels
        new[same] = overlap.true_ids[overlap.shared[same].argmax(1)]
    result = tracked_map.copy()
    found = LesionVoxels.of(found_map)
    found = found.pick(result.reshape(-1)[found.where] == 0)
    result.reshape(-1)[found.where] = new[np.searchsorted(overlap.found_ids, found.lesion)]
    return result


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
