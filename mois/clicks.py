"""Simulated clicks on patches, and corrections of answers. Everything stays on the device, without a wait for it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mois.records import Prompts

POSITIVE = 1
NEGATIVE = 0
PADDING = -1


def _to_xy(index: Tensor, width: int) -> Tensor:
    """Return flat pixel indices (N,) as (N, 2) float32, x then y."""
    return torch.stack([index % width, torch.div(index, width, rounding_mode="floor")], dim=1).float()


def _centre_where_empty(points: Tensor, mask: Tensor) -> Tensor:
    """Replace the points (N, 2) of empty masks by the centre of the patch, without a wait for the device."""
    height, width = mask.shape[-2:]
    centre = torch.cat([points.new_full((1,), edge // 2) for edge in (width, height)])
    return torch.where(mask.flatten(1).any(1, keepdim=True), points, centre)


def sample_pixel(mask: Tensor, chance: Tensor) -> Tensor:
    """Draw one pixel of each mask. All pixels of a mask are equally likely.

    Args:
        mask: (N, P, P) bool.
        chance: (N,) uniform in [0, 1): chooses the pixel, from the first (0) to the last.

    Returns:
        (N, 2) float32, x then y, in pixels; the centre of the patch for an empty mask.
    """
    count = mask.flatten(1).cumsum(1)  # 1, 2, ... at the mask's pixels in reading order
    wanted = (chance.unsqueeze(1) * count[:, -1:]).floor()
    index = (count > wanted).to(torch.uint8).argmax(1)
    return _centre_where_empty(_to_xy(index, mask.shape[-1]), mask)


def central_pixel(mask: Tensor) -> Tensor:
    """Return a pixel deep inside each mask, where a reader would click.

    The depth of a pixel is approximate: the sum of four blurs of the mask, with boxes of 3, 5, 9 and 17 pixels, each
    applied to the blur before. So all pixels deeper than about 15 pixels are equal. The result always lies in the
    mask, even for a ring.

    Args:
        mask: (N, P, P) bool.

    Returns:
        (N, 2) float32, x then y, in pixels; the centre of the patch for an empty mask.

    Examples:
        >>> mask = torch.zeros(1, 32, 32, dtype=torch.bool)
        >>> mask[0, 10:13, 20:23] = True  # rows 10 to 12, columns 20 to 22
        >>> central_pixel(mask)
        tensor([[21., 11.]])
    """
    inside = mask.float().unsqueeze(1)
    depth, blurred = torch.zeros_like(inside), inside
    for radius in (1, 2, 4, 8):
        blurred = functional.avg_pool2d(blurred, (2 * radius + 1, 1), stride=1, padding=(radius, 0))
        blurred = functional.avg_pool2d(blurred, (1, 2 * radius + 1), stride=1, padding=(0, radius))
        depth = depth + blurred
    index = ((depth + 1) * inside).flatten(1).argmax(1)
    return _centre_where_empty(_to_xy(index, mask.shape[-1]), mask)


def first_click(mask: Tensor, chance: Tensor | None = None) -> Prompts:
    """Return one positive click in each mask.

    Args:
        mask: (N, P, P) bool. An empty mask gets a padding click (label -1).
        chance: (N,) uniform in [0, 1): chooses any pixel of the mask; None clicks deep inside.
    """
    points = central_pixel(mask) if chance is None else sample_pixel(mask, chance)
    present = mask.flatten(1).any(1, keepdim=True)
    labels = torch.where(present, POSITIVE, PADDING).to(torch.int32)
    return Prompts(points.unsqueeze(1), labels)


def correct(prompts: Prompts, logits: Tensor, mask: Tensor, chance: Tensor) -> Prompts:
    """Append the click with which a reader would correct an answer.

    If more pixels are missing than surplus, the click is positive and lies on a missing pixel. Otherwise the click is
    negative and lies on a surplus pixel.

    Args:
        prompts: Clicks so far, Q of them on each of N images.
        logits: (N, P / 4, P / 4), the answer to these clicks. Its copy without gradient becomes the next mask prompt.
        mask: (N, P, P) bool, the true mask.
        chance: (N,) uniform in [0, 1): chooses the pixel.

    Returns:
        Q + 1 clicks on each image. If nothing is wrong, the last click is padding (label -1).
    """
    earlier = logits.detach().float().unsqueeze(1)
    answer = functional.interpolate(earlier, mask.shape[-2:], mode="bilinear", align_corners=False).squeeze(1) > 0
    missing, surplus = mask & ~answer, answer & ~mask
    more_missing = (missing.flatten(1).sum(1) >= surplus.flatten(1).sum(1)).unsqueeze(1)  # (N, 1)
    error = torch.where(more_missing.unsqueeze(2), missing, surplus)
    points = sample_pixel(error, chance).unsqueeze(1)
    labels = torch.where(more_missing, POSITIVE, NEGATIVE)
    labels = torch.where(error.flatten(1).any(1, keepdim=True), labels, PADDING).to(torch.int32)
    return Prompts(torch.cat([prompts.points, points], 1), torch.cat([prompts.labels, labels], 1), earlier)
