"""Simulated readers: clicks on patches, made on the device without waiting for it, and which lesions are prompted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mois.interfaces import Prompts

POSITIVE = 1
NEGATIVE = 0
PADDING = -1

Strategy = Literal["random", "largest", "spread"]


def _to_xy(index: Tensor, width: int) -> Tensor:
    """Return flat pixel indices (N,) as (N, 2) float32, x then y."""
    return torch.stack([index % width, torch.div(index, width, rounding_mode="floor")], dim=1).float()


def _centre_where_empty(points: Tensor, mask: Tensor) -> Tensor:
    """Put the patch centre where a mask has no pixel, without a host sync."""
    height, width = mask.shape[-2:]
    centre = torch.cat([points.new_full((1,), edge // 2) for edge in (width, height)])
    return torch.where(mask.flatten(1).any(1, keepdim=True), points, centre)


def sample_pixel(mask: Tensor, chance: Tensor) -> Tensor:
    """Return one pixel of each mask, each of its pixels being equally likely.

    Args:
        mask: (N, P, P) bool.
        chance: (N,) uniform in [0, 1): which pixel, from the first (0) to the last.

    Returns:
        (N, 2) float32, x then y, in pixels; the patch centre where a mask is empty.
    """
    count = mask.flatten(1).cumsum(1)  # 1, 2, ... at the mask's pixels in reading order
    wanted = (chance.unsqueeze(1) * count[:, -1:]).floor()
    index = (count > wanted).to(torch.uint8).argmax(1)
    return _centre_where_empty(_to_xy(index, mask.shape[-1]), mask)


def central_pixel(mask: Tensor) -> Tensor:
    """Return a pixel deep inside each mask, where a reader would click.

    The depth is approximate: how much mask there is around a pixel, added up over ever wider blurs (boxes of 3, 5, 9
    and 17 pixels in a row); 15 pixels count as deep enough. The result always lies in the mask, also for a ring.

    Args:
        mask: (N, P, P) bool.

    Returns:
        (N, 2) float32, x then y, in pixels; the patch centre where a mask is empty.
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
        mask: (N, P, P) bool. An empty one gets a padding click (label -1).
        chance: (N,) uniform in [0, 1): click anywhere; None clicks deep inside.
    """
    points = central_pixel(mask) if chance is None else sample_pixel(mask, chance)
    present = mask.flatten(1).any(1, keepdim=True)
    labels = torch.where(present, POSITIVE, PADDING).to(torch.int32)
    return Prompts(points.unsqueeze(1), labels)


def correct(prompts: Prompts, logits: Tensor, mask: Tensor, chance: Tensor) -> Prompts:
    """Append the click with which a reader would correct an answer.

    The click falls anywhere in what is wrong: a positive one where more is missing than too much, else a negative one.

    Args:
        prompts: Clicks so far, Q of them on each of N images.
        logits: (N, P / 4, P / 4), the answer to them; its copy without gradient becomes the next mask prompt.
        mask: (N, P, P) bool, the truth.
        chance: (N,) uniform in [0, 1): where in the error.

    Returns:
        Q + 1 clicks on each image. Where nothing is wrong the last one is padding (label -1).
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


