"""Painting one lesion into a stack of slices.

Stacks are (S, H, W): S coronal slices from anterior to posterior, H rows from superior to inferior, W columns from the
patient's right to left. Signal is relative: 1 is about the brightest of normal anatomy (fluid), muscle is at 0.37.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from datamodules.phantoms.lesion_types import LesionType

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]
Triple = tuple[float, float, float]
Box = tuple[slice, slice, slice]

SMALLEST_VOXELS = 8
_NEIGHBOURS = np.ones((3, 3, 3), bool)


class Painted(NamedTuple):
    """One lesion in a stack.

    Attributes:
        box: Slices of the three axes of the stack.
        mask: Mask of the lesion within the box, bool.
    """

    box: Box
    mask: Bool


class _Solid(NamedTuple):
    """The shape of a lesion, before it is cut to its volume.

    Attributes:
        box: Its place in the stack.
        distance: (s, h, w) mm to its surface, negative inside.
        axes: Distance from its centre along the three axes of the box, in millimetres.
        clipped: Whether the stack ends within the lesion.
    """

    box: Box
    distance: Float
    axes: tuple[Float, Float, Float]
    clipped: bool


@lru_cache(maxsize=512)
def _spline(count: int, cells_per_sample: float) -> Float:
    """Return the matrix (count, cells) of cubic B-splines that interpolates coarse values at `count` samples."""
    position = np.arange(count) * cells_per_sample
    first = np.floor(position).astype(np.intp)
    t = position - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    matrix = np.zeros((count, int(first[-1]) + 4))
    np.put_along_axis(matrix, first[:, None] + np.arange(4), weights, axis=1)
    matrix /= np.sqrt((matrix**2).sum(1).mean())
    return matrix.astype(np.float32)


def smooth_field(rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: Triple, cell_mm: float) -> Float:
    """Return smooth noise (S, H, W) with mean 0, variance about 1, and bumps about `cell_mm` wide."""
    depth, rows, columns = (_spline(n, min(mm / cell_mm, 1.0)) for n, mm in zip(shape, spacing_mm, strict=True))
    coarse = rng.standard_normal((depth.shape[1], rows.shape[1], columns.shape[1]), dtype=np.float32)
    sliced = (depth @ coarse.reshape(coarse.shape[0], -1)).reshape(shape[0], *coarse.shape[1:])
    stretched: Float = np.matmul(rows, sliced) @ columns.T
    return stretched


def _skeleton(rng: np.random.Generator, shape: str, radius_mm: float, thinnest_mm: float) -> tuple[Float, Float]:
    """Return centres (N, 3) around 0 and radii (N,) in mm of balls. The union of the balls is the lesion."""
    if shape == "round":
        return np.zeros((1, 3), np.float32), np.full(1, radius_mm, np.float32)
    if shape == "lobulated":
        count = int(rng.integers(4, 8))
        direction = rng.standard_normal((count, 3))
        direction *= radius_mm * rng.uniform(0.7, 1.0, (count, 1)) / np.linalg.norm(direction, axis=1, keepdims=True)
        radii = radius_mm * rng.uniform(0.4, 0.6, count)
        centres = np.concatenate([np.zeros((1, 3)), direction])
        return centres.astype(np.float32), np.concatenate([[0.6 * radius_mm], radii]).astype(np.float32)
    # plexiform: winding tubes from the centre; their length gives the volume of the equal ball
    tube_mm = max(0.36 * radius_mm, thinnest_mm)
    length_mm = 4 / 3 * radius_mm**3 / tube_mm**2
    branches = int(rng.integers(3, 6))
    steps = max(1, math.ceil(length_mm / branches / tube_mm))
    places = [np.zeros(3)]
    for _ in range(branches):
        place, heading = np.zeros(3), rng.standard_normal(3)
        for _ in range(steps):
            heading = heading / np.linalg.norm(heading) + 0.45 * rng.standard_normal(3)
            place = place + tube_mm * heading / np.linalg.norm(heading)
            places.append(place)
    radii = tube_mm * rng.uniform(0.8, 1.2, len(places))
    return np.stack(places).astype(np.float32), radii.astype(np.float32)


def _solid(
    rng: np.random.Generator,
    lesion: LesionType,
    radius_mm: float,
    centre: Triple,
    shape: tuple[int, ...],
    spacing_mm: Triple,
) -> _Solid:
    """Shape a lesion of about the volume of a ball of this radius around `centre` (voxels)."""
    centres, radii = _skeleton(rng, lesion.shape, radius_mm, 0.9 * spacing_mm[1])
    stretch = math.sqrt(lesion.elongation)
    angle = rng.uniform(0, math.pi)
    margin_mm = 0.5 * lesion.border_mm + 0.25 * radius_mm + 2 * spacing_mm[1]
    reach_mm = stretch * (np.abs(centres) + radii[:, None]).max(0) + margin_mm
    reach_mm[1:] = reach_mm[1:].max()
    low = [math.floor(at - reach / mm) for at, reach, mm in zip(centre, reach_mm, spacing_mm, strict=True)]
    high = [math.ceil(at + reach / mm) + 1 for at, reach, mm in zip(centre, reach_mm, spacing_mm, strict=True)]
    ends = [(max(0, first), min(count, last)) for first, last, count in zip(low, high, shape, strict=True)]
    axes = [
        ((np.arange(*end) - at) * mm).astype(np.float32) for end, at, mm in zip(ends, centre, spacing_mm, strict=True)
    ]
    depth, row, column = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
    along = (math.cos(angle) * row + math.sin(angle) * column) / np.float32(stretch)
    across = (math.cos(angle) * column - math.sin(angle) * row) * np.float32(stretch)
    distance = np.full((depth.size, row.size, column.size), np.inf, np.float32)
    for (y, z, x), radius in zip(centres, radii, strict=True):
        np.minimum(distance, np.sqrt((depth - y) ** 2 + ((along - z) ** 2 + (across - x) ** 2)) - radius, out=distance)
    bump_mm = max(0.8 * radius_mm, 2 * spacing_mm[1])
    distance += np.float32(0.08 * radius_mm) * smooth_field(rng, distance.shape, spacing_mm, bump_mm)
    box = (slice(*ends[0]), slice(*ends[1]), slice(*ends[2]))
    clipped = min(low) < 0 or any(last > count for last, count in zip(high, shape, strict=True))
    return _Solid(box, distance, (axes[0], axes[1], axes[2]), clipped)


def _cut(solid: _Solid, allowed: Bool | None, voxels: int, slack_mm: float, *, cut: bool) -> tuple[Bool, Float] | None:
    """Return the mask of a solid, and the depth of its voxels in mm; None if there is no room.

    Args:
        solid: The shape of the lesion.
        allowed: (S, H, W) bool or None.
        voxels: Wanted number of voxels. The end of the stack and, with `cut`, forbidden voxels lower the number.
        slack_mm: Largest outward move of the surface, to replace forbidden voxels.
        cut: Whether forbidden voxels are lost instead of replaced.
    """
    distance = solid.distance
    whole = int((distance <= 0).sum())
    if allowed is not None:
        distance = np.where(allowed[solid.box], distance, np.float32(np.inf))
        whole = int((distance <= 0).sum()) if cut else whole
    if solid.clipped or cut:
        voxels = max(SMALLEST_VOXELS, min(voxels, whole))
    finite = distance[np.isfinite(distance)]
    if finite.size < voxels:
        return None
    limit = np.partition(finite, voxels - 1)[voxels - 1]
    if limit > slack_mm:
        return None
    mask: Bool = distance <= limit
    parts, count = ndimage.label(mask, _NEIGHBOURS)
    if count > 1:
        mask = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    if int(mask.sum()) < max(SMALLEST_VOXELS, voxels // 2):
        return None
    return mask, limit - distance


def _texture(
    rng: np.random.Generator, lesion: LesionType, solid: _Solid, mask: Bool, spacing_mm: Triple, radius_mm: float
) -> Float:
    """Return the remaining share of the contrast, (s, h, w), for stripes or speckles."""
    depth, row, column = solid.axes
    if lesion.texture == "striped":
        angle, lean = rng.uniform(0, math.pi), rng.uniform(-0.3, 0.3)
        period_mm = max(2.7 * spacing_mm[1], min(lesion.texture_mm, 0.8 * radius_mm))
        place = math.cos(angle) * row[None, :, None] + math.sin(angle) * column + lean * depth[:, None, None]
        wave = np.sin(2 * math.pi / period_mm * place + rng.uniform(0, 2 * math.pi))
    else:
        wave = smooth_field(rng, solid.distance.shape, spacing_mm, max(spacing_mm[1], lesion.texture_mm))
        wave = (wave - wave[mask].mean()) / max(float(wave[mask].std()), 0.1)  # speckles also on the smallest lesions
    # up to 1.25, because half of a lesion carries the whole contrast
    share: Float = (1.25 - 1.1 * lesion.texture_depth * (0.5 - 0.5 * np.tanh(3 * wave))).astype(np.float32)
    return share


def render_lesion(
    rng: np.random.Generator,
    image: Float,
    allowed: Bool | None,
    lesion: LesionType,
    centre: Triple,
    volume_ml: float,
    spacing_mm: Triple,
    *,
    scale: float = 1.0,
    noise: float = 0.0,
    tissue: tuple[float, float] = (-math.inf, math.inf),
    cut: bool = False,
) -> Painted | None:
    """Paint a lesion into `image`; the image is changed.

    Args:
        rng: Source of random numbers for shape and texture.
        image: (S, H, W) float32, changed in place.
        allowed: (S, H, W) bool, where the lesion may lie, or None for everywhere.
        lesion: Type of the lesion.
        centre: Slice, row and column of the centre.
        volume_ml: Volume in millilitres, exact to a voxel if there is room. Voxels beyond the stack are lost.
        spacing_mm: Distance between slices, rows and columns.
        scale: Intensity of a contrast of 1, in units of the image.
        noise: Standard deviation of noise within the lesion, for images with noise.
        tissue: Lowest and highest mean signal of the tissue that may be replaced, in units of the image.
        cut: Whether forbidden voxels are lost; otherwise the lesion grows elsewhere.

    Returns:
        The painted lesion. None if 8 connected voxels do not fit, or the tissue does not suit; then the image is
        unchanged.
    """
    radius_mm = (750 * volume_ml / math.pi) ** (1 / 3)
    pixel_mm = spacing_mm[1]
    voxels = max(SMALLEST_VOXELS, round(1000 * volume_ml / math.prod(spacing_mm)))
    solid = _solid(rng, lesion, radius_mm, centre, image.shape, spacing_mm)
    cut_out = _cut(solid, allowed, voxels, 0.3 * radius_mm + pixel_mm, cut=cut)
    if cut_out is None:
        return None
    mask, depth = cut_out
    local = image[solid.box]
    level = float(local[depth >= -2 * pixel_mm].mean())
    if not tissue[0] <= level <= tissue[1]:
        return None
    deepest = float(depth[mask].max())
    share = _texture(rng, lesion, solid, mask, spacing_mm, radius_mm) if lesion.texture != "smooth" else np.float32(1)
    signal = np.float32(lesion.contrast) * share
    if lesion.core != "solid":
        wall_mm = max(0.8 * pixel_mm, lesion.wall_fraction * deepest)
        signal = signal + np.clip(0.5 + (depth - wall_mm) / pixel_mm, 0, 1) * (lesion.core_contrast - signal)
    painted = level + scale * signal + np.float32(0.15) * (local - level)
    if noise:
        painted = painted + np.float32(noise) * rng.standard_normal(local.shape, dtype=np.float32)
    alpha = np.clip(0.6 + depth / max(pixel_mm, min(lesion.border_mm, 1.2 * deepest)), 0, 1)
    local += alpha * (np.maximum(painted, np.float32(0.02 * scale)) - local)
    return Painted(solid.box, mask)


def paint_lesion(
    image: Float,
    centre: Triple,
    lesion: LesionType,
    volume_ml: float,
    spacing_mm: Triple,
    rng: np.random.Generator,
) -> Bool:
    """Paint a lesion into a scan, with contrast and noise of this scan; the scan is changed.

    Args:
        image: (S, H, W) float32, any unit; zero is background, where no lesion goes. Changed in place.
        centre: Slice, row and column of the centre.
        lesion: Type of the lesion.
        volume_ml: Volume in millilitres, minus voxels on background or beyond the stack.
        spacing_mm: Distance between slices, rows and columns.
        rng: Source of random numbers for shape, texture and noise.

    Returns:
        The lesion, (S, H, W) bool; all False, with the image unchanged, where fewer than 8 connected voxels fit, or it
        would not show: a dark one on dark tissue, a bright one on bright.
    """
    foreground = image > 0
    inside = image[foreground]
    mask = np.zeros(image.shape, bool)
    if inside.size < SMALLEST_VOXELS:
        return mask
    low, high = (float(level) for level in np.percentile(inside[:: max(1, inside.size // 20000)], (0.5, 99.5)))
    scale = high - low
    steps = np.diff(image, axis=-1)[foreground[..., 1:] & foreground[..., :-1]]
    # median difference of neighbours, as a standard deviation; a part of it is anatomy
    noise = 0.7 * float(np.median(np.abs(steps))) / 0.6745 / math.sqrt(2) if steps.size else 0.0
    tissue = (low - 0.8 * lesion.contrast * scale, high) if lesion.contrast < 0 else (low, low + 0.75 * scale)
    painted = render_lesion(
        rng, image, foreground, lesion, centre, volume_ml, spacing_mm, scale=scale, noise=noise, tissue=tissue, cut=True
    )
    if painted is not None:
        mask[painted.box] = painted.mask
    return mask
