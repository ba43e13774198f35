"""Figures of the lesions that a system found in a scan. The system is our model or another system."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mois.evaluation.figures import CandidateRow, CountPoint, Figures, PaperFigures, TrueLesionRow, mean_of, measured
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.true_lesions import ClassPlan, TrueLesions
from mois.lesions import Candidates, InstanceMap, Mask, components, dilate_in_plane, lesion_volumes_ml, renumber
from mois.metrics.overlap import Matches, Overlap, any_overlap, dice
from mois.metrics.surface import surface_dice


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
    unprompted_map, taken_out = unprompted_lesions(true_lesions, plan, answer.prompted, settings.margin_px)
    class_map = true_lesions.only(plan.lesions)
    unprompted_overlap, scan_overlap = (
        Overlap.of(answer.found, unprompted_map, taken_out),
        Overlap.of(result, class_map),
    )
    matches, scan_matches = unprompted_overlap.match(), scan_overlap.match()
    own_dice = (
        {} if answer.tracked is None else _own_dice(answer.tracked, true_lesions.only(answer.prompted), answer.prompted)
    )
    found_mask: Mask = (answer.found > 0) & ~(taken_out & (unprompted_map == 0))
    figures = replace(
        conditioning,
        prompted_dice=mean_of(list(own_dice.values())),
        prompted_lesions=len(own_dice),
        prompted_clicks=answer.clicks,
        unprompted_surface_dice=measured(
            surface_dice(found_mask, unprompted_map > 0, true_lesions.edges_mm, settings.surface_mm)
        ),
        scan_surface_dice=measured(surface_dice(result > 0, class_map > 0, true_lesions.edges_mm, settings.surface_mm)),
        **_unprompted_figures(unprompted_overlap, matches, answer.found, true_lesions),
        **_scan_figures(scan_overlap, scan_matches, result, true_lesions),
    )
    found_ml = lesion_volumes_ml(answer.found, true_lesions.voxel_ml) if matches.false else {}
    false_ml = tuple(found_ml[lesion] for lesion in matches.false)
    rows = [
        *_lesion_rows(answer.prompted, true_lesions, plan, scan_overlap, scan_matches),
        *_lesion_rows(set(plan.lesions).difference(answer.prompted), true_lesions, plan, unprompted_overlap, matches),
    ]
    rows_with_roles = tuple(
        replace(row, role="prompted", dice=own_dice.get(row.lesion, row.dice)) if row.lesion in answer.prompted else row
        for row in sorted(rows, key=lambda row: row.lesion)
    )
    return figures, rows_with_roles, false_ml, result


def unprompted_lesions(
    true_lesions: TrueLesions, plan: ClassPlan, prompted: Sequence[int], margin_px: int
) -> tuple[InstanceMap, Mask]:
    """Return the unprompted lesions of a class, (S, H, W), and the mask of the prompted lesions with margin."""
    rest = true_lesions.only([lesion for lesion in plan.lesions if lesion not in prompted])
    return rest, dilate_in_plane(true_lesions.only(prompted) > 0, margin_px)


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


def candidate_rows(candidates: Candidates, rest: InstanceMap, taken_out: Mask, voxel_ml: float) -> list[CandidateRow]:
    """Return a row for each candidate outside of the prompted lesions. The row says if it is a lesion of the class."""
    matches = Overlap.of(candidates.lesions, rest, taken_out).match()
    voxels = np.bincount(candidates.lesions.reshape(-1), minlength=1)
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
    renumbered = renumber(found_map, dict(zip(overlap.found_ids.tolist(), new.tolist(), strict=True)))
    return np.where(tracked_map > 0, tracked_map, renumbered)


def _unprompted_figures(
    overlap: Overlap, matches: Matches, found_map: InstanceMap, true_lesions: TrueLesions
) -> dict[str, float | None]:
    """Return the figures of the propagated lesions, on the true lesions that were not prompted."""
    apart = _apart(found_map, matches, true_lesions)
    return {
        "unprompted_dice": measured(overlap.dice()),
        "lesion_f1": measured(matches.f1),
        "lesion_precision": measured(matches.precision),
        "lesion_recall": measured(matches.recall),
        "false_lesions": len(matches.false),
        "false_apart": apart,
        "fragments": len(matches.false) - apart,
        **{f"unprompted_{name}": value for name, value in _quality_and_volume(overlap, true_lesions.voxel_ml).items()},
    }


def _scan_figures(
    overlap: Overlap, matches: Matches, result_map: InstanceMap, true_lesions: TrueLesions
) -> dict[str, float | None]:
    """Return the figures of the reader's final result, on all lesions of the class."""
    apart = _apart(result_map, matches, true_lesions)
    return {
        "scan_dice": measured(overlap.dice()),
        "scan_lesion_f1": measured(matches.f1),
        "scan_lesion_precision": measured(matches.precision),
        "scan_lesion_recall": measured(matches.recall),
        "scan_false_lesions": len(matches.false),
        "scan_false_apart": apart,
        "scan_fragments": len(matches.false) - apart,
        **{f"scan_{name}": value for name, value in _quality_and_volume(overlap, true_lesions.voxel_ml).items()},
    }


def _apart(found_map: InstanceMap, matches: Matches, true_lesions: TrueLesions) -> int:
    """Return how many false lesions touch no true lesion of any class."""
    return len(Overlap.of(found_map, true_lesions.index).apart().intersection(matches.false))


def _quality_and_volume(overlap: Overlap, voxel_ml: float) -> dict[str, float | None]:
    """Return the panoptic quality and the errors of volume."""
    percent = measured(overlap.volume_error_percent())
    return {
        "panoptic_quality": measured(overlap.panoptic_quality()),
        "volume_error_ml": overlap.volume_error_ml(voxel_ml),
        "volume_error_percent": percent,
        "volume_absolute_error_percent": None if percent is None else abs(percent),
    }


def _own_dice(tracked: InstanceMap, true_map: InstanceMap, prompted: Sequence[int]) -> dict[int, float]:
    """Return the Dice of each prompted lesion with the mask of its own clicks; 0 if that mask is empty."""
    overlap = Overlap.of(tracked, true_map)
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
