"""Degradations by a scanner or a microscope: uneven light, blur, lost resolution, noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from datamodules.phantoms.painting import Float, smooth_field
from datamodules.pictures.grids import Grid, log_uniform

NOISES = ("none", "gaussian", "rician", "poisson", "speckle")


@dataclass(frozen=True)
class Acquisition:
    """Settings of scanner or microscope.

    Attributes:
        bias: Standard deviation of the logarithm of the bias field.
        blur_px: Standard deviation of the blur, in pixels of the grid.
        haze: Share of light from further around, like out-of-focus light in a microscope.
        mixed: Share of the neighbouring slices in each slice.
        noise: One of NOISES.
        sigma: Standard deviation of the noise at a signal of 1.
        smooth: Whether the noise is blurred, as in a filtered scan.
    """

    bias: float
    blur_px: float
    haze: float
    mixed: float
    noise: str
    sigma: float
    smooth: bool


def draw_acquisition(
    rng: np.random.Generator, weakest: float, level: float, radius_px: float, pixel_px: float
) -> Acquisition:
    """Draw settings that leave the faintest and smallest objects visible.

    Args:
        rng: Generator of the settings.
        weakest: Difference to the ground that has to stay visible, root mean square.
        level: Signal of bright parts.
        radius_px: Radius of the smallest objects.
        pixel_px: Edge of the pixels of the grid, in the same unit.
    """
    noise = str(rng.choice(NOISES, p=[0.08, 0.32, 0.3, 0.2, 0.1]))
    voxels = max(1.0, math.pi * (radius_px / pixel_px) ** 2)
    most = weakest * min(0.8, 0.07 * math.sqrt(voxels))
    share = {"poisson": math.sqrt(level), "speckle": 1.5 * level + 0.3}.get(noise, 1.0)
    return Acquisition(
        bias=float(rng.choice([0.0, 0.08, 0.2, 0.35], p=[0.3, 0.35, 0.25, 0.1])),
        blur_px=float(rng.uniform(0, min(1.5, 0.3 * radius_px / pixel_px))) if rng.random() < 0.6 else 0.0,
        haze=float(rng.uniform(0.1, 0.4)) if rng.random() < 0.15 else 0.0,
        mixed=float(rng.uniform(0.05, 0.25)) if rng.random() < 0.3 else 0.0,
        noise=noise,
        sigma=min(log_uniform(rng, 0.005, 0.3), most / max(share, 1e-2)),
        smooth=rng.random() < 0.25,
    )


def acquire(rng: np.random.Generator, grid: Grid, signal: Float, how: Acquisition) -> Float:
    """Return a signal (S, H, W) after these degradations, 0 or more."""
    if how.bias:
        cell_px = float(rng.uniform(0.5, 1.2)) * max(grid.extent_px[1:])
        signal = signal * np.exp(np.float32(how.bias) * smooth_field(rng, grid.shape, grid.spacing_px, cell_px))
    if how.mixed and len(signal) > 2:
        around = 0.5 * (signal[[0, *range(len(signal) - 1)]] + signal[[*range(1, len(signal)), -1]])
        signal = signal + np.float32(how.mixed) * (around - signal)
    if how.blur_px > 0.3:
        signal = ndimage.gaussian_filter(signal, (0, how.blur_px, how.blur_px), truncate=2.5)
    if how.haze:
        small = functional.avg_pool2d(torch.from_numpy(signal)[:, None], 8)
        wide = functional.interpolate(small, signal.shape[1:], mode="bilinear").numpy()[:, 0]
        signal = signal + np.float32(how.haze) * (wide - signal)
    return np.maximum(_noisy(rng, signal.astype(np.float32, copy=False), how), 0)


def _noisy(rng: np.random.Generator, signal: Float, how: Acquisition) -> Float:
    """Return the signal with noise."""

    def normal() -> Float:
        drawn: Float = rng.standard_normal(signal.shape, dtype=np.float32)
        return np.float32(1.7) * ndimage.uniform_filter(drawn, (1, 2, 2)) if how.smooth else drawn

    sigma = np.float32(how.sigma)
    if how.noise == "none":
        return signal
    if how.noise == "rician":
        real, imaginary = signal + sigma * normal(), sigma * normal()
        return np.asarray(np.sqrt(real * real + imaginary * imaginary))
    if how.noise == "poisson" and how.sigma > 0.2:  # counts at a signal of 1 are 1 / sigma^2
        return np.asarray(rng.poisson(np.minimum(signal, 3) / sigma**2) * sigma**2, np.float32)
    if how.noise == "poisson":  # many counts are nearly normal
        return np.asarray(signal + sigma * np.sqrt(signal) * normal())
    if how.noise == "speckle":
        return np.asarray(signal * (1 + 1.5 * sigma * normal()) + np.float32(0.3) * sigma * normal())
    return np.asarray(signal + sigma * normal())


def resize(stack: Float, height: int, width: int) -> Float:
    """Return a stack (S, h, w) stretched to (S, height, width), linearly, outer edges aligned."""
    if stack.shape[1:] == (height, width):
        return stack
    stretched: Float = functional.interpolate(
        torch.from_numpy(stack)[:, None], (height, width), mode="bilinear"
    ).numpy()
    return stretched[:, 0]
