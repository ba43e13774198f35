"""Lesions that touch come apart by their cores, which a model has learned (`SemanticPrediction.cores`).

Where slices are dense and the exemplars are compact, shape tells more than cores (`waist_of`, `split_touching`).

    mask and cores on a slice -> regions, one for each core -> regions of all slices are linked -> lesions

A slice says which regions are different lesions; neighbouring slices say which regions are the same lesion.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mois.grid import Edges, Spacing, edges_of
from mois.lesions import InstanceMap, Mask
from mois.machine.steps import Steps, finish

# All numbers below were chosen on phantoms, round and plexiform: with true cores, and SURE with learned cores.
SURE = 0.9
"""A core has a pixel of this probability."""

JOINED = 0.35
"""Cores are one core if pixels of this probability join them: so a waist needs a clear gap between cores."""

SMALLEST_PX = 4
SMALLEST_SHARE = 0.1
"""A core with fewer pixels, or with a smaller share of the largest core beside it, parts nothing."""

OVERLAP = 0.8
"""Two regions on neighbouring slices are one lesion if so much of the smaller one overlaps, whatever a slice says."""

WEAK_OVERLAP = 0.5
STEEP = 0.5
"""Lesions may lie on top of each other where slices are dense: the gap is below this share of the lesions' radius."""

COMPACT = 2.0
"""An exemplar is compact if its area is at most so many times that of its largest disc: nuclei 1.2 to 1.9, lobed 3."""

DENSE = 0.25
"""Slices are dense for a shape if they are thinner than this share of the exemplars' radius."""

WAIST = 0.25
"""How much thinner a waist is than the lesions beside it, as a share of the exemplars' radius."""

_LEVELS = 32  # of the flooding, from the deepest pixel to the border


def waist_of(outlines: Mask, pixel_mm: float, spacing_mm: Spacing | Edges) -> float:
    """Return how much thinner a waist must be than the lesions beside it, for shape to part lesions like these.

    Lobed lesions have waists themselves. And across thick slices, lesions change their place too much for a shape. So
    only compact exemplars in dense slices give a waist. Of each outline, the largest piece counts.

    Args:
        outlines: (N, H, W), exemplars of a scan, each on a slice.
        pixel_mm: Edge of a pixel.
        spacing_mm: Edges of a voxel of the scan, as for `part_by_cores`.

    Returns:
        The prominence for `split_touching` in mm; 0 if shape parts nothing.
    """
    radius_mm, discs = [], []
    for outline in outlines:
        pieces, count = ndimage.label(outline, np.ones((3, 3)))
        if count:
            piece = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
            radius = float(ndimage.distance_transform_edt(np.pad(piece, 1)).max())
            radius_mm.append(radius * pixel_mm)
            discs.append(piece.sum() / (np.pi * radius**2))
    slices_mm = float(np.linalg.norm(edges_of(spacing_mm)[0]))
    if not radius_mm or np.median(discs) > COMPACT or slices_mm >= DENSE * np.median(radius_mm):
        return 0.0
    return float(WAIST * np.median(radius_mm))


def part_by_cores(
    lesions: InstanceMap, cores: npt.NDArray[np.floating], spacing_mm: Spacing | Edges, min_voxels: int = 1
) -> InstanceMap:
    """Part lesions that touch. Every voxel keeps one id, and no voxel is lost.

    - On a slice, a lesion with several cores is flooded from them, deepest pixels first: one region for each core.
    - Regions of one lesion on neighbouring slices are joined, the largest overlap first. Regions that were parted on a
      slice are not joined, unless both overlap almost wholly with the same region.
    - Where slices are dense, regions whose cores do not overlap are not joined either.

    Args:
        lesions: Instance map (S, H, W) int32.
        cores: Probability of a core, (S, H, W) float.
        spacing_mm: Edges of a voxel, as for `mois.metrics.surface.surface_dice`.
        min_voxels: Smallest lesion; a smaller part joins the part that it touches most.

    Returns:
        Instance map (S, H, W) int32, ids 1..K. The parts of a lesion have consecutive ids.
    """
    return finish(part_by_cores_steps(lesions, cores, spacing_mm, min_voxels))


def part_by_cores_steps(
    lesions: InstanceMap, cores: npt.NDArray[np.floating], spacing_mm: Spacing | Edges, min_voxels: int = 1
) -> Steps[InstanceMap]:
    """Do what `part_by_cores` does, lesion by lesion."""
    slices_mm, rows_mm, columns_mm = (float(np.linalg.norm(edge)) for edge in edges_of(spacing_mm))
    out = np.zeros_like(lesions)
    count = 0
    for number, where in enumerate(ndimage.find_objects(lesions), start=1):
        if where is None:
            continue
        inside = lesions[where] == number
        regions = _regions(inside, cores[where], (rows_mm, columns_mm))
        parts = _join_small(_link(regions, slices_mm, rows_mm * columns_mm)[regions.ids], min_voxels)
        out[where] += np.where(inside, parts + count, 0).astype(np.int32)
        count += int(parts.max())
        yield None
    return out


