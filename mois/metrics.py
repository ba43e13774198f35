"""Voxel and lesion metrics: pure functions of arrays on one grid.

Every metric that has nothing to be measured on is NaN, never a flattering 1 and never an undeserved 0: Dice and recall
where the truth is empty, precision where nothing was found, F1 where both are so. What is found in an empty scan shows
in the number of false lesions, and in an F1 of 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from mois.surface import surface_dice as surface_dice

Mask = npt.NDArray[np.bool_]
InstanceMap = npt.NDArray[np.int32]

MATCH_IOU = 0.1
PANOPTIC_IOU = 0.5


def dice(found: Mask, truth: Mask, ignore: Mask | None = None) -> float:
    """Return the Dice coefficient of two masks.

    Args:
        found: Any shape, bool.
        truth: Same shape, bool.
        ignore: Voxels that count for neither, or None.

    Returns:
        0 to 1; NaN where the truth (outside `ignore`) is empty.
    """
    if ignore is not None:
        found, truth = found & ~ignore, truth & ~ignore
    size = int(truth.sum())
    return 2.0 * int((found & truth).sum()) / (size + int(found.sum())) if size else nan


def dilate_in_plane(mask: Mask, radius_px: int) -> Mask:
    """Return a stack of masks grown by a square of `radius_px` pixels within each slice.

    Args:
        mask: (S, H, W) bool.
        radius_px: How far to grow along rows and along columns; 0 changes nothing.
    """
    grown = mask.copy()
    for axis in (1, 2):
        source = grown.copy()
        for step in range(1, min(radius_px, mask.shape[axis] - 1) + 1):
            ahead, behind = [slice(None)] * 3, [slice(None)] * 3
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            grown[tuple(ahead)] |= source[tuple(behind)]
            grown[tuple(behind)] |= source[tuple(ahead)]
    return grown


def lesion_volumes_ml(lesions: InstanceMap, voxel_ml: float) -> dict[int, float]:
    """Return the volume of each lesion.

    Args:
        lesions: Instance map of any shape, int32, 0 is background.
        voxel_ml: Volume of one voxel in millilitres.

    Returns:
        Lesion id to volume in millilitres, ids ascending.
    """
    ids, counts = np.unique(lesions[lesions != 0], return_counts=True)
    return {int(lesion): int(count) * voxel_ml for lesion, count in zip(ids, counts, strict=True)}


def _compact(ids: InstanceMap) -> tuple[InstanceMap, npt.NDArray[np.int64]]:
    """Return the distinct ids, 0 first, and each element's index among them."""
    top = int(ids.max(initial=0))
    if top >= 1 << 22:
        distinct, index = np.unique(np.append(ids, np.int32(0)), return_inverse=True)
        return distinct.astype(np.int32), index[:-1]
    # A table of what occurs: 10 times as fast as sorting a million voxels.
    occurs = np.bincount(ids, minlength=top + 1) > 0
    occurs[0] = True
    return np.flatnonzero(occurs).astype(np.int32), (np.cumsum(occurs) - 1)[ids]


def renumber(lesions: InstanceMap, to: Mapping[int, int]) -> InstanceMap:
    """Return an instance map of any shape with other numbers; those without an entry become 0.

    The cost depends on how many ids there are, not on how large they are: ids reach 2147483647.
    """
    distinct, index = _compact(lesions.reshape(-1))
    table = np.array([to.get(int(one), 0) for one in distinct], dtype=np.int32)
    return table[index].reshape(lesions.shape)