@dataclass(frozen=True)
class Reader:
    """A simulated reader of whole volumes: which lesions are prompted, and which never are.

    Attributes:
        strategy: `random`; `largest` first; `spread`: evenly over the lesions' sizes, the middle one first.
        seed: Of every choice; the same seed and lesions give the same choice.
        noise_mm: How far clicks fall from where they were meant, in plane: standard deviation along rows and along
            columns. 0 is a perfect hand.
        miss: Share of the lesions that may be prompted that this reader overlooks; at least one is seen.
    """

    strategy: Strategy = "random"
    seed: int = 0
    noise_mm: float = 0.0
    miss: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.strategy not in ("random", "largest", "spread"):
            raise ValueError(f"reader.strategy={self.strategy!r} is unknown; choose random, largest or spread.")
        if not self.noise_mm >= 0:
            raise ValueError(f"reader.noise_mm={self.noise_mm} must be 0 or more.")
        if not 0 <= self.miss < 1:
            raise ValueError(f"reader.miss={self.miss} must be at least 0 and below 1.")

    def shake(self, prompts: Prompts, pixel_mm: float, patch_px: int, generator: torch.Generator) -> Prompts:
        """Return the prompts with the last click of each image as far off as this reader's hand is.

        Args:
            prompts: Q clicks on each of N images, in pixels.
            pixel_mm: Edge of a pixel.
            patch_px: Edge of the patch; no click leaves it.
            generator: Where the noise comes from; untouched by a perfect hand.
        """
        if self.noise_mm == 0:
            return prompts
        off = torch.randn(len(prompts.points), 2, generator=generator) * (self.noise_mm / pixel_mm)
        points = prompts.points.clone()
        points[:, -1] = (points[:, -1] + off.to(points.device)).round().clamp(0, patch_px - 1)
        return prompts._replace(points=points)

    def hold_out(self, volumes_ml: Mapping[int, float]) -> tuple[list[int], list[int]]:
        """Split the lesions of a class into those that may be prompted and those that never are.

        Lesions are paired by size, and a coin decides which of each pair is never prompted: both halves hold big and
        small ones. The split depends on the seed and on the lesions, never on how many of them are prompted.

        Args:
            volumes_ml: Lesion id to volume in millilitres.

        Returns:
            Ids that may be prompted and ids that never are, ascending. A single lesion may be prompted.
        """
        rng = np.random.default_rng([self.seed, 1])
        by_size = sorted(volumes_ml, key=lambda lesion: (-volumes_ml[lesion], lesion))
        promptable: list[int] = []
        never: list[int] = []
        for start in range(0, len(by_size) - 1, 2):
            pair = by_size[start : start + 2]
            chosen = int(rng.integers(2))
            promptable.append(pair[chosen])
            never.append(pair[1 - chosen])
        if len(by_size) % 2:
            (promptable if len(by_size) == 1 or rng.integers(2) else never).append(by_size[-1])
        return sorted(promptable), sorted(never)

    def choose_lesions(self, volumes_ml: Mapping[int, float], count: int) -> list[int]:
        """Return the ids of the lesions to prompt, in the order in which they are prompted.

        The choice of fewer lesions is always the beginning of the choice of more, so that curves over their number
        compare like with like.

        Args:
            volumes_ml: Lesion id to volume in millilitres, of the lesions that may be prompted.
            count: How many; all of those that the reader sees where there are fewer.
        """
        volumes_ml = self._seen(volumes_ml)
        by_size = sorted(volumes_ml, key=lambda lesion: (-volumes_ml[lesion], lesion))
        match self.strategy:
            case "largest":
                order = by_size
            case "spread":
                order = [by_size[rank] for rank in _middle_first(len(by_size))]
            case "random":
                order = [sorted(by_size)[i] for i in np.random.default_rng([self.seed, 2]).permutation(len(by_size))]
        return order[:count]

    def _seen(self, volumes_ml: Mapping[int, float]) -> Mapping[int, float]:
        """Return the lesions that the reader does not overlook."""
        overlooked = min(round(self.miss * len(volumes_ml)), len(volumes_ml) - 1)
        if overlooked <= 0:
            return volumes_ml
        order = np.random.default_rng([self.seed, 3]).permutation(sorted(volumes_ml))
        return {int(lesion): volumes_ml[int(lesion)] for lesion in order[overlooked:]}


def _middle_first(count: int) -> list[int]:
    """Return 0..count-1 so that every beginning is spread out: the middle, then the middles of both sides, ..."""
    order: list[int] = []
    spans = [(0, count)]
    while spans:
        following: list[tuple[int, int]] = []
        for start, stop in spans:
            if start < stop:
                middle = (start + stop) // 2
                order.append(middle)
                following += [(start, middle), (middle + 1, stop)]
        spans = following
    return order
