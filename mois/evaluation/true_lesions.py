"""The true lesions of a scan, and which of them the reader prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from mois.evaluation.figures import BodyThird
from mois.evaluation.reader import Reader
from mois.evaluation.settings import ProtocolSettings
from mois.geometry import SliceGrid
from mois.grid import Edges
from mois.intensities import levels, normalise
from mois.lesions import InstanceMap, LesionVoxels, Mask, dilate_in_plane, lesion_volumes_ml
from mois.metrics.counts import VoxelCounts
from mois.records import Volume


@dataclass(frozen=True)
class ClassPlan:
    """Which lesions of one class the simulated reader prompts.

    Attributes:
        promptable: Ids of the lesions that may be prompted.
        never: Ids of the lesions that are never prompted, whatever the number of prompts.
        order: Ids in the order in which they are prompted.
    """

    promptable: tuple[int, ...]
    never: tuple[int, ...]
    order: tuple[int, ...]

    @classmethod
    def of(cls, volumes_ml: dict[int, float], reader: Reader, count: int) -> ClassPlan:
        """Choose the lesions of a class that are prompted.

        Args:
            volumes_ml: Lesion id to volume in millilitres.
            reader: The simulated reader.
            count: Largest number of prompted lesions.
        """
        promptable, never = reader.hold_out(volumes_ml)
        order = reader.choose_lesions({lesion: volumes_ml[lesion] for lesion in promptable}, count)
        return cls(tuple(promptable), tuple(never), tuple(order))

    @property
    def lesions(self) -> tuple[int, ...]:
        """All lesions of the class, ascending."""
        return tuple(sorted(self.promptable + self.never))


class Surroundings(NamedTuple):
    """Position and contrast of a lesion; see `TrueLesionRow`."""

    x_mm: float
    y_mm: float
    z_mm: float
    third: BodyThird
    contrast: float | None


@dataclass(frozen=True)
class TrueLesions:
    """The true lesions on the scan's own pixels.

    Attributes:
        ids: (L,) int32, ids in the volume's instance map, ascending.
        index: (S, H, W) int32; 0 is background, n + 1 is the n-th of `ids`.
        classes: Id to class.
        volumes_ml: Id to volume.
        voxel_ml: Volume of one voxel.
        edges_mm: Steps to the next slice, row and column (`mois.grid.Edges`).
        surroundings: Id to position and contrast.
        slice_voxels: (S, L) int64, voxels of each lesion on each slice.
    """

    ids: npt.NDArray[np.int32]
    index: InstanceMap
    classes: dict[int, int]
    volumes_ml: dict[int, float]
    voxel_ml: float
    edges_mm: Edges
    surroundings: dict[int, Surroundings]
    slice_voxels: npt.NDArray[np.int64]

    @classmethod
    def of(cls, volume: Volume, grid: SliceGrid) -> TrueLesions:
        """Measure the lesions of a volume.

        Raises:
            ValueError: If a lesion has no class.
        """
        lesions = grid.to_stack(volume.lesions.cpu()).contiguous().numpy()
        where = np.flatnonzero(lesions != 0)
        ids, order = np.unique(lesions.reshape(-1)[where], return_inverse=True)
        unnamed = [int(lesion) for lesion in ids if int(lesion) not in volume.classes]
        if unnamed:
            raise ValueError(
                f"{volume.subject}: lesions {unnamed[:5]} have no class; give Volume.classes an entry for each."
            )
        index = np.zeros(lesions.shape, dtype=np.int32)
        index.reshape(-1)[where] = order + 1
        slices = where // (lesions.shape[1] * lesions.shape[2])
        per_slice = np.bincount(slices * len(ids) + order, minlength=len(lesions) * len(ids))
        voxel_ml = volume.voxel_ml
        return cls(
            ids=ids.astype(np.int32),
            index=index,
            classes={int(lesion): volume.classes[int(lesion)] for lesion in ids},
            volumes_ml=lesion_volumes_ml(lesions.reshape(-1)[where], voxel_ml),
            voxel_ml=voxel_ml,
            edges_mm=grid.edges_mm,
            surroundings=_surroundings(volume, grid, ids, index),
            slice_voxels=per_slice.reshape(len(lesions), len(ids)),
        )

    def volumes_of_class(self, target_class: int) -> dict[int, float]:
        """Return the lesions of a class: id to volume in millilitres."""
        return {lesion: ml for lesion, ml in self.volumes_ml.items() if self.classes[lesion] == target_class}

    def only(self, lesions: Iterable[int]) -> InstanceMap:
        """Return the instance map (S, H, W) int32 of some lesions, with their own ids."""
        return self.voxels_of(lesions).map()

    @cached_property
    def voxels(self) -> LesionVoxels:
        """Voxels of all lesions; `lesion` holds n + 1 for the n-th of `ids`."""
        return LesionVoxels.of(self.index)

    def voxels_of(self, lesions: Iterable[int]) -> LesionVoxels:
        """Return the voxels of some lesions, with their own ids."""
        table = np.zeros(len(self.ids) + 1, dtype=np.int32)
        kept = np.isin(self.ids, np.fromiter(lesions, dtype=np.int32))
        table[1:][kept] = self.ids[kept]
        ids = table[self.voxels.lesion]
        return self.voxels._replace(lesion=ids).pick(ids > 0)

    def count(self, found: LesionVoxels, ignore: Mask | None = None) -> VoxelCounts:
        """Count how many voxels found lesions share with each true lesion, in one pass over the found lesions.

        Args:
            found: The found lesions.
            ignore: (S, H, W) bool: found voxels that do not count, unless they lie in a lesion that is scored.
        """
        return VoxelCounts.of(found, self.index, self.ids, self.slice_voxels.sum(0), ignore)

    def largest_slice(self, lesion: int) -> int:
        """Return the slice on which a lesion is largest."""
        return self.clicked_slice(lesion, Reader())

    def clicked_slice(self, lesion: int, reader: Reader) -> int:
        """Return the slice on which a reader clicks a lesion."""
        return reader.choose_slice(lesion, self.slice_voxels[:, np.searchsorted(self.ids, lesion)])

    def outline(self, lesion: int, slice_index: int, grid: SliceGrid, pixel_mm: float) -> Tensor:
        """Return a lesion on a slice at the model's pixel size, (h, w) bool, never empty.

        If resampling loses a very small lesion, its brightest resampled pixel stands for it.
        """
        position = int(np.searchsorted(self.ids, lesion)) + 1
        mask = torch.from_numpy(self.index[slice_index : slice_index + 1] == position).float()
        size = grid.picture_shape(pixel_mm)
        soft = functional.interpolate(mask.unsqueeze(0), size, mode="bilinear", antialias=True)[0, 0]
        return soft >= soft.amax().clamp(max=0.5)


@dataclass(frozen=True)
class ScanPlan:
    """Which lesions of a scan are prompted, and which are scored.

    Attributes:
        lesions: The true lesions.
        classes: Plan for the lesions of each class.
        scored: Classes that are scored.
        taken_out: (S, H, W) bool, all lesions that may be prompted, with a margin. They are left out of `right` and
            `wrong`.
    """

    lesions: TrueLesions
    classes: dict[int, ClassPlan]
    scored: list[int]
    taken_out: Mask

    @classmethod
    def of(cls, volume: Volume, grid: SliceGrid, settings: ProtocolSettings) -> ScanPlan:
        """Measure the lesions of a scan, and choose the prompted lesions.

        Raises:
            ValueError: If a lesion has no class.
        """
        lesions = TrueLesions.of(volume, grid)
        most = max(settings.prompted, *settings.counts, 0)
        classes = {
            target_class: ClassPlan.of(lesions.volumes_of_class(target_class), settings.reader, most)
            for target_class in sorted(set(lesions.classes.values()))
        }
        promptable = [lesion for plan in classes.values() for lesion in plan.promptable]
        taken_out: Mask = dilate_in_plane(lesions.only(promptable) > 0, settings.margin_px)
        return cls(lesions, classes, settings.scored(classes, ()), taken_out)


RING_PX = 2
"""Width in pixels of the ring around a lesion. The contrast is measured against this ring."""


def _surroundings(
    volume: Volume, grid: SliceGrid, ids: npt.NDArray[np.int32], index: InstanceMap
) -> dict[int, Surroundings]:
    """Return position and contrast of each lesion, by id."""
    if not len(ids):
        return {}
    raw = volume.image.float().cpu()
    known = levels(raw, channel=volume.channel, known=volume.levels)
    image, outside = grid.view(raw), None if known.outside is None else grid.view(known.outside.cpu())
    ends = torch.tensor(list(product(*((-0.5, size - 0.5) for size in index.shape))), dtype=torch.float64)
    lowest, highest = (float(end) for end in grid.to_lps_mm(ends)[:, 2].aminmax())
    surroundings = {}
    for position, (lesion, box) in enumerate(zip(ids, ndimage.find_objects(index), strict=True), start=1):
        across, rows, columns = box
        wide_box = (across, *(slice(max(0, side.start - RING_PX), side.stop + RING_PX) for side in (rows, columns)))
        lesions_in_box = index[wide_box]
        inside = lesions_in_box == position
        centre = np.argwhere(inside).mean(0) + [part.start for part in wide_box]
        x_mm, y_mm, z_mm = (float(value) for value in grid.to_lps_mm(torch.from_numpy(centre[None]))[0])
        share = (z_mm - lowest) / (highest - lowest)
        third: BodyThird = "lower" if share < 1 / 3 else "middle" if share < 2 / 3 else "upper"
        ring = dilate_in_plane(inside, RING_PX) & (lesions_in_box == 0)
        contrast = None
        if ring.any():
            part = known._replace(outside=None if outside is None else torch.from_numpy(outside[wide_box].copy()))
            seen = normalise(torch.from_numpy(image[wide_box].copy()), known.rule, known=part).numpy()
            contrast = float(seen[inside].mean() - seen[ring].mean())
        surroundings[int(lesion)] = Surroundings(x_mm, y_mm, z_mm, third, contrast)
    return surroundings
