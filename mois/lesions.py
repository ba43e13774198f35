"""Lesions as instance maps: components of a mask, splitting of touching lesions, volumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

from mois.grid import Edges, Spacing, edges_of
from mois.machine.steps import Steps, finish


@dataclass(frozen=True)
class Candidates:
    """K regions that may be lesions.

    Attributes:
        lesions: Instance map (S, H, W) int32, ids 1..K.
        peaks: (K,) float32, highest probability in each region; of an answer, at its level of peaks.
    """

    lesions: InstanceMap
    peaks: npt.NDArray[np.float32]

    def sure(self, peak_threshold: float) -> Candidates:
        """Return the candidates that reach this probability, renumbered."""
        keep = self.peaks >= peak_threshold
        table = np.concatenate([[False], keep])
        voxels = LesionVoxels.of(self.lesions)
        number = (np.cumsum(table) * table).astype(np.int32)
        return Candidates(voxels._replace(lesion=number[voxels.lesion]).map(), self.peaks[keep])


def find_candidates(
    probability: npt.NDArray[np.float32],
    threshold: float,
    min_voxels: int = 1,
    part: Callable[[InstanceMap], Steps[InstanceMap]] | None = None,
) -> Candidates:
    """Return the regions of a probability map that may be lesions.

    Args:
        probability: (S, H, W) float32.
        threshold: Probability from which a voxel belongs to a region.
        min_voxels: Smallest region.
        part: Parts the touching lesions of an instance map, in steps; None parts no region.

    Returns:
        The 26-connected components, parted if asked for.
    """
    return finish(find_candidates_steps(probability, threshold, min_voxels, part))


def find_candidates_steps(
    probability: npt.NDArray[np.float32],
    threshold: float,
    min_voxels: int = 1,
    part: Callable[[InstanceMap], Steps[InstanceMap]] | None = None,
) -> Steps[Candidates]:
    """Do what `find_candidates` does, in steps."""
    lesions = components(probability >= threshold, min_voxels)
    yield None
    if part is not None:
        lesions = yield from part(lesions)
    where, inside, _ = LesionVoxels.of(lesions)  # ndimage.maximum would sort the whole scan: 70 times slower
    peaks = np.zeros(int(inside.max(initial=0)), dtype=np.float32)
    np.maximum.at(peaks, inside - 1, probability.reshape(-1)[where])
    return Candidates(lesions, peaks)


def components(mask: npt.NDArray[np.bool_], min_voxels: int = 1) -> InstanceMap:
    """Return the 26-connected components of at least `min_voxels` voxels, int32, ids 1..K."""
    # not of a bool: of thin ones, cc3d 4.1.1 labels voxels outside of the mask (tests/unit/test_components_of_masks.py)
    labels = np.asarray(cc3d.connected_components(mask.view(np.uint8), connectivity=26))
    label = labels[mask]
    large = np.bincount(label, minlength=1) >= min_voxels
    large[0] = False
    lesions = np.zeros(mask.shape, dtype=np.int32)
    lesions[mask] = (np.cumsum(large) * large).astype(np.int32)[label]  # a table for every voxel: 5 times as long
    return lesions


Mask = npt.NDArray[np.bool_]

InstanceMap = npt.NDArray[np.int32]


class LesionVoxels(NamedTuple):
    """The voxels of an instance map that belong to lesions: few, where a scan has many.

    Attributes:
        where: (N,) int64, ascending: the voxels' places in the flat map.
        lesion: (N,) int32, the lesion of each.
        shape: Shape of the map.
    """

    where: npt.NDArray[np.int64]
    lesion: InstanceMap
    shape: tuple[int, ...]

    @classmethod
    def of(cls, lesions: InstanceMap) -> LesionVoxels:
        """Return the voxels of an instance map of any shape."""
        flat = lesions.reshape(-1)
        where = np.flatnonzero(flat != 0)  # of bool: a sixth of the time
        return cls(where, flat[where], lesions.shape)

    def pick(self, keep: Mask) -> LesionVoxels:
        """Return some of the voxels; `keep` is (N,) bool."""
        return self._replace(where=self.where[keep], lesion=self.lesion[keep])

    def map(self) -> InstanceMap:
        """Return the instance map."""
        lesions = np.zeros(self.shape, dtype=np.int32)
        lesions.reshape(-1)[self.where] = self.lesion
        return lesions


def dilate_in_plane(mask: Mask, radius_px: int) -> Mask:
    """Return a stack of masks grown by a square of `radius_px` pixels within each slice.

    Args:
        mask: (S, H, W) bool.
        radius_px: Growth along rows and along columns in pixels; 0 changes nothing.
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

    Examples:
        >>> lesion_volumes_ml(np.array([0, 1, 1, 7]), voxel_ml=0.5)
        {1: 1.0, 7: 0.5}
    """
    ids, counts = np.unique(lesions[lesions != 0], return_counts=True)
    return {int(lesion): int(count) * voxel_ml for lesion, count in zip(ids, counts, strict=True)}


def compact_ids(ids: InstanceMap) -> tuple[InstanceMap, npt.NDArray[np.int64]]:
    """Return the distinct ids, 0 first, and the index of each element among them."""
    top = int(ids.max(initial=0))
    if top >= 1 << 22:
        distinct, index = np.unique(np.append(ids, np.int32(0)), return_inverse=True)
        return distinct.astype(np.int32), index[:-1]
    # a table of the ids that occur: 10 times faster than sorting a million voxels
    occurs = np.bincount(ids, minlength=top + 1) > 0
    occurs[0] = True
    return np.flatnonzero(occurs).astype(np.int32), (np.cumsum(occurs) - 1)[ids]


def renumber(lesions: InstanceMap, to: Mapping[int, int]) -> InstanceMap:
    """Return an instance map of any shape with other ids. An id without an entry in `to` becomes 0.

    The cost depends on the number of ids, not on their size: ids reach 2147483647.

    Examples:
        >>> renumber(np.array([0, 1, 1, 7]), {7: 2})
        array([0, 0, 0, 2], dtype=int32)
    """
    distinct, index = compact_ids(lesions.reshape(-1))
    table = np.array([to.get(int(one), 0) for one in distinct], dtype=np.int32)
    return table[index].reshape(lesions.shape)


RIGHT_ANGLE = 1e-6
"""Largest cosine between two axes that counts as a right angle."""

_CUBE = np.ones((3, 3, 3), dtype=np.int8)

_AHEAD = [(a, b, c) for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1) if (a, b, c) > (0, 0, 0)]


def split_touching(
    lesions: InstanceMap, spacing_mm: Spacing | Edges, prominence_mm: float, min_voxels: int = 1
) -> InstanceMap:
    """Split lesions that touch, by a watershed of the distance to the border of the lesion.

    The depth of a voxel is its distance to the border. Two parts become two lesions if each part is deeper than their
    common border by the prominence. Example: two balls of 8 mm radius with a waist of 5 mm radius have a prominence of
    3 mm. A part that is too small joins the part with the deepest common border.

    Args:
        lesions: Instance map (S, H, W) int32.
        spacing_mm: Edges of a voxel, as for `mois.metrics.surface.surface_dice`.
        prominence_mm: Prominence from which two parts are two lesions, in mm; above 0.
        min_voxels: Smallest lesion.

    Returns:
        Instance map (S, H, W) int32, ids 1..K. The parts of a lesion have consecutive ids.
    """
    return finish(split_touching_steps(lesions, spacing_mm, prominence_mm, min_voxels))


def split_touching_steps(
    lesions: InstanceMap, spacing_mm: Spacing | Edges, prominence_mm: float, min_voxels: int = 1
) -> Steps[InstanceMap]:
    """Do what `split_touching` does, lesion by lesion."""
    out = np.zeros_like(lesions)
    count = 0
    for number, where in enumerate(ndimage.find_objects(lesions), start=1):
        if where is None:
            continue
        parts = _parts(lesions[where] == number, spacing_mm, prominence_mm, min_voxels)
        out[where] += np.where(parts > 0, parts + count, 0).astype(np.int32)
        count += int(parts.max())
        yield None
    return out


def _parts(mask: Mask, spacing_mm: Spacing | Edges, prominence_mm: float, min_voxels: int) -> npt.NDArray[np.int64]:
    """Return the parts of one lesion with ids 1..n."""
    depth = depth_mm(mask, edges_of(spacing_mm))
    top = depth.max()
    if top < prominence_mm:
        return mask.astype(np.int64)
    peaks = (ndimage.maximum_filter(depth, footprint=_CUBE) <= depth) & (depth > 0)
    markers, count = ndimage.label(peaks, structure=_CUBE)
    if count == 1:
        return mask.astype(np.int64)
    basins = _peak_of_each_voxel(depth, np.asarray(markers, dtype=np.int64))
    peak = np.asarray(ndimage.maximum(depth, basins, np.arange(count + 1)), dtype=np.float64)
    voxels = np.bincount(basins.ravel(), minlength=count + 1)
    owner = _join_basins(_saddles(basins, depth), peak, voxels, prominence_mm, min_voxels)
    _, numbers = np.unique(owner[basins], return_inverse=True)
    return numbers.reshape(basins.shape)[1:-1, 1:-1, 1:-1]  # 0 is the background, because the padding holds some


def depth_mm(mask: Mask, edges_mm: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the distance of each voxel to the nearest voxel outside, in mm.

    The mask is padded by one voxel first, so the result is larger by 2 along each axis.

    Args:
        mask: (S, H, W) bool.
        edges_mm: (3, 3), steps to the next slice, row and column.
    """
    products = edges_mm @ edges_mm.T
    squares = np.diag(products)
    leaning = np.abs(products - np.diag(squares)) / np.sqrt(np.outer(squares, squares))
    if leaning.max() < RIGHT_ANGLE:
        depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=np.sqrt(squares))
        return np.asarray(depth, dtype=np.float64)
    # if axes are not at right angles, the nearest voxel outside can lie several voxels beyond the end of the mask
    beyond = 1 + np.ceil((np.abs(products).sum(1) - squares) / squares).astype(int)
    wide = np.pad(mask, [(int(count), int(count)) for count in beyond])
    distances, _ = KDTree(np.argwhere(~wide) @ edges_mm).query(np.argwhere(wide) @ edges_mm)
    depth = np.zeros(wide.shape)
    depth[wide] = distances
    return depth[tuple(slice(count - 1, 1 - count or None) for count in beyond.tolist())]


