"""Voxels that found lesions share with the true lesions of a scan, counted once for all choices of true lesions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mois.lesions import InstanceMap, LesionVoxels, Mask, compact_ids
from mois.metrics.overlap import Overlap


@dataclass(frozen=True)
class VoxelCounts:
    """Number of voxels of each of F found lesions on each of L true lesions.

    Attributes:
        found_ids: (F,) int32, ascending.
        true_ids: (L,) int32, ascending.
        shared: (2, F, L + 1) int64; first the voxels outside of the ignored region, then those in it. Column 0 counts
            voxels on no true lesion, column n + 1 those on the n-th of `true_ids`.
        true_voxels: (L,) int64.
    """

    found_ids: npt.NDArray[np.int32]
    true_ids: npt.NDArray[np.int32]
    shared: npt.NDArray[np.int64]
    true_voxels: npt.NDArray[np.int64]

    @classmethod
    def of(
        cls,
        found: LesionVoxels,
        index: InstanceMap,
        true_ids: npt.NDArray[np.int32],
        true_voxels: npt.NDArray[np.int64],
        ignore: Mask | None = None,
    ) -> VoxelCounts:
        """Count in one pass over the found voxels.

        Args:
            found: The found lesions.
            index: True lesions, in the shape of the found map: n + 1 for the n-th of `true_ids`, 0 for none.
            true_ids: (L,), ascending.
            true_voxels: (L,), voxels of each true lesion.
            ignore: The ignored region, bool, in the same shape; None for none.
        """
        found_ids, rows = compact_ids(found.lesion)
        columns = index.reshape(-1)[found.where]
        inside = 0 if ignore is None else ignore.reshape(-1)[found.where].astype(np.int64)
        cells = (inside * len(found_ids) + rows) * (len(true_ids) + 1) + columns
        size = (2, len(found_ids), len(true_ids) + 1)
        table = np.bincount(cells, minlength=2 * size[1] * size[2]).reshape(size).astype(np.int64)
        return cls(found_ids[1:], true_ids, table[:, 1:], true_voxels)

    def overlap(self, lesions: Iterable[int]) -> Overlap:
        """Return the overlap with some of the true lesions, exactly as `Overlap.of` counts it on their map.

        A voxel in the ignored region counts if it lies in one of these lesions.
        """
        kept = np.isin(self.true_ids, np.fromiter(lesions, dtype=np.int32))
        on_kept = self.shared[:, :, 1:][:, :, kept].sum(0)
        inside = self.shared[1]
        ignored = inside[:, 0] + inside[:, 1:][:, ~kept].sum(1)
        return Overlap(
            found_ids=self.found_ids,
            true_ids=self.true_ids[kept],
            shared=on_kept,
            found_voxels=self.found_voxels - ignored,
            ignored_voxels=ignored,
            true_voxels=self.true_voxels[kept],
        )

    @property
    def found_voxels(self) -> npt.NDArray[np.int64]:
        """(F,), all voxels of each found lesion."""
        return np.asarray(self.shared.sum((0, 2)), dtype=np.int64)

    def apart(self) -> set[int]:
        """Return the ids of the found lesions that touch no true lesion."""
        return set(self.found_ids[~(self.shared[:, :, 1:] > 0).any((0, 2))].tolist())