@dataclass(frozen=True)
class Matches:
    """Which found lesion stands for which true one, one to one.

    Attributes:
        pairs: True id to found id.
        missed: Ids of true lesions that nothing stands for.
        false: Ids of found lesions that stand for nothing.
        ignored: Ids of found lesions that count for nothing: unmatched, and more than half lies in what is ignored.
    """

    pairs: dict[int, int]
    missed: tuple[int, ...]
    false: tuple[int, ...]
    ignored: tuple[int, ...]

    @property
    def precision(self) -> float:
        """Share of the found lesions that are true; NaN where nothing was found."""
        found = len(self.pairs) + len(self.false)
        return len(self.pairs) / found if found else nan

    @property
    def recall(self) -> float:
        """Share of the true lesions that were found; NaN where there are none."""
        true = len(self.pairs) + len(self.missed)
        return len(self.pairs) / true if true else nan

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); NaN where there is neither a true nor a found lesion."""
        total = 2 * len(self.pairs) + len(self.false) + len(self.missed)
        return 2 * len(self.pairs) / total if total else nan


@dataclass(frozen=True)
class Overlap:
    """How many voxels each found lesion (F of them) shares with each true one (L of them): made once, read many times.

    Attributes:
        found_ids: (F,) int32, ascending.
        true_ids: (L,) int32, ascending.
        shared: (F, L) int64 voxels.
        found_voxels: (F,) int64, voxels outside what is ignored.
        ignored_voxels: (F,) int64, voxels inside it.
        true_voxels: (L,) int64.
    """

    found_ids: npt.NDArray[np.int32]
    true_ids: npt.NDArray[np.int32]
    shared: npt.NDArray[np.int64]
    found_voxels: npt.NDArray[np.int64]
    ignored_voxels: npt.NDArray[np.int64]
    true_voxels: npt.NDArray[np.int64]

    @classmethod
    def of(cls, found: InstanceMap, truth: InstanceMap, ignore: Mask | None = None) -> Overlap:
        """Count the voxels in one pass.

        Args:
            found: Instance map of any shape, int32, 0 is background.
            truth: Instance map, same shape.
            ignore: Voxels of `found` that count for nothing, bool, or None. Voxels of the truth always count.
        """
        where = np.flatnonzero((found != 0) | (truth != 0))
        found_at, true_at = found.reshape(-1)[where], truth.reshape(-1)[where]
        found_ids, rows = _compact(found_at)
        true_ids, columns = _compact(true_at)
        hidden = np.zeros(len(where), dtype=np.int64)
        if ignore is not None:
            hidden = (ignore.reshape(-1)[where] & (true_at == 0)).astype(np.int64)
        # One cell per (ignored or not, found id, true id); row and column 0 are background.
        cells = (hidden * len(found_ids) + rows) * len(true_ids) + columns
        table = np.bincount(cells, minlength=2 * len(found_ids) * len(true_ids))
        counted, ignored = table.reshape(2, len(found_ids), len(true_ids)).astype(np.int64)
        return cls(
            found_ids=found_ids[1:],
            true_ids=true_ids[1:],
            shared=counted[1:, 1:],
            found_voxels=counted[1:].sum(1),
            ignored_voxels=ignored[1:].sum(1),
            true_voxels=counted[:, 1:].sum(0),
        )

    def dice(self) -> float:
        """Return the voxel Dice of all that was found against all that is true; NaN where nothing is true."""
        size = int(self.true_voxels.sum())
        return 2.0 * int(self.shared.sum()) / (size + int(self.found_voxels.sum())) if size else nan

    def panoptic_quality(self, min_iou: float = PANOPTIC_IOU) -> float:
        """Return the IoU of the matched pairs, over the pairs and half of what is false or missed.

        Returns:
            0 to 1; NaN where there is neither a true nor a found lesion.

        Source: Kirillov et al., Panoptic Segmentation, CVPR 2019, equation 1.
        """
        matches = self.match(min_iou)
        total = len(matches.pairs) + (len(matches.false) + len(matches.missed)) / 2
        if not total:
            return nan
        pairs = [
            (np.searchsorted(self.found_ids, found), np.searchsorted(self.true_ids, true))
            for true, found in matches.pairs.items()
        ]
        iou = self.iou()
        return float(sum(iou[pair] for pair in pairs)) / total

    def volume_error_ml(self, voxel_ml: float) -> float:
        """Return the found volume minus the true one, in millilitres."""
        return (int(self.found_voxels.sum()) - int(self.true_voxels.sum())) * voxel_ml

    def volume_error_percent(self) -> float:
        """Return the found volume minus the true one, in percent of the true one; NaN where nothing is true."""
        size = int(self.true_voxels.sum())
        return 100 * (int(self.found_voxels.sum()) - size) / size if size else nan

    def iou(self) -> npt.NDArray[np.float64]:
        """Return the intersection over union of every pair, (F, L)."""
        union = self.found_voxels[:, None] + self.true_voxels[None] - self.shared
        return np.asarray(self.shared / np.maximum(union, 1), dtype=np.float64)

    def lesion_dice(self) -> npt.NDArray[np.float64]:
        """Return the Dice of every pair, (F, L)."""
        both = self.found_voxels[:, None] + self.true_voxels[None]
        return np.asarray(2.0 * self.shared / np.maximum(both, 1), dtype=np.float64)

    def apart(self) -> set[int]:
        """Return the found lesions that share no voxel with any true one."""
        return set(self.found_ids[~(self.shared > 0).any(1)].tolist())

    def match(self, min_iou: float = MATCH_IOU) -> Matches:
        """Pair found and true lesions one to one, with the greatest sum of IoU among pairs of at least `min_iou`.

        One blob over five lesions matches one of them at most, and one lesion found in five pieces matches one piece.
        """
        iou = self.iou()
        good = np.where(iou >= min_iou, iou, 0.0)
        candidates = np.flatnonzero(good.any(1))
        rows, columns = linear_sum_assignment(good[candidates], maximize=True)
        kept = good[candidates[rows], columns] > 0
        found = self.found_ids[candidates[rows]]
        pairs = {int(self.true_ids[c]): int(f) for f, c in zip(found[kept], columns[kept], strict=True)}
        unmatched = ~np.isin(self.found_ids, list(pairs.values()))
        outside = self.found_voxels < self.ignored_voxels
        return Matches(
            pairs=pairs,
            missed=tuple(int(lesion) for lesion in self.true_ids if int(lesion) not in pairs),
            false=tuple(self.found_ids[unmatched & ~outside].tolist()),
            ignored=tuple(self.found_ids[unmatched & outside].tolist()),
        )


def match_lesions(
    found: InstanceMap, truth: InstanceMap, ignore: Mask | None = None, min_iou: float = MATCH_IOU
) -> Matches:
    """Pair the lesions of two instance maps one to one; see `Overlap.match`."""
    return Overlap.of(found, truth, ignore).match(min_iou)


def lesion_f1(found: InstanceMap, truth: InstanceMap, ignore: Mask | None = None, min_iou: float = MATCH_IOU) -> float:
    """Return the lesion F1 of two instance maps; see `Matches.f1`."""
    return match_lesions(found, truth, ignore, min_iou).f1


def any_overlap(found: InstanceMap, truth: InstanceMap) -> Matches:
    """Return matches by the paper's rule: a true lesion of which any voxel is found counts, whatever else is found.

    One blob over everything has an F1 of 1. For comparison with the paper's table only.

    Returns:
        Matches in which `pairs` gives each true lesion one found lesion that touches it, several may share one.
    """
    overlap = Overlap.of(found, truth)
    touch = overlap.shared > 0
    pairs = {
        int(lesion): int(overlap.found_ids[column.argmax()])
        for lesion, column in zip(overlap.true_ids, touch.T, strict=True)
        if column.any()
    }
    return Matches(
        pairs=pairs,
        missed=tuple(int(lesion) for lesion in overlap.true_ids if int(lesion) not in pairs),
        false=tuple(overlap.found_ids[~touch.any(1)].tolist()),
        ignored=(),
    )


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean of what was measured; None where nothing was."""
    measured = [value for value in values if value is not None and not np.isnan(value)]
    return float(np.mean(measured)) if measured else None


def bootstrap_interval(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of a mean.

    Args:
        values: One per subject.
        groups: Whom each value belongs to: the values of one patient are drawn together. None: each stands alone.
        confidence: Share of the resampled means that the interval holds.
        resamples: How often to resample.
        seed: Of the resampling.

    Returns:
        Lower and upper end; None for fewer than two groups, whose spread is unknown.
    """
    owners = list(range(len(values))) if groups is None else list(groups)
    order = {owner: index for index, owner in enumerate(dict.fromkeys(owners))}
    if len(order) < 2:
        return None
    index = np.array([order[owner] for owner in owners])
    sums, counts = np.bincount(index, weights=np.asarray(values, dtype=np.float64)), np.bincount(index)
    drawn = np.random.default_rng(seed).integers(len(order), size=(resamples, len(order)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)