def _peak_of_each_voxel(depth: npt.NDArray[np.float64], markers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the peak that each voxel reaches by climbing to its deepest neighbour; 0 outside."""
    numbers = np.arange(depth.size).reshape(depth.shape)
    steepest, highest = numbers.copy(), depth.copy()
    for shift in [*_AHEAD, *(tuple(-step for step in ahead) for ahead in _AHEAD)]:
        here, there = _neighbours(depth.shape, shift)
        better = depth[there] > highest[here]
        highest[here] = np.where(better, depth[there], highest[here])
        steepest[here] = np.where(better, numbers[there], steepest[here])
    target = steepest.ravel()
    while not np.array_equal(target, further := target[target]):
        target = further
    return np.where(depth > 0, markers.ravel()[target].reshape(depth.shape), 0).astype(np.int64)


def _neighbours(shape: tuple[int, ...], shift: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the slices of the voxels with a neighbour in this direction, and the slices of these neighbours."""
    here = tuple(slice(max(0, -step), n - max(0, step)) for step, n in zip(shift, shape, strict=True))
    there = tuple(slice(max(0, step), n - max(0, -step)) for step, n in zip(shift, shape, strict=True))
    return here, there


def _saddles(basins: npt.NDArray[np.int64], depth: npt.NDArray[np.float64]) -> list[tuple[float, int, int]]:
    """Return the depth of the border between touching basins, and the two basins, deepest border first."""
    first, second, between = [], [], []
    for shift in _AHEAD:
        here, there = _neighbours(basins.shape, shift)
        meet = (basins[here] != basins[there]) & (basins[here] > 0) & (basins[there] > 0)
        first.append(basins[here][meet])
        second.append(basins[there][meet])
        between.append(np.minimum(depth[here][meet], depth[there][meet]))
    pairs = np.sort(np.stack([np.concatenate(first), np.concatenate(second)]), axis=0)
    distinct, index = np.unique(pairs, axis=1, return_inverse=True)
    deepest = np.zeros(distinct.shape[1])
    np.maximum.at(deepest, index.ravel(), np.concatenate(between))
    order = sorted(range(len(deepest)), key=lambda n: (-deepest[n], n))
    return [(float(deepest[n]), int(distinct[0, n]), int(distinct[1, n])) for n in order]


def _join_basins(
    saddles: list[tuple[float, int, int]],
    peak: npt.NDArray[np.float64],
    voxels: npt.NDArray[np.int64],
    prominence_mm: float,
    min_voxels: int,
) -> npt.NDArray[np.int64]:
    """Return the basin that each basin is joined to.

    Basins are joined at their common border, deepest border first, unless the border is a waist.
    """
    owner = np.arange(len(peak))
    for depth, first, second in saddles:
        a, b = int(owner[first]), int(owner[second])
        if a == b:
            continue
        waist = min(peak[a], peak[b]) - depth
        if waist < prominence_mm or min(voxels[a], voxels[b]) < min_voxels:
            kept, gone = (a, b) if (peak[a], -a) >= (peak[b], -b) else (b, a)
            owner[owner == gone] = kept
            voxels[kept] += voxels[gone]
    return owner