class _Regions(NamedTuple):
    """Regions of a lesion, each on one slice.

    Attributes:
        ids: (S, H, W) int64, ids 1..R; 0 is background.
        core: (S, H, W) bool, the core of each region; a region without a core is core as a whole.
        piece: (R,) int64, the connected piece of a slice that each region lies in.
    """

    ids: npt.NDArray[np.int64]
    core: Mask
    piece: npt.NDArray[np.int64]


def _regions(inside: Mask, cores: npt.NDArray[np.floating], pixel_mm: tuple[float, float]) -> _Regions:
    """Return the regions of one lesion (S, H, W)."""
    ids, core = np.zeros(inside.shape, dtype=np.int64), np.zeros(inside.shape, dtype=bool)
    homes: list[npt.NDArray[np.int64]] = []
    regions = pieces_before = 0
    for index, mask in enumerate(inside):
        pieces, piece_count = cc3d.connected_components(mask.view(np.uint8), connectivity=8, return_N=True)
        seeds, home = _seeds(mask, cores[index], pieces)
        several = np.bincount(home, minlength=piece_count + 1) > 1
        lone = np.flatnonzero(~np.isin(np.arange(1, piece_count + 1), home)) + 1  # pieces without a core
        number = np.zeros(piece_count + 1, dtype=np.int64)
        number[home] = np.arange(1, len(home) + 1)
        number[lone] = len(home) + np.arange(1, len(lone) + 1)
        on_slice = np.where(several[pieces], seeds, number[pieces])
        if several.any():
            depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=pixel_mm)[1:-1, 1:-1]
            on_slice = _flood(on_slice, np.asarray(depth), several[pieces])
        ids[index] = np.where(mask, on_slice + regions, 0)
        core[index] = (seeds > 0) | np.isin(pieces, lone)
        homes.append(np.concatenate([home, lone]) + pieces_before)
        regions += len(home) + len(lone)
        pieces_before += piece_count
    return _Regions(ids, core, np.concatenate(homes))


