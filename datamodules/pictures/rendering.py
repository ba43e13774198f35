"""Rendering: from labels and objects to a signal without noise, with random contrasts, textures and borders.

Source: Billot et al., SynthSeg, arXiv 2107.09559 (a random contrast for every label); Dey et al., anatomix, arXiv
2411.02372 (textures and artefacts over them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.phantoms.painting import Float, smooth_field
from datamodules.pictures.grids import Grid, log_uniform
from datamodules.pictures.label_maps import LabelMap
from datamodules.pictures.looks import Look

_TILT = 0.3


class Ground(NamedTuple):
    """The ground that objects lie in.

    Attributes:
        levels: (L,) float32, signal of each label.
        flat: (S, H, W) float32, signal without texture.
        texture: (S, H, W) float32, added to `flat`.
    """

    levels: Float
    flat: Float
    texture: Float | np.float32


class Inside(NamedTuple):
    """N voxels: those of objects, and those around them that a blurred border reaches.

    Attributes:
        at: (N,) index in the flattened stack.
        depth: (N,) pixels below the surface, negative outside.
        between: (N,) pixels to the border with the next object.
        owner: (N,) id of the object.
        kind: (N,) number of the object's look.
        radius: (N,) radius of the object in pixels.
        strength: (N,) contrast of the object, as a multiple of the contrast of its look.
        ground: (N,) level of the ground that the object stands out from.
    """

    at: NDArray[np.intp]
    depth: Float
    between: Float
    owner: NDArray[np.int32]
    kind: NDArray[np.intp]
    radius: Float
    strength: Float
    ground: Float


def paint_ground(rng: np.random.Generator, grid: Grid, tissue: LabelMap, levels: Float, weakest: float) -> Ground:
    """Paint the ground. Some labels get a texture, weak enough to leave a contrast of `weakest` visible."""
    flat = levels[tissue.labels]
    if rng.random() < 0.3:
        return Ground(levels, flat, np.float32(0))
    depths = np.minimum(rng.uniform(0, 0.25, tissue.size) * (0.15 + levels), 0.4 * weakest).astype(np.float32)
    depths *= rng.integers(0, 2, tissue.size).astype(np.float32)
    cell_px = log_uniform(rng, 1.5, 25)
    if rng.random() < 0.25:
        z, y, x = grid.axes()
        angle = rng.uniform(0, 2 * math.pi)
        bent = smooth_field(rng, grid.shape, grid.spacing_px, 40) * np.float32(6)
        grain = np.sin(
            (math.cos(angle) * y + math.sin(angle) * x + 0.3 * z + bent) * np.float32(2 * math.pi / (cell_px + 3))
        )
    else:
        grain = smooth_field(rng, grid.shape, grid.spacing_px, cell_px)
    return Ground(levels, flat, (depths[tissue.labels] * grain).astype(np.float32))


def paint_objects(rng: np.random.Generator, grid: Grid, ground: Ground, inside: Inside, looks: Sequence[Look]) -> Float:
    """Return the signal (S, H, W) of ground and objects.

    Args:
        rng: Generator of textures.
        grid: Grid of the stack.
        ground: The ground that the objects lie in.
        inside: Voxels of the objects.
        looks: Look of each kind.
    """
    image = (ground.flat + ground.texture).ravel()
    flat = ground.flat.ravel()[inside.at]
    texture = image[inside.at] - flat
    signal = np.zeros(len(inside.at), np.float32)
    alpha = np.zeros(len(inside.at), np.float32)
    for kind, look in enumerate(looks):
        rows = np.flatnonzero(inside.kind == kind)
        if len(rows):
            signal[rows] = _signal(rng, grid, inside, rows, look)
            width = np.float32(max(look.border_px, grid.spacing_px[1]))
            # where two objects touch, neither fades: there is a seam only where there is a gap
            surface = np.minimum(inside.depth[rows], inside.between[rows] + 0.55 * width)
            alpha[rows] = np.clip(0.45 + surface / width, 0, 1)  # a blurred object is outlined where it begins to show
    damp = np.float32(1 - rng.uniform(0, 0.4))  # of the ground's texture hardly anything shines through
    image[inside.at] = flat + alpha * (inside.ground + signal - flat) + (1 - alpha * damp) * texture
    np.maximum(image, 0, out=image)
    return image.reshape(grid.shape)


def _signal(rng: np.random.Generator, grid: Grid, inside: Inside, rows: NDArray[np.intp], look: Look) -> Float:
    """Return the contrast at the voxels of one kind of objects, (n,)."""
    depth, radius = inside.depth[rows], inside.radius[rows]
    share = _texture(rng, grid, inside, rows, look)
    wall = np.float32(look.contrast) * (share if look.core != "rim" else 1)
    signal = wall
    if look.core != "solid":
        wall_px = np.maximum(np.float32(look.wall) * radius, 0.8 * grid.spacing_px[1])
        within = np.clip(0.5 + (depth - wall_px) / max(grid.spacing_px[1], 0.2 * look.build.radius_px), 0, 1)
        signal = wall + within * (np.float32(look.core_contrast) * (share if look.core == "rim" else 1) - wall)
    return np.asarray(signal * inside.strength[rows], np.float32)


def _texture(
    rng: np.random.Generator, grid: Grid, inside: Inside, rows: NDArray[np.intp], look: Look
) -> Float | np.float32:
    """Return the share of the contrast that the texture leaves, (n,)."""
    if look.texture == "smooth":
        return np.float32(1)
    grain_px = max(look.grain_px, (2.7 if look.texture == "striped" else 1.0) * grid.spacing_px[1])
    if look.texture == "striped":
        owner = inside.owner[rows]
        objects = int(owner.max()) + 1
        angle = rng.uniform(0, 2 * math.pi, objects).astype(np.float32)
        shift = rng.uniform(0, 2 * math.pi, objects).astype(np.float32)
        z, y, x = (
            index.astype(np.float32) * np.float32(px)
            for index, px in zip(np.unravel_index(inside.at[rows], grid.shape), grid.spacing_px, strict=True)
        )
        place = np.cos(angle)[owner] * y + np.sin(angle)[owner] * x + np.float32(_TILT) * z
        wave = np.sin(np.float32(2 * math.pi / grain_px) * place + shift[owner])
    else:
        wave = smooth_field(rng, grid.shape, grid.spacing_px, grain_px).ravel()[inside.at[rows]]
    # up to 1.2: half of an object has to carry all of its contrast
    share: Float = (1.2 - 1.1 * look.texture_depth * (0.5 - 0.5 * np.tanh(2.5 * wave))).astype(np.float32)
    return share
