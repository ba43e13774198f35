"""Voxel and lesion metrics: pure functions of arrays on one grid.

A metric that cannot be measured is NaN, never 1 and never 0:

- Dice and recall, if no lesion is true.
- Precision, if no lesion was found.
- F1, if no lesion is true and none was found.

Lesions found in a scan without true lesions raise the number of false lesions, and give an F1 of 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from mois.lesions import InstanceMap, LesionVoxels, Mask, compact_ids

MATCH_IOU = 0.1
PANOPTIC_IOU = 0.5


def dice(found_mask: Mask, true_mask: Mask, ignore: Mask | None = None) -> float:
    """Return the Dice coefficient of two masks.

    Args:
        found_mask: Any shape, bool.
        true_mask: Same shape, bool.
        ignore: Voxels that are left out of both masks, or None.

    Returns:
        0 to 1; NaN if the true mask is empty outside `ignore`.

    Examples:
        >>> found_mask, true_mask = np.array([True, True, False]), np.array([False, True, True])
        >>> dice(found_mask, true_mask)  # 2 x 1 shared voxel / (2 + 2)
        0.5
    """
    if ignore is not None:
        found_mask, true_mask = found_mask & ~ignore, true_mask & ~ignore
    size = int(true_mask.sum())
    return 2.0 * int((found_mask & true_mask).sum()) / (size + int(found_mask.sum())) if size else nan


@dataclass(frozen=True)
class Matches:
    """Pairs of true and found lesions, one to one.

    Attributes:
        pairs: True id to found id.
        missed: Ids of true lesions without a found lesion.
        false: Ids of found lesions without a true lesion.
        ignored: Ids of found lesions that do not count: unmatched, and more than half of each lies in ignored voxels.
    """

    pairs: dict[int, int]
    missed: tuple[int, ...]
    false: tuple[int, ...]
    ignored: tuple[int, ...]

    @property
    def precision(self) -> float:
        """Share of the found lesions that are true; NaN if nothing was found."""
        found = len(self.pairs) + len(self.false)
        return len(self.pairs) / found if found else nan

    @property
    def recall(self) -> float:
        """Share of the true lesions that were found; NaN if no lesion is true."""
        true = len(self.pairs) + len(self.missed)
        return len(self.pairs) / true if true else nan

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); NaN without any true or found lesion."""
        total = 2 * len(self.pairs) + len(self.false) + len(self.missed)
        return 2 * len(self.pairs) / total if total else nan


@dataclass(frozen=True)
class Overlap:
    """Number of voxels that each of F found lesions shares with each of L true lesions.

    Attributes:
        found_ids: (F,) int32, ascending.
        true_ids: (L,) int32, ascending.
        shared: (F, L) int64 voxels.
        found_voxels: (F,) int64, voxels that are not ignored.
        ignored_voxels: (F,) int64, ignored voxels.
        true_voxels: (L,) int64.
    """

    found_ids: npt.NDArray[np.int32]
    true_ids: npt.NDArray[np.int32]
    shared: npt.NDArray[np.int64]
    found_voxels: npt.NDArray[np.int64]
    ignored_voxels: npt.NDArray[np.int64]
    true_voxels: npt.NDArray[np.int64]

    @classmethod
    def of(cls, found_map: InstanceMap, true_map: InstanceMap, ignore: Mask | None = None) -> Overlap:
        """Count the voxels in one pass.

        Args:
            found_map: Instance map of any shape, int32, 0 is background.
            true_map: Instance map, same shape.
            ignore: Voxels of `found_map` that do not count, bool, or None. Voxels of true lesions always count.
        """
        foreground = np.flatnonzero((found_map != 0) | (true_map != 0))
        found_at, true_at = found_map.reshape(-1)[foreground], true_map.reshape(-1)[foreground]
        found_ids, rows = compact_ids(found_at)
        true_ids, columns = compact_ids(true_at)
        hidden = np.zeros(len(foreground), dtype=np.int64)
        if ignore is not None:
            hidden = (ignore.reshape(-1)[foreground] & (true_at == 0)).astype(np.int64)
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
        """Return the voxel Dice of all found lesions against all true lesions; NaN without true lesions."""
        size = int(self.true_voxels.sum())
        return 2.0 * int(self.shared.sum()) / (size + int(self.found_voxels.sum())) if size else nan

    def panoptic_quality(self, min_iou: float = PANOPTIC_IOU) -> float:
        """Return the panoptic quality: sum of IoU / (pairs + half of the false lesions + half of the missed lesions).

        Args:
            min_iou: Smallest IoU of a matched pair.

        Returns:
            0 to 1; NaN without any true or found lesion.

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
        """Return found volume minus true volume, in millilitres."""
        return (int(self.found_voxels.sum()) - int(self.true_voxels.sum())) * voxel_ml

    def volume_error_percent(self) -> float:
        """Return found volume minus true volume, in percent of the true volume; NaN without true lesions."""
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
        """Return the ids of the found lesions that share no voxel with a true lesion."""
        return set(self.found_ids[~(self.shared > 0).any(1)].tolist())

    def match(self, min_iou: float = MATCH_IOU) -> Matches:
        """Pair found and true lesions one to one, so that the sum of IoU is largest. Each pair reaches `min_iou`.

        A found lesion that covers five true lesions matches at most one of them. A true lesion that was found in five
        pieces matches one piece.
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
    found_map: InstanceMap, true_map: InstanceMap, ignore: Mask | None = None, min_iou: float = MATCH_IOU
) -> Matches:
    """Pair the lesions of two instance maps one to one; see `Overlap.match`."""
    return Overlap.of(found_map, true_map, ignore).match(min_iou)


def lesion_f1(
    found_map: InstanceMap, true_map: InstanceMap, ignore: Mask | None = None, min_iou: float = MATCH_IOU
) -> float:
    """Return the lesion F1 of two instance maps; see `Matches.f1`.

    Examples:
        >>> found_map, true_map = np.array([5, 5, 0, 0]), np.array([1, 1, 2, 2])
        >>> round(lesion_f1(found_map, true_map), 2)  # 1 found, 0 false, 1 missed
        0.67
    """
    return match_lesions(found_map, true_map, ignore, min_iou).f1


def any_overlap(found_map: InstanceMap, true_map: InstanceMap) -> Matches:
    """Return matches by the paper's rule: a true lesion counts as found if any of its voxels was found.

    Use it only for comparison with the table of the paper: a single found lesion over the whole scan has an F1 of 1.

    Returns:
        Matches whose `pairs` give each true lesion one found lesion that touches it. Several true lesions may share a
        found lesion.
    """
    overlap = Overlap.of(found_map, true_map)
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
