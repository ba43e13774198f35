"""A bank of filters: what a pixel and its surroundings look like at several scales, without any training."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

SIGMAS_PX = (1.0, 2.0, 4.0, 8.0)
"""Scales of the bank, as standard deviations in pixels of the image."""

FILTERS = 5 * len(SIGMAS_PX)
"""Number of answers of the bank at each place."""

_SMALLEST = 1e-12


def filter_bank(image: Tensor, every: bool = False) -> Tensor:
    """Filter images at every scale.

    With C channels the scales are dealt out in turn: with two, the first channel is seen at 1 and 4 pixels, the second
    at 2 and 8. So the number of answers stays.

    At each scale: the smoothed intensity, the length of its gradient, its Laplacian, and both eigenvalues of its
    Hessian, the larger one first. Derivatives are multiplied by the scale (once for each order), so that a blob
    gives the same answers at the scale of its own size whatever its size is.

    Args:
        image: (N, C, P, P), normalised intensities.
        every: See each channel at every scale.

    Returns:
        (N, 20, P / 2, P / 2), float32; with `every` (N, C x 20, P / 2, P / 2), channel by channel.

    Source: Lindeberg, Feature detection with automatic scale selection, IJCV 1998.
    """
    with torch.autocast(image.device.type, enabled=False):
        count = image.shape[1]
        halves = [functional.avg_pool2d(smooth(one, SIGMAS_PX[0]), 2) for one in image.float().chunk(count, dim=1)]
        scales = list(enumerate(SIGMAS_PX))
        wanted = [(number, sigma_px) for number in range(count) for _, sigma_px in scales]
        if not every:
            wanted = [(place % count, sigma_px) for place, sigma_px in scales]
        answers: list[Tensor] = []
        for number, sigma_px in wanted:
            further_px = (sigma_px**2 - SIGMAS_PX[0] ** 2) ** 0.5
            level = smooth(halves[number], further_px / 2) if further_px else halves[number]
            answers.extend(_shape(level, sigma_px / 2))
        return torch.cat(answers, dim=1)


def smooth(image: Tensor, sigma_px: float) -> Tensor:
    """Smooth images (N, 1, H, W), float32, with a Gaussian. Beyond its border an image repeats its last pixels."""
    weights = _gaussian(sigma_px, image.device)
    reach = len(weights) // 2
    wide = functional.pad(image, (reach, reach, reach, reach), mode="replicate")
    return functional.conv2d(functional.conv2d(wide, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))


@cache
def _gaussian(sigma_px: float, device: torch.device) -> Tensor:
    """Return the weights of a Gaussian, cut off at three deviations. They are sent to a device once."""
    with torch.inference_mode(False):  # a training may use them after an inference
        line = torch.arange(-round(3 * sigma_px), round(3 * sigma_px) + 1, dtype=torch.float32)
        weights = torch.exp(-0.5 * (line / sigma_px) ** 2)
        return (weights / weights.sum()).to(device)


def _shape(level: Tensor, sigma: float) -> tuple[Tensor, ...]:
    """Return intensity, gradient, Laplacian and Hessian eigenvalues of (N, 1, h, w), smoothed by sigma cells."""
    wide = functional.pad(level, (1, 1, 1, 1), mode="replicate")
    left, right = wide[..., 1:-1, :-2], wide[..., 1:-1, 2:]
    above, below = wide[..., :-2, 1:-1], wide[..., 2:, 1:-1]
    gradient = ((right - left).square() + (below - above).square() + _SMALLEST).sqrt() * (sigma / 2)
    xx = (left + right - 2 * level) * sigma**2
    yy = (above + below - 2 * level) * sigma**2
    diagonals = wide[..., 2:, 2:] + wide[..., :-2, :-2] - wide[..., 2:, :-2] - wide[..., :-2, 2:]
    xy = diagonals * (sigma**2 / 4)
    laplacian = xx + yy
    apart = ((xx - yy).square() + 4 * xy.square() + _SMALLEST).sqrt()
    return level, gradient, laplacian, (laplacian + apart) / 2, (laplacian - apart) / 2
