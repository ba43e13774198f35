"""Losses of prompted masks in a training step: answers to clicks on supports, and tracking through clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mois.clicks import correct
from mois.interfaces import Backbone, Memory, TrackingRules
from mois.records import Episode, Features, MaskPrediction, Prompts
from mois.training.losses import mask_loss, masked_average, soft_iou

HALF = 2
"""Masks are compared at half the resolution of the patch. SAM2 answers at a quarter of it. There, a lesion of a few
pixels covers less than half a cell, so that an empty mask would be right."""


class PromptedMasks(NamedTuple):
    """Losses and Dice of masks that clicks or tracking gave.

    Attributes:
        loss: Mean mask loss, a scalar.
        presence_loss: Mean loss of the presence scores, a scalar.
        first_dice: Pooled Dice of the first answers, a scalar.
        last_dice: Pooled Dice of the last answers, a scalar.
        logits: (N, P / 4, P / 4), logits of the last answers to clicks.
    """

    loss: Tensor
    presence_loss: Tensor
    first_dice: Tensor
    last_dice: Tensor
    logits: Tensor


def correct_clicks(
    backbone: Backbone,
    features: Features,
    masks: Tensor,
    keep: Tensor,
    chance: Tensor,
    corrections: int,
    prompts: Prompts,
    answer: MaskPrediction,
) -> PromptedMasks:
    """Correct the answers to the first clicks. Every answer is supervised.

    Args:
        backbone: The backbone.
        features: Features of N images.
        masks: (N, P, P) bool, true masks.
        keep: (N,) bool, which images count.
        chance: (N, 9), random numbers, 0 to 1.
        corrections: Number of corrections.
        prompts: The first clicks.
        answer: The answers to the first clicks.
    """
    answers = [answer]
    for step in range(corrections):
        prompts = correct(prompts, answers[-1].logits, masks, chance[:, step + 1])
        answers.append(backbone.decode(features, prompts))
    target = _halve(masks)
    ends = _enlarge(torch.stack([answers[0].logits, answers[-1].logits], dim=1)) > 0
    whole = target > 0.5
    presence = torch.stack([answer.presence for answer in answers])  # (answers, N)
    return PromptedMasks(
        masked_average(_best_candidate_losses(answers, target), keep),
        masked_average(presence_losses(presence, masks), keep),
        pooled_dice(ends[:, 0], whole, keep),
        pooled_dice(ends[:, 1], whole, keep),
        answers[-1].logits,
    )


def track_clips(
    backbone: Backbone, features: Features, episode: Episode, rules: TrackingRules, first: MaskPrediction
) -> PromptedMasks:
    """Track the lesion of each clip in both directions, from the click on the middle slice.

    Args:
        backbone: The backbone.
        features: Features of the slices of all clips, clip by clip.
        episode: The batch.
        rules: Rules for the memory of earlier slices.
        first: The answers to the clicks on the middle slices.
    """
    batch, clip = episode.track_images.shape[:2]
    middle = clip // 2
    masks = episode.track_masks
    slices = torch.arange(batch * clip, device=masks.device).view(batch, clip)
    start = features.select(slices[:, middle])
    clicked = backbone.remember_slice(start, first.logits, first.pointer, first.presence).repeat(2)
    target, present = _halve(masks.flatten(0, 1)), masks.flatten(0, 1).flatten(1).any(1)
    answers, places = [], []
    latest: list[Memory] = []
    for step in range(1, middle + 1):
        here = torch.stack([slices[:, middle - step], slices[:, middle + step]], dim=1).flatten()
        pictures = features.select(here)
        answer = backbone.decode(backbone.attend(pictures, rules.gather([(step, clicked)], latest)), None)
        latest = rules.keep(backbone.remember_slice(pictures, answer.logits, answer.pointer, answer.presence), latest)
        answers.append(answer)
        places.append(here)
    all_here = torch.cat(places)
    tracked = MaskPrediction(*(torch.cat(parts) for parts in zip(*answers, strict=True)))
    # masks and their quality are learned where the lesion is present; the presence score learns where it is absent
    at_click = masked_average(_best_candidate_losses([first], target[slices[:, middle]]), present[slices[:, middle]])
    along = masked_average(_best_candidate_losses([tracked], target[all_here]), present[all_here])
    presence = presence_losses(tracked.presence.unsqueeze(0), masks.flatten(0, 1)[all_here])
    there = target[all_here] > 0.5
    predicted = _enlarge(tracked.logits.unsqueeze(1)).squeeze(1) > 0
    figure = pooled_dice(predicted, there, torch.ones_like(there[:, 0, 0]))
    return PromptedMasks((at_click + middle * along) / (1 + middle), presence.mean(), figure, figure, first.logits)


def _best_candidate_losses(answers: Sequence[MaskPrediction], target: Tensor) -> Tensor:
    """Return the mask loss of the best candidate plus the mean error of the predicted quality, (answers, N).

    The answers share their target (N, P / 2, P / 2), so all their candidates are compared with it at once.
    """
    candidates = _enlarge(torch.cat([answer.candidates for answer in answers], dim=1))
    wanted = target.unsqueeze(1).expand_as(candidates)
    masks = mask_loss(candidates, wanted)
    iou = torch.cat([answer.iou for answer in answers], dim=1)
    quality = (iou.float() - soft_iou(candidates.detach(), wanted)).abs()
    counts = [answer.candidates.shape[1] for answer in answers]
    pairs = zip(torch.split(masks, counts, 1), torch.split(quality, counts, 1), strict=True)
    return torch.stack([mask.amin(1) + error.mean(1) for mask, error in pairs])


def _halve(masks: Tensor) -> Tensor:
    """Return masks (N, P, P) bool at half the resolution, (N, P / 2, P / 2) float: the covered share of each cell."""
    return functional.avg_pool2d(masks.unsqueeze(1).float(), HALF).squeeze(1)


def _enlarge(logits: Tensor) -> Tensor:
    """Return logits of SAM2 (N, M, P / 4, P / 4) at half the resolution of the patch, (N, M, P / 2, P / 2)."""
    return functional.interpolate(logits.float(), scale_factor=4 / HALF, mode="bilinear")


def presence_losses(presence: Tensor, masks: Tensor) -> Tensor:
    """Return the losses (answers, N) of presence scores (answers, N) for the masks (N, P, P)."""
    there = (masks.flatten(1) > 0.5).any(1).float().expand_as(presence)
    return functional.binary_cross_entropy_with_logits(presence.float(), there, reduction="none")


def pooled_dice(predicted: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Return the Dice of all kept pictures together, a scalar; NaN if their targets are empty.

    Args:
        predicted: (N, H, W) bool.
        target: (N, H, W) bool.
        keep: (N,) bool, which pictures count.
    """
    keep = keep.view(-1, *([1] * (predicted.ndim - 1)))
    overlap = (predicted & target & keep).sum()
    there = (target & keep).sum()
    dice = 2 * overlap / ((predicted & keep).sum() + there).clamp(min=1)
    return torch.where(there > 0, dice, torch.nan)