def _seeds(
    mask: Mask, cores: npt.NDArray[np.floating], pieces: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the cores on a slice that count, (H, W) with ids 1..n, and the piece that each lies in, (n,)."""
    sure = (mask & (cores > JOINED)).view(np.uint8)
    parts, count = cc3d.connected_components(sure, connectivity=8, return_N=True)
    at = parts.ravel()
    highest, home = np.zeros(count + 1), np.zeros(count + 1, dtype=np.int64)
    np.maximum.at(highest, at, cores.ravel())
    home[at] = pieces.ravel()
    size = np.bincount(at, minlength=count + 1)
    size[highest <= SURE] = 0
    size[0] = 0
    largest = np.zeros(int(pieces.max(initial=0)) + 1, dtype=np.int64)
    np.maximum.at(largest, home, size)
    keep = size >= np.maximum(SMALLEST_PX, SMALLEST_SHARE * largest[home])
    return (np.cumsum(keep) * keep)[parts].astype(np.int64), home[keep]


def _flood(seeds: npt.NDArray[np.int64], depth: npt.NDArray[np.float64], where: Mask) -> npt.NDArray[np.int64]:
    """Flood pixels from seeds, deepest pixels first.

    Args:
        seeds: (H, W), ids of the seeds, 0 for a pixel to flood.
        depth: (H, W), distance of a pixel to the border in mm.
        where: (H, W), pixels that the flood may reach: connected pieces with a seed each.

    Returns:
        (H, W), the seeds and what was flooded from each.
    """
    wide = np.pad(where, 1)
    at = np.flatnonzero(wide)
    number = np.full(wide.size, len(at))
    number[at] = np.arange(len(at))
    across = wide.shape[1]
    steps = [row * across + column for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column]
    beside = np.stack([number[at + step] for step in steps], axis=1)  # (N, 8), N for a pixel outside
    owner, height = np.append(seeds[where], 0), np.append(depth[where], -1.0)
    for level in np.linspace(height.max(), 0, _LEVELS + 1)[1:]:
        dry = np.flatnonzero((owner[:-1] == 0) & (height[:-1] >= level))
        while len(dry):
            there = owner[beside[dry]]  # (n, 8)
            deepest = np.where(there > 0, height[beside[dry]], -2.0).argmax(1)
            reached = there[np.arange(len(dry)), deepest]
            if not reached.any():
                break
            owner[dry] = reached
            dry = dry[reached == 0]
    flooded = seeds.copy()
    flooded[where] = owner[:-1]
    return flooded


class _Contact(NamedTuple):
    """Two regions on neighbouring slices that touch: voxels on top of each other, and all pairs of neighbours."""

    overlap: int
    neighbours: int


def _contacts(ids: npt.NDArray[np.int64], reach: int) -> dict[tuple[int, int], _Contact]:
    """Return which regions touch across slices, also over corners with a reach of 1."""
    height, width = ids.shape[1:]
    size = int(ids.max()) + 1
    touching: dict[tuple[int, int], _Contact] = {}
    for down, right in product(range(-reach, reach + 1), repeat=2):
        here = (slice(max(0, -down), height - max(0, down)), slice(max(0, -right), width - max(0, right)))
        there = (slice(max(0, down), height - max(0, -down)), slice(max(0, right), width - max(0, -right)))
        one, other = ids[:-1, *here], ids[1:, *there]
        meet = (one > 0) & (other > 0)
        pairs, counts = np.unique(one[meet] * size + other[meet], return_counts=True)
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
            key = divmod(pair, size)
            before = touching.get(key, _Contact(0, 0))
            on_top = count if down == right == 0 else 0
            touching[key] = _Contact(before.overlap + on_top, before.neighbours + count)
    return touching


class _Clusters:
    """Regions that are joined to lesions.

    Args:
        pieces: (R,), the piece of a slice that each region lies in.
        radius_mm: (R + 1,), radius of each region, by id.
    """

    def __init__(self, pieces: npt.NDArray[np.int64], radius_mm: npt.NDArray[np.float64]) -> None:
        self.owner = list(range(len(pieces) + 1))
        self._members = [[region] for region in self.owner]
        self._pieces = [{-1}, *({piece} for piece in pieces.tolist())]
        self._radius_mm = radius_mm.tolist()

    def joined(self, one: int, other: int) -> bool:
        """Return whether two regions are one lesion."""
        return self.owner[one] == self.owner[other]

    def parted(self, one: int, other: int) -> bool:
        """Return whether the lesions of two regions lie side by side in a piece of a slice."""
        return not self._pieces[self.owner[one]].isdisjoint(self._pieces[self.owner[other]])

    def smaller_radius_mm(self, one: int, other: int) -> float:
        """Return the radius of the largest region of each lesion; the smaller one of both lesions."""
        return float(min(self._radius_mm[self.owner[one]], self._radius_mm[self.owner[other]]))

    def join(self, one: int, other: int) -> None:
        """Make the lesions of two regions one."""
        kept, gone = sorted((self.owner[one], self.owner[other]), key=lambda owner: -len(self._members[owner]))
        if kept == gone:
            return
        for region in self._members[gone]:
            self.owner[region] = kept
        self._members[kept] += self._members[gone]
        self._pieces[kept] |= self._pieces[gone]
        self._radius_mm[kept] = max(self._radius_mm[kept], self._radius_mm[gone])


def _link(regions: _Regions, gap_mm: float, pixel_mm2: float) -> npt.NDArray[np.int64]:
    """Return the part (R + 1,) of each region by id, 1..n; 0 stays 0.

    Args:
        regions: Regions of a lesion.
        gap_mm: Distance between slices.
        pixel_mm2: Area of a pixel.
    """
    pixels = np.bincount(regions.ids.ravel(), minlength=len(regions.piece) + 1)
    contacts = _contacts(regions.ids, reach=1)
    deep = _contacts(np.where(regions.core, regions.ids, 0), reach=0)
    share = {pair: contact.overlap / pixels[list(pair)].min() for pair, contact in contacts.items()}
    # cores on top of each other first, then the largest overlap
    order = sorted(contacts, key=lambda pair: (pair not in deep, -share[pair], -contacts[pair].neighbours, pair))
    clusters = _Clusters(regions.piece, np.sqrt(pixels * (pixel_mm2 / np.pi)))
    for pair in order:
        if pair in deep and share[pair] > OVERLAP:
            clusters.join(*pair)
    for pair in order:
        if clusters.joined(*pair) or clusters.parted(*pair):
            continue
        dense = gap_mm < STEEP * clusters.smaller_radius_mm(*pair)
        if pair in deep or share[pair] >= WEAK_OVERLAP or not dense:
            clusters.join(*pair)
    _, parts = np.unique(clusters.owner, return_inverse=True)
    return parts.astype(np.int64)


def _join_small(parts: npt.NDArray[np.int64], min_voxels: int) -> npt.NDArray[np.int64]:
    """Join each part that is too small to the part that it touches most. Return ids 1..n (S, H, W)."""
    size = np.bincount(parts.ravel())
    for part in (np.argsort(size[1:], kind="stable") + 1).tolist():
        if size[part] >= min_voxels:
            break
        own = parts == part
        around = ndimage.binary_dilation(own, np.ones((3, 3, 3), bool)) & ~own & (parts > 0)
        if around.any():
            joined = int(np.bincount(parts[around]).argmax())
            parts = np.where(own, joined, parts)
            size[joined] += size[part]
            size[part] = 0
    used = size > 0
    used[0] = False
    return (np.cumsum(used) * used)[parts].astype(np.int64)
