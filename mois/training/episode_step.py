"""The losses of one batch of episodes: answers to clicks, tracking, and lesions that look like the exemplars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mois.clicks import first_click
from mois.interfaces import Backbone, Propagation, TrackingRules
from mois.records import Episode, Exemplars, Features, MaskPrediction, Prompts, SemanticPrediction
from mois.training.clip_windows import cut_clips
from mois.training.losses import mask_loss, masked_average
from mois.training.prompted_masks import correct_clicks, pooled_dice, presence_losses, track_clips

NEGATIVES, COUNT, CLICKS = 0, 1, 8
"""Columns of `Episode.chance`: negative exemplars, number of exemplars, first of the columns for clicks."""


@dataclass(frozen=True)
class EpisodeLearning:
    """How an episode becomes a loss.

    Attributes:
        corrections: Largest number of correction clicks after the first click. Training steps cycle through 1 to this
            number.
        true_masks: Share of exemplars that are described from their true masks instead of their predicted masks.
        first_masks: Share of exemplars that are described from the answer to their first click, instead of the answer
            to the last correction. A reader who clicks each lesion once shows such masks.
        negatives: Share of queries that get the exemplars of the other group as negative exemplars.
        click_weight: Weight of the loss of clicked masks, averaged over clicks.
        track_weight: Weight of the loss of tracked masks.
        semantic_weight: Weight of the loss of the lesions that are found with exemplars.
        draft_weight: Weight of the loss of a propagation's draft, relative to the loss of its result.
        no_exemplar_weight: Weight of the loss without exemplars, relative to the loss with exemplars.
        presence_weight: Weight of the loss of each presence score.
        core_weight: Weight of the loss of the cores of lesions, relative to the loss of their masks. It counts if the
            propagation answers with cores.
        clip_px: Edge in pixels of the squares around the lesions to which clips are cut before they are encoded, a
            multiple of 32. A step that tracks becomes cheaper, but tracking is learned from less surroundings. None
            encodes whole patches.
    """

    corrections: int = 3
    true_masks: float = 0.3
    first_masks: float = 0.0
    negatives: float = 0.2
    click_weight: float = 1.0
    track_weight: float = 0.5
    semantic_weight: float = 1.0
    draft_weight: float = 0.4
    no_exemplar_weight: float = 0.3
    presence_weight: float = 0.1
    core_weight: float = 0.5
    clip_px: int | None = None

    def __post_init__(self) -> None:
        """Refuse shares outside 0 to 1, negative weights, and numbers of corrections outside 1 to 7."""
        for name in ("true_masks", "first_masks", "negatives"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"model.learning.{name}={getattr(self, name)} is a share; choose 0 to 1.")
        if self.true_masks + self.first_masks > 1:
            raise ValueError(
                f"model.learning.true_masks={self.true_masks} and first_masks={self.first_masks} are shares of one "
                "whole; lower one of them."
            )
        for name in (field.name for field in fields(self) if field.name.endswith("_weight")):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"model.learning.{name}={getattr(self, name)} must be at least 0.")
        if not 1 <= self.corrections <= 7:
            raise ValueError(f"model.learning.corrections={self.corrections}; choose 1 to 7.")
        if self.clip_px is not None and (self.clip_px < 32 or self.clip_px % 32):
            raise ValueError(f"model.learning.clip_px={self.clip_px} must be a multiple of 32, such as 128, or null.")


class StepResult(NamedTuple):
    """What a training step computes from a batch.

    Attributes:
        losses: Weighted losses by name, scalars; their sum is the loss of the step.
        figures: Figures to log by name, scalars; NaN if the batch says nothing about a figure.
    """

    losses: dict[str, Tensor]
    figures: dict[str, Tensor]


def pictures(backbone: Backbone, episode: Episode) -> Tensor:
    """Return the images of a batch, (N, P, P): supports, queries, and clips if they are tracked and of this size."""
    images = [episode.support_images.flatten(0, 2), episode.query_images]
    if tracks(backbone, episode) and episode.track_images.shape[-1] == episode.query_images.shape[-1]:
        images.append(episode.track_images.flatten(0, 1))
    return torch.cat(images)


def tracks(backbone: Backbone, episode: Episode) -> bool:
    """Return whether a step tracks. With a frozen backbone it does not: the loss of tracking would be constant."""
    return episode.track_images.shape[1] > 1 and any(p.requires_grad for p in backbone.parameters())


def learn(
    backbone: Backbone,
    propagations: dict[str, Propagation],
    episode: Episode,
    settings: EpisodeLearning,
    step: int,
    encode: Callable[[Tensor], Features] | None = None,
    begin: Callable[[str], None] | None = None,
    tracking: TrackingRules | None = None,
) -> StepResult:
    """Compute losses and figures of a batch of episodes.

    Frozen layers keep nothing for a backward pass: the graph of autograd begins at the first trained tensor.

    Args:
        backbone: The backbone.
        propagations: Propagations by the prefix of their figures; the prefix of the first propagation is "".
        episode: The batch.
        settings: Weights and shares.
        step: Number of the training step. It sets the number of clicks, so that all ranks click equally often.
        encode: Returns the features of `pictures`; by default `backbone.encode`.
        begin: Called with the name of each part before the part begins: click, track, semantic.
        tracking: Rules for the memory of earlier slices; by default `backbone.tracking`.
    """
    begin = begin or _ignore_part
    batch, groups, count = episode.support_valid.shape
    supports = batch * groups * count
    if settings.clip_px is not None and tracks(backbone, episode):
        episode = cut_clips(episode, settings.clip_px)
    features = (encode or backbone.encode)(pictures(backbone, episode))
    clips = _encode_clips(backbone, episode, features)
    support = features.select(slice(0, supports))
    query = features.select(slice(supports, supports + batch))

    begin("click")
    masks = episode.support_masks.flatten(0, 2)
    chance = _spread(episode.chance, groups * count)
    start, answer, on_clip = _answers_to_first_clicks(backbone, features, clips, masks, chance, episode)
    clicks = 1 + step % settings.corrections
    click = correct_clicks(backbone, support, masks, episode.support_valid.flatten(), chance, clicks, start, answer)
    losses = {
        "click": settings.click_weight * click.loss,
        "click_presence": settings.presence_weight * click.presence_loss,
    }
    figures = {"click_first_dice": click.first_dice, "click_last_dice": click.last_dice}
    if clips is not None and on_clip is not None:
        begin("track")
        tracked = track_clips(backbone, clips, episode, tracking or backbone.tracking, on_clip)
        losses |= {
            "track": settings.track_weight * tracked.loss,
            "track_presence": settings.presence_weight * tracked.presence_loss,
        }
        figures["track_dice"] = tracked.last_dice

    begin("semantic")
    shown = _shown_masks(answer.logits, click.logits, masks, chance, settings)
    for prefix, propagation in propagations.items():
        result = find(backbone, propagation, episode, query, support, shown, settings)
        losses |= {prefix + name: value for name, value in result.losses.items()}
        figures |= {prefix + name: value for name, value in result.figures.items()}
    return StepResult(losses, figures)


def _encode_clips(backbone: Backbone, episode: Episode, features: Features) -> Features | None:
    """Return the features of the slices of all clips, clip by clip; None without tracking.

    Args:
        backbone: The backbone.
        episode: The batch.
        features: Features of `pictures`. Clips of another size are not among them, and are encoded here.
    """
    if not tracks(backbone, episode):
        return None
    if episode.track_images.shape[-1] != episode.query_images.shape[-1]:
        return backbone.encode(episode.track_images.flatten(0, 1))
    return features.select(slice(episode.support_valid.numel() + len(episode.query_images), None))


def _answers_to_first_clicks(
    backbone: Backbone,
    features: Features,
    clips: Features | None,
    masks: Tensor,
    chance: Tensor,
    episode: Episode,
) -> tuple[Prompts, MaskPrediction, MaskPrediction | None]:
    """Click once on each support; if clips are tracked, also on the middle slice of each clip.

    Args:
        backbone: The backbone.
        features: Features of all `pictures`.
        clips: Features of the slices of all clips; None without tracking.
        masks: (B x G x K, P, P) bool, true masks of the supports.
        chance: (B x G x K, 9), random numbers of the supports, 0 to 1.
        episode: The batch.

    Returns:
        The clicks on the supports, the answers to these clicks, and the answers on the clips (None without tracking).
    """
    supports, batch = len(masks), len(episode.query_images)
    start = first_click(masks, chance[:, 0])
    if clips is None:
        return start, backbone.decode(features.select(slice(0, supports)), start), None
    clip = episode.track_images.shape[1]
    middles = torch.arange(batch, device=masks.device) * clip + clip // 2
    on_clips = first_click(episode.track_masks[:, clip // 2], episode.chance[:, -1])
    if clips.image.shape[-1] == masks.shape[-1]:  # `features` holds the clips too
        return start, *_decode_at_once(backbone, features, start, on_clips, supports + batch + middles)
    answer = backbone.decode(features.select(slice(0, supports)), start)
    return start, answer, backbone.decode(clips.select(middles), on_clips)


def _decode_at_once(
    backbone: Backbone, features: Features, first: Prompts, further: Prompts, rows: Tensor
) -> tuple[MaskPrediction, MaskPrediction]:
    """Return the answers to prompts on the first pictures, and on further ones: two calls would cost more.

    Args:
        backbone: The backbone.
        features: Features of all pictures.
        first: Prompts on the first S pictures.
        further: Prompts on N pictures.
        rows: (N,) int64, rows of these N pictures.
    """
    count = len(first.points)
    every = torch.cat([torch.arange(count, device=rows.device), rows])
    both = Prompts(torch.cat([first.points, further.points]), torch.cat([first.labels, further.labels]))
    answer = backbone.decode(features.select(every), both)
    one, other = (MaskPrediction(*(part[some] for part in answer)) for some in (slice(count), slice(count, None)))
    return one, other


def _shown_masks(first: Tensor, last: Tensor, masks: Tensor, chance: Tensor, settings: EpisodeLearning) -> Tensor:
    """Return the masks that describe the exemplars, (B x G x K, P, P) float: predicted masks, or true masks at random.

    Args:
        first: (B x G x K, P / 4, P / 4), logits of the answers to the first clicks.
        last: (B x G x K, P / 4, P / 4), logits of the last answers to clicks.
        masks: (B x G x K, P, P) bool, true masks.
        chance: (B x G x K, 9), random numbers, 0 to 1.
        settings: Shares of true masks and of first answers.
    """
    draw = chance[:, -1, None, None]
    logits = torch.where(draw < settings.true_masks + settings.first_masks, first, last).unsqueeze(1).float()
    predicted = functional.interpolate(logits, masks.shape[-2:], mode="bilinear").squeeze(1).sigmoid()
    return torch.where(draw < settings.true_masks, masks.to(predicted.dtype), predicted)


def find(
    backbone: Backbone,
    propagation: Propagation,
    episode: Episode,
    query: Features,
    support: Features,
    shown: Tensor,
    settings: EpisodeLearning,
) -> StepResult:
    """Compute losses and figures of the lesions found with the exemplars of each group, and without exemplars.

    Args:
        backbone: The backbone.
        propagation: The propagation to train.
        episode: The batch.
        query: Features of the B queries.
        support: Features of the B x G x K supports.
        shown: (B x G x K, P, P) float, masks that describe the exemplars.
        settings: Weights and shares.
    """
    batch, groups, count = episode.support_valid.shape
    exemplars = propagation.describe(support, shown, backbone).reshape(batch * groups, count)
    exemplars = exemplars.map(valid=exemplars.valid & _shown_count(episode) & episode.support_valid.flatten(0, 1))
    questions = _with_negatives(exemplars, episode, settings).and_none(groups)
    prediction = propagation(query, questions, backbone)
    each = prediction.logits.unflatten(0, (batch, groups + 1))
    logits, alone = each[:, :groups], each[:, groups]
    target = episode.query_targets.to(logits.dtype)
    asked = episode.support_valid.any(2)  # (B, G): a group without exemplars asks nothing
    lesions = episode.query_lesions.to(logits.dtype)
    wanted = torch.cat([target, lesions.unsqueeze(1)], dim=1)  # (B, G + 1, P, P)
    if prediction.drafts is None:
        mask_losses = mask_loss(each, wanted)
    else:
        drafts = prediction.drafts.unflatten(0, (batch, groups + 1))[:, :groups]
        mask_losses = mask_loss(torch.cat([each, drafts], dim=1), torch.cat([wanted, target], dim=1))
    presence = _presence_loss(prediction, wanted.flatten(0, 1)).view(batch, groups + 1)
    alone_weight = settings.no_exemplar_weight
    losses = {
        "semantic": settings.semantic_weight * masked_average(mask_losses[:, :groups], asked),
        "semantic_presence": settings.presence_weight * masked_average(presence[:, :groups], asked),
        "alone": settings.semantic_weight * alone_weight * mask_losses[:, groups].mean(),
        "alone_presence": settings.presence_weight * alone_weight * presence[:, groups].mean(),
    }
    if prediction.drafts is not None:
        draft = masked_average(mask_losses[:, groups + 1 :], asked)
        losses["draft"] = settings.semantic_weight * settings.draft_weight * draft
    if prediction.cores is not None and episode.query_cores.numel():
        losses["core"] = _core_loss(prediction.cores, wanted, episode, settings)
    with torch.no_grad():
        one, other = logits[:, 0] > 0, logits[:, 1] > 0
        first, second = episode.query_targets[:, 0], episode.query_targets[:, 1]
        lesion_pair = episode.group_is_lesion[:, 0] & episode.group_is_lesion[:, 1]
        figures = {
            "right": pooled_dice(one, first, asked[:, 0]),
            "wrong": pooled_dice(other, first, asked[:, 1]),
            "swapped": pooled_dice(other, second, lesion_pair),
            "no_exemplars": pooled_dice(alone > 0, first, asked[:, 0]),
        }
    return StepResult(losses, figures)


def _ignore_part(part: str) -> None:
    """Do nothing: by default no caller wants to know when a part begins."""


def _presence_loss(answer: SemanticPrediction, masks: Tensor) -> Tensor:
    return presence_losses(answer.presence.unsqueeze(0), masks).squeeze(0)


def _core_loss(logits: Tensor, wanted: Tensor, episode: Episode, settings: EpisodeLearning) -> Tensor:
    """Return the loss of the cores, a scalar, weighted as the loss of the masks is.

    Args:
        logits: (B x (G + 1), P, P), logits of the cores.
        wanted: (B, G + 1, P, P) float, the lesions of each group, then all lesions.
        episode: The batch.
        settings: Weights.
    """
    cores = wanted * episode.query_cores.unsqueeze(1)
    each = mask_loss(logits.view_as(cores), cores)  # (B, G + 1)
    groups = masked_average(each[:, :-1], episode.support_valid.any(2))
    loss = groups + settings.no_exemplar_weight * each[:, -1].mean()
    return settings.semantic_weight * settings.core_weight * loss


def _with_negatives(exemplars: Exemplars, episode: Episode, settings: EpisodeLearning) -> Exemplars:
    """Add the exemplars of the other group to some queries, as negative exemplars."""
    batch, groups, _ = episode.support_valid.shape
    order = torch.arange(batch * groups, device=exemplars.valid.device).view(batch, groups).flip(1).flatten()
    others = exemplars.each(lambda tensor: tensor[order])
    chosen = (episode.chance[:, NEGATIVES] < settings.negatives).repeat_interleave(groups).unsqueeze(1)
    return Exemplars.cat(
        [exemplars, others.map(valid=others.valid & chosen, negative=torch.ones_like(others.negative))]
    )


def _shown_count(episode: Episode) -> Tensor:
    """Return which exemplars of each group are shown, (B x G, K) bool: at least one exemplar of a group."""
    _, groups, count = episode.support_valid.shape
    most = 1 + (episode.chance[:, COUNT] * count).floor()
    keep = torch.arange(count, device=most.device) < most.unsqueeze(1)
    return keep.repeat_interleave(groups, 0)


def _spread(chance: Tensor, items: int) -> Tensor:
    """Return random numbers for each item of an episode, (B x items, 9), in steps of the golden ratio."""
    shift = 0.6180339887 * torch.arange(1, items + 1, device=chance.device, dtype=chance.dtype)
    return ((chance[:, None, CLICKS : CLICKS + 9] + shift[None, :, None]) % 1.0).flatten(0, 1)


def names(propagations: Sequence[Propagation]) -> dict[str, Propagation]:
    """Return the propagations by the prefix of their figures: "" for the first, "CLASS/" or "CLASS2/" for others."""
    named: dict[str, Propagation] = {}
    for index, module in enumerate(propagations):
        name = type(module).__name__.lower()
        twice = sum(type(other) is type(module) for other in propagations[1:index])
        named[f"{name}{twice + 1 if twice else ''}/" if index else ""] = module
    return named
