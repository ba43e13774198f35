"""Scoring on whole volumes, without shortcuts. `mois.evaluation.scoring` must give exactly the same figures.

What follows from an `Overlap` alone is that module's: only how an overlap is counted has a shortcut.

Tests compare with it, and `tests.bench.scoring` measures against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import nan

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from mois.evaluation.figures import CandidateRow, Figures, TrueLesionRow, mean_of, measured
from mois.evaluation.scoring import ClassResult, _lesion_rows, _quality_and_volume
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.true_lesions import ClassPlan, TrueLesions
from mois.grid import Edges, Spacing, edges_of
from mois.lesions import Candidates, InstanceMap, Mask, dilate_in_plane, lesion_volumes_ml, renumber
from mois.metrics.overlap import Matches, Overlap
from mois.metrics.surface import _CORNERS, _FULL, SURFACE_MM, _areas, _Floats


def only(true_lesions: TrueLesions, lesions: Iterable[int]) -> InstanceMap:
    """Return the instance map (S, H, W) int32 of some lesions, with their own ids."""
    table = np.zeros(len(true_lesions.ids) + 1, dtype=np.int32)
    kept = np.isin(true_lesions.ids, np.fromiter(lesions, dtype=np.int32))
    table[1:][kept] = true_lesions.ids[kept]
    return table[true_lesions.index]


def surface_dice(
    found_mask: npt.NDArray[np.bool_],
    true_mask: npt.NDArray[np.bool_],
    spacing_mm: Spacing | Edges,
    tolerance_mm: float = SURFACE_MM,
) -> float:
    """Return the share of both surfaces, by area, that lies within a tolerance of the other surface.

    Distances are measured between the middles of cells.

    Args:
        found_mask: (S, H, W) bool.
        true_mask: (S, H, W) bool.
        spacing_mm: Lengths of a voxel's edges along S, H and W if they are at right angles; otherwise `Edges`.
        tolerance_mm: Distance up to which surfaces agree.

    Returns:
        0 to 1; NaN if the true mask is empty.

    Source: Nikolov et al., J Med Internet Res 23(7), 2021, e26151; the result equals that of their package
    surface-distance.
    """
    if not true_mask.any():
        return nan
    found_mm, found_area = surface_cells(found_mask, spacing_mm)
    true_mm, true_area = surface_cells(true_mask, spacing_mm)
    if not len(found_mm):
        return 0.0
    near = 0.0
    for points, area, others in ((found_mm, found_area, true_mm), (true_mm, true_area, found_mm)):
        # the bound is exclusive, and distances are rounded
        distance, _ = KDTree(others).query(points, distance_upper_bound=tolerance_mm * (1 + 1e-6) + 1e-9)
        near += float(area[np.isfinite(distance)].sum())
    return near / float(found_area.sum() + true_area.sum())


def surface_cells(mask: npt.NDArray[np.bool_], spacing_mm: Spacing | Edges) -> tuple[_Floats, _Floats]:
    """Return the cells of a mask's surface and their areas.

    Args:
        mask: (S, H, W) bool; voxels outside of the scan are not in the mask.
        spacing_mm: As for `surface_dice`.

    Returns:
        Middles of the cells that the surface goes through, (N, 3) in mm, and its area in each, (N,) in mm2.
    """
    box = [np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    if not len(box[0]):
        return np.zeros((0, 3)), np.zeros(0)
    start = np.array([places[0] for places in box])
    inside = np.pad(mask[tuple(slice(places[0], places[-1] + 1) for places in box)], 1).view(np.uint8)
    size = tuple(edge - 1 for edge in inside.shape)
    code = np.zeros(size, np.uint8)
    for bit, corner in enumerate(_CORNERS):
        code |= inside[tuple(slice(at, at + edge) for at, edge in zip(corner, size, strict=True))] << np.uint8(bit)
    cells = np.argwhere((code != 0) & (code != _FULL))
    edges = edges_of(spacing_mm)
    area = np.asarray(_areas(tuple(edges.ravel().tolist())))[code[tuple(cells.T)]]
    return (cells + start - 0.5) @ edges, area


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
    class_map = only(true_lesions, plan.lesions)
    unprompted_overlap, scan_overlap = (
        Overlap.of(answer.found, unprompted_map, taken_out),
        Overlap.of(result, class_map),
    )
    matches, scan_matches = unprompted_overlap.match(), scan_overlap.match()
    own_dice = (
        {}
        if answer.tracked is None
        else _own_dice(answer.tracked, only(true_lesions, answer.prompted), answer.prompted)
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
    rest = only(true_lesions, [lesion for lesion in plan.lesions if lesion not in prompted])
    return rest, dilate_in_plane(only(true_lesions, prompted) > 0, margin_px)


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


def telling_slices(true_map: InstanceMap, result_map: InstanceMap, count: int) -> list[int]:
    """Return up to `count` slices, ascending, that show most of the true and found lesions."""
    covered: set[int] = set()
    lesions_on_slice = [
        set(np.unique(t).tolist()) | {-lesion for lesion in np.unique(r).tolist()}
        for t, r in zip(true_map, result_map, strict=True)
    ]
    chosen: list[int] = []
    while len(chosen) < count:
        best = max(range(len(lesions_on_slice)), key=lambda index: len(lesions_on_slice[index] - covered - {0}))
        if not lesions_on_slice[best] - covered - {0}:
            break
        covered |= lesions_on_slice[best]
        chosen.append(best)
    return sorted(chosen)
