"""Matches the lesions of two time points: by overlap first, then by place and appearance.

N earlier lesions and M lesions of now are nodes; an edge says that two are one. Groups of joined nodes are the entries.
Volumes are counted on the grid on which a lesion was segmented; only overlap looks across the grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mois.intensities import normalise
from mois.scans.registration import voxel_places
from mois.session.follow_up.alignment import Alignment, align
from mois.session.follow_up.changes import CUT_OFF_PERCENT, Change, Comparison, Status, percent
from mois.session.follow_up.time_points import TimePoint

LEAST_OVERLAP = 0.1
"""Overlap (Dice) from which two lesions are the same."""
SWALLOWED = 0.5
"""Share of a lesion within another lesion from which both are one."""
NEAR_MM = 15.0
"""Largest distance of the centres of lesions that do not overlap, for a match by appearance."""
ALIKE = 1.0
"""Largest difference in appearance of lesions that do not overlap; see `_differences`."""
SEEN = 0.5
"""Share of a lesion that the other scan must show, so that a missing partner means that the lesion is new or gone."""
_INTENSITY, _VOLUME = 0.3, 4.0
"""Difference in normalised intensity, and ratio of volumes, that count as a difference of 1."""

_Edge = tuple[int, int]
"""Rows of an earlier lesion and of a lesion of now."""


class _Lesions(NamedTuple):
    """The lesions of a time point, with N lesions.

    Attributes:
        ids: (N,), ascending.
        ml: (N,) volumes in millilitres, in voxels of their own grid.
        seen_ml: (N,) volumes of what lies within the other scan.
        centres: (N, 3), RAS mm in the scan of now.
        intensity: (N,) mean normalised intensity.
    """

    ids: NDArray[np.int64]
    ml: NDArray[np.float64]
    seen_ml: NDArray[np.float64]
    centres: NDArray[np.float64]
    intensity: NDArray[np.float64]


def compare_time_points(earlier: TimePoint, now: TimePoint, alignment: Alignment | None = None) -> Comparison:
    """Match the lesions of two scans of a patient.

    Scans on different grids are registered first: rigid, so a body that bends is matched less well. Lesions that
    overlap are the same; a lesion that lies within another by half belongs to it. Lesions that are left are the same if
    they lie near each other and look alike. Volumes are those of each scan's own voxels.

    Args:
        earlier: The earlier scan with its lesions.
        now: The scan of now with its lesions.
        alignment: How the scans lie on each other, if `align` was already asked; its search takes seconds.

    Raises:
        ValueError: If the scans are of two patients, or cannot be registered.
    """
    known = align(earlier.volume, now.volume) if alignment is None else alignment
    onto = known.voxels(earlier.volume, now.volume)
    then, there = _across(earlier, now, onto)
    here, back = _across(now, earlier, np.linalg.inv(onto).astype(np.float64))
    turned = then.centres @ known.motion[:3, :3].T + known.motion[:3, 3]
    then = then._replace(centres=turned)
    # Coarse voxels step over a small lesion of the other scan: the finer look counts.
    overlap_ml = np.maximum(there, back.T)
    changes = _changes(then, here, overlap_ml)
    before, after = float(then.ml.sum()), float(here.ml.sum())
    return Comparison(tuple(changes), before, after, known.registered, known.moved_mm)


def _across(of: TimePoint, other: TimePoint, onto: NDArray[np.float64]) -> tuple[_Lesions, NDArray[np.float64]]:
    """Return the lesions of a time point, and the millilitres of each in each lesion of the other, (N, M).

    `onto`: (4, 4), from its voxels to voxels of the other scan.
    """
    ids, places = voxel_places(of.labels, of.volume.affine)
    known, row, counts = np.unique(ids, return_inverse=True, return_counts=True)
    index = np.rint(voxel_places(of.labels, torch.from_numpy(onto))[1]).astype(np.int64)
    inside = ((index >= 0) & (index < np.array(other.volume.shape))).all(1)
    met = np.zeros(len(ids), np.int64)
    met[inside] = other.labels.numpy()[tuple(index[inside].T)]
    others = np.unique(other.labels[other.labels != 0].numpy())
    overlap = np.zeros((len(known), len(others)))
    np.add.at(overlap, (row[met > 0], np.searchsorted(others, met[met > 0])), of.volume.grid.voxel_ml)
    shown = normalise(of.volume.image, channel=of.volume.channel, known=of.volume.levels)
    sums = [np.bincount(row, each, len(known)) for each in (*places.T, shown[of.labels != 0].double().cpu().numpy())]
    lesions = _Lesions(
        ids=known,
        ml=(counts * of.volume.grid.voxel_ml).astype(np.float64),
        seen_ml=np.bincount(row[inside], minlength=len(known)).astype(np.float64) * of.volume.grid.voxel_ml,
        centres=np.stack(sums[:3], axis=1) / counts[:, None],
        intensity=sums[3] / counts,
    )
    return lesions, overlap


def _changes(then: _Lesions, here: _Lesions, overlap_ml: NDArray[np.float64]) -> list[Change]:
    """Return the entries of all lesions."""
    by_overlap = _overlapping(then, here, overlap_ml)
    edges = [*by_overlap, *_alike(then, here, {i for i, _ in by_overlap}, {j for _, j in by_overlap})]
    olds, news = len(then.ids), len(here.ids)
    rows, columns = np.array(edges, np.int64).reshape(-1, 2).T
    joined = coo_array((np.ones(len(rows)), (rows, olds + columns)), shape=(olds + news,) * 2)
    _, group = connected_components(joined, directed=False)
    overlapping = {int(group[i]) for i, _ in by_overlap}
    found, done = [], set()
    for node in (*range(olds, olds + news), *range(olds)):
        if (key := int(group[node])) in done:
            continue
        done.add(key)
        members = np.flatnonzero(group == key)
        how = "overlap" if key in overlapping else "appearance"
        found.append(_change(then, here, members[members < olds], members[members >= olds] - olds, how))
    return found


def _overlapping(then: _Lesions, here: _Lesions, overlap_ml: NDArray[np.float64]) -> list[_Edge]:
    """Return the pairs that overlap, each lesion once, and the lesions that are left but lie within another by half."""
    both = then.seen_ml[:, None] + here.seen_ml[None, :]
    dice = 2 * overlap_ml / np.maximum(both, np.finfo(float).tiny)
    pairs = [
        (int(i), int(j)) for i, j in zip(*linear_sum_assignment(-dice), strict=True) if dice[i, j] >= LEAST_OVERLAP
    ]
    old, new = {i for i, _ in pairs}, {j for _, j in pairs}
    edges = list(pairs)
    if overlap_ml.size:
        within = [(i, int(overlap_ml[i].argmax())) for i in range(len(then.ids)) if i not in old]
        edges += [(i, j) for i, j in within if overlap_ml[i, j] >= SWALLOWED * then.seen_ml[i] > 0]
        within = [(int(overlap_ml[:, j].argmax()), j) for j in range(len(here.ids)) if j not in new]
        edges += [(i, j) for i, j in within if overlap_ml[i, j] >= SWALLOWED * here.seen_ml[j] > 0]
    return edges


def _alike(then: _Lesions, here: _Lesions, old: set[int], new: set[int]) -> list[_Edge]:
    """Return pairs of lesions that are left, lie near each other and look alike."""
    rows = np.array([i for i in range(len(then.ids)) if i not in old], np.int64)
    columns = np.array([j for j in range(len(here.ids)) if j not in new], np.int64)
    cost = _differences(then, here)[np.ix_(rows, columns)]
    chosen = zip(*linear_sum_assignment(np.minimum(cost, 1e3)), strict=True)
    return [(int(rows[a]), int(columns[b])) for a, b in chosen if cost[a, b] <= ALIKE]


def _differences(then: _Lesions, here: _Lesions) -> NDArray[np.float64]:
    """Return how much lesions differ, (N, M): the largest difference in place, intensity and volume; 1 is much."""
    place = np.linalg.norm(then.centres[:, None] - here.centres[None], axis=2) / NEAR_MM
    intensity = np.abs(then.intensity[:, None] - here.intensity[None]) / _INTENSITY
    volume = np.abs(np.log(then.ml[:, None] / here.ml[None])) / np.log(_VOLUME)
    most: NDArray[np.float64] = np.maximum(np.maximum(place, intensity), volume)
    return most


def _change(
    then: _Lesions, here: _Lesions, olds: NDArray[np.int64], news: NDArray[np.int64], matched_by: str
) -> Change:
    """Return the entry of a group of lesions; `olds` and `news` are rows of both tables."""
    sides = ((then, olds), (here, news))
    shown = [float(side.seen_ml[rows].sum() / side.ml[rows].sum()) for side, rows in sides if len(rows)]
    status = _status(len(olds), len(news), min(shown))
    lesions, rows = (here, news) if len(news) else (then, olds)
    x, y, z = np.average(lesions.centres[rows], axis=0, weights=lesions.ml[rows]).tolist()
    before, now = float(then.ml[olds].sum()), float(here.ml[news].sum())
    outside = 100 * (1 - min(shown))
    known = status != "outside" and outside < CUT_OFF_PERCENT
    return Change(
        status=status,
        lesions=_ids(here, news),
        earlier=_ids(then, olds),
        ml_before=before,
        ml_now=now,
        change_percent=percent(before, now) if known else None,
        centre_lps_mm=(-x, -y, z),
        matched_by=matched_by if len(olds) and len(news) else "",
        outside_percent=outside,
    )


def _status(olds: int, news: int, shown: float) -> Status:
    if not olds or not news:
        return "outside" if shown < SEEN else "gone" if olds else "new"
    if olds > 1 and news > 1:
        return "regrouped"
    return "merged" if olds > 1 else "split" if news > 1 else "same"


def _ids(lesions: _Lesions, rows: Sequence[int] | NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(lesions.ids[row]) for row in rows)
