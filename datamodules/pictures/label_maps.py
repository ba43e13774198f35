"""Random label maps: the tissues that objects lie in, from smoothed noise, cells, layers, tubes, and shapes in shapes.

Source: Billot et al., SynthSeg, arXiv 2107.09559, and Dey et al., anatomix, arXiv 2411.02372 (learning on label maps of
any content); Perlin 1985 (noise of several scales); Worley 1996 (cells as a Voronoi diagram of random points).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from datamodules.phantoms.painting import Bool, Float, smooth_field
from datamodules.pictures.grids import Grid, log_uniform

_CELLS = 160
_Labels = NDArray[np.uint8]


class LabelMap(NamedTuple):
    """A map of the kinds of ground.

    Attributes:
        labels: (S, H, W) uint8, 0 to size - 1.
        size: Number of labels.
        blob_px: Width of pieces that could look like objects; infinite if there are none.
        outline: (S, H, W) bool, inside of the body; None if the map has no body.
    """

    labels: _Labels
    size: int
    blob_px: float
    outline: Bool | None = None


def octaves(rng: np.random.Generator, grid: Grid, cell_px: float, count: int = 3) -> Float:
    """Return noise (S, H, W) of several scales, each half as wide and half as strong as the one before.

    Source: Perlin, "An image synthesizer", SIGGRAPH 1985 (turbulence).
    """
    total = smooth_field(rng, grid.shape, grid.spacing_px, cell_px)
    for octave in range(1, count):
        total += np.float32(0.5**octave) * smooth_field(rng, grid.shape, grid.spacing_px, cell_px / 2**octave)
    return total


def plain(grid: Grid) -> LabelMap:
    """Return a map of one label."""
    return LabelMap(np.zeros(grid.shape, np.uint8), 1, math.inf)


def _patches(rng: np.random.Generator, grid: Grid, cell_px: float) -> LabelMap:
    """The strongest of several noises."""
    count = int(rng.integers(2, 6))
    best = smooth_field(rng, grid.shape, grid.spacing_px, cell_px)
    labels = np.zeros(grid.shape, np.uint8)
    for label in range(1, count):
        field = smooth_field(rng, grid.shape, grid.spacing_px, cell_px * float(rng.uniform(0.6, 1.6)))
        labels[field > best] = label
        np.maximum(best, field, out=best)
    return LabelMap(labels, count, 1.3 * cell_px)


def _bands(rng: np.random.Generator, grid: Grid, cell_px: float) -> LabelMap:
    """Noise of several scales, cut at some heights."""
    count = int(rng.integers(2, 5))
    field = octaves(rng, grid, cell_px, int(rng.integers(1, 4)))
    heights = np.sort(rng.uniform(-1.2, 1.2, count - 1))
    return LabelMap(np.searchsorted(heights, field).astype(np.uint8), count, cell_px)


def _cells(rng: np.random.Generator, grid: Grid, cell_px: float) -> LabelMap:
    """A Voronoi diagram, with or without walls; cells next to each other often are of one label."""
    volume = math.prod(n + 2 * cell_px for n in grid.extent_px)
    number = min(_CELLS, max(6, round(volume / cell_px**3)))
    ends = np.array(grid.extent_px)
    centres = rng.uniform(-cell_px, ends + cell_px, (number, 3)).astype(np.float32)
    stride = max(1, math.ceil(6 / grid.spacing_px[1]))
    z, y, x = grid.axes()
    bend = np.float32(0.2 * cell_px) * smooth_field(rng, grid.shape, grid.spacing_px, cell_px)
    bent = bend[:, ::stride, ::stride]
    coarse = np.stack(np.broadcast_arrays(z, y[:, ::stride] + bent, x[::stride] - bent), axis=-1)
    near = cKDTree(centres).query(coarse.reshape(-1, 3), k=3)[1].reshape(*coarse.shape[:3], 3)
    rows, columns = (np.arange(n) // stride for n in grid.shape[1:])
    near = near[:, rows[:, None], columns]  # (S, H, W, 3): the nearest ones of a block's corner
    distances = np.stack(
        [
            np.sqrt((z - at[..., 0]) ** 2 + (y + bend - at[..., 1]) ** 2 + (x - bend - at[..., 2]) ** 2)
            for at in (centres[near[..., k]] for k in range(3))
        ]
    )
    first = distances.argmin(0)
    own = np.take_along_axis(near, first[..., None], axis=-1)[..., 0]
    count = int(rng.integers(1, 5))
    labels = rng.integers(count, size=number).astype(np.uint8)[own]
    if count == 1 or rng.random() < 0.6:
        ordered = np.sort(distances, axis=0)
        wall_px = max(float(rng.uniform(0.08, 0.3)) * cell_px, 2 * grid.spacing_px[1])
        labels[ordered[1] - ordered[0] < wall_px] = count
        count += 1
    return LabelMap(labels, count, cell_px)


def _layers(rng: np.random.Generator, grid: Grid, cell_px: float) -> LabelMap:
    """Bands along a direction or around a point, bent."""
    z, y, x = grid.axes()
    depth, height, width = grid.extent_px
    if rng.random() < 0.5:
        angle, lean = rng.uniform(0, 2 * math.pi), rng.uniform(-0.5, 0.5)
        along = math.cos(angle) * y + math.sin(angle) * x + lean * z
    else:
        middle = rng.uniform(0.1, 0.9, 3) * (depth, height, width)
        along = np.sqrt((z - middle[0]) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2)
    along = along + np.float32(0.6 * cell_px) * octaves(rng, grid, 1.5 * cell_px, 2)
    tissues = int(rng.integers(2, 6))
    edges = np.cumsum(cell_px * rng.uniform(0.3, 2.0, 24)) + float(along.min())
    kinds = rng.integers(tissues, size=len(edges) + 1).astype(np.uint8)
    return LabelMap(kinds[np.searchsorted(edges, along)], tissues, math.inf)


def _shapes(rng: np.random.Generator, grid: Grid, cell_px: float) -> LabelMap:
    """Large bent ellipsoids over and in each other."""
    z, y, x = grid.axes()
    rough = np.float32(0.25) * octaves(rng, grid, 1.2 * cell_px, 2)
    labels = np.zeros(grid.shape, np.uint8)
    count = int(rng.integers(3, 7))
    ends = np.array(grid.extent_px)
    centre, radius = ends / 2, float(max(ends)) / 2
    for _ in range(int(rng.integers(4, 12))):
        if rng.random() < 0.5:  # within the one before
            radius *= float(rng.uniform(0.4, 0.8))
            centre = centre + rng.uniform(-0.3, 0.3, 3) * radius
        else:
            radius = cell_px * float(rng.uniform(0.8, 2.5))
            centre = rng.uniform(0, 1, 3) * ends
        wide, tall = float(rng.uniform(0.6, 1.5)), float(rng.uniform(0.6, 1.5))
        far = ((z - centre[0]) / radius) ** 2 + ((y - centre[1]) / (radius * tall)) ** 2
        far = far + ((x - centre[2]) / (radius * wide)) ** 2
        labels[far < 1 + rough] = rng.integers(count)
    return LabelMap(labels, count, 1.6 * cell_px)


def _tubes(rng: np.random.Generator, grid: Grid, cell_px: float) -> LabelMap:
    """Folded sheets, and tubes where two such sheets cross, in plain ground."""
    first, second = (octaves(rng, grid, cell_px, 2) for _ in range(2))
    labels = np.zeros(grid.shape, np.uint8)
    if rng.random() < 0.6:
        labels[np.abs(first) < rng.uniform(0.1, 0.5)] = 1
    labels[np.hypot(first, second) < rng.uniform(0.15, 0.4)] = 2
    return LabelMap(labels, 3, 0.3 * cell_px)


def _organ(rng: np.random.Generator, grid: Grid, cell_px: float) -> LabelMap:
    """A body in layers: skin and bone or neither, a folded rind, a plain inside, and hollows in its middle."""
    depth = _body(rng, grid)
    labels = np.full(grid.shape, 3, np.uint8)
    rind = float(rng.uniform(0.2, 0.7))
    folds = np.abs(octaves(rng, grid, log_uniform(rng, 14, 40), 2))
    thick = float(rng.uniform(0.3, 0.6))
    labels[(folds < thick) & (depth < rind + 0.3 * folds)] = 2
    if rng.random() < 0.7:  # furrows in the middle of the folds
        labels[(folds < 0.3 * thick) & (depth < rind)] = 1
    hollows = octaves(rng, grid, log_uniform(rng, 25, 70), 2) + 2.5 * depth
    labels[(hollows > np.quantile(hollows[:, ::4, ::4], rng.uniform(0.9, 1.0))) & (depth > rind)] = 4
    if rng.random() < 0.4:
        shell = float(rng.uniform(0.03, 0.1))
        labels[depth < 2 * shell] = 0
        labels[depth < shell] = 5
    return LabelMap(labels, 6, 2 * cell_px, depth > 0)


KINDS: dict[str, Callable[[np.random.Generator, Grid, float], LabelMap]] = {
    "patches": _patches, "bands": _bands, "cells": _cells, "layers": _layers, "shapes": _shapes, "tubes": _tubes,
    "organ": _organ,
}  # fmt: skip


def draw_label_map(rng: np.random.Generator, grid: Grid, *, nested: bool = True) -> LabelMap:
    """Draw a label map of any kind. With `nested`, another map may divide one of its labels."""
    names = list(KINDS)
    if nested and rng.random() < 0.2:
        return plain(grid)
    outer = KINDS[names[rng.choice(len(names), p=[0.16, 0.16, 0.11, 0.13, 0.12, 0.1, 0.22])]](
        rng, grid, log_uniform(rng, 16, 110)
    )
    if not nested or rng.random() < 0.6:
        return outer
    inner = draw_label_map(rng, grid, nested=False)
    labels = np.where(outer.labels == rng.integers(outer.size), outer.size + inner.labels, outer.labels)
    return LabelMap(labels.astype(np.uint8), outer.size + inner.size, min(outer.blob_px, inner.blob_px), outer.outline)


def draw_outline(rng: np.random.Generator, grid: Grid) -> Bool:
    """Return the inside of a body, (S, H, W) bool: most of the picture, some of its edges outside."""
    inside: Bool = _body(rng, grid) > 0
    return inside


def borders(labels: _Labels, reach: int) -> Bool:
    """Return the voxels (S, H, W) that have another label within `reach` pixels above, below, left or right."""
    near = np.zeros(labels.shape, bool)
    for axis in (1, 2):
        one, other = [slice(None)] * 3, [slice(None)] * 3
        one[axis], other[axis] = slice(reach, None), slice(None, -reach)
        differs = labels[tuple(one)] != labels[tuple(other)]
        near[tuple(one)] |= differs
        near[tuple(other)] |= differs
    return near


def _body(rng: np.random.Generator, grid: Grid) -> Float:
    """Return the depth in a body, (S, H, W): 0 at its surface, 1 in its middle, negative outside."""
    z, y, x = grid.axes()
    ends = np.array(grid.extent_px)
    centre = ends * (0.5 + rng.uniform(-0.2, 0.2, 3))
    radii = ends * rng.uniform(0.4, 0.75, 3)
    radii[0] = max(radii[0], 2 * ends[0])
    far = ((z - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 + ((x - centre[2]) / radii[2]) ** 2
    rough = np.float32(rng.uniform(0, 0.25)) * octaves(rng, grid, log_uniform(rng, 20, 90), 2)
    return np.asarray(1 - far + rough, np.float32)
