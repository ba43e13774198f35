"""What a model learns from one batch of episodes: clicks, tracking, and finding what is like the exemplars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mois.clicks import correct, first_click
from mois.interfaces import Backbone, Memory, Propagation, TrackingRules
from mois.records import Episode, Exemplars, Features, MaskPrediction, Prompts, SemanticPrediction
from mois.training.losses import mask_loss, masked_average, soft_iou

# columns of Episode.chance
NEGATIVES, COUNT, CLICKS = 0, 1, 8

# Masks are compared at half the patch's resolution: at a quarter, where SAM2 answers, a lesion of a few pixels covers
# less than half a cell, and to answer nothing would be right.
HALF = 2


@dataclass(frozen=True)
class EpisodeLearning:
    """How an episode becomes a loss.

    Attributes:
        corrections: Most correction clicks after the first; training steps cycle through 1 to this number.
        true_masks: Share of exemplars described from their true masks instead of the predicted ones.
        negatives: Share of queries that get the other group's exemplars as negative ones.
        click_weight: Of the loss of clicked masks, averaged over clicks.
        track_weight: Of the loss of tracked masks.
        semantic_weight: Of the loss of what is found by exemplars.
        draft_weight: Of the loss of a propagation's first draft, where it makes one, relative to that of its result.
        no_exemplar_weight: Of the loss of what is found without, relative to that with exemplars.
        presence_weight: Of the presence score of each of the above.
    """

    corrections: int = 3
    true_masks: float = 0.3
    negatives: float = 0.2
    click_weight: float = 1.0
    track_weight: float = 0.5
    semantic_weight: float = 1.0
    draft_weight: float = 0.4
    no_exemplar_weight: float = 0.3
    presence_weight: float = 0.1

    def __post_init__(self) -> None:
        """Refuse shares outside 0 to 1 and a first click that could never be corrected."""
        for name in ("true_masks", "negatives"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"model.learning.{name}={getattr(self, name)} is a share; choose 0 to 1.")
        if not 1 <= self.corrections <= 7:
            raise ValueError(f"model.learning.corrections={self.corrections}; choose 1 to 7.")


class Outcome(NamedTuple):
    """Losses to sum, and figures to log (NaN where a batch says nothing about one)."""

    losses: dict[str, Tensor]
    figures: dict[str, Tensor]


def pictures(backbone: Backbone, episode: Episode) -> Tensor:
    """Return the images that a batch's step looks at, (N, P, P): supports, queries, and clips if they are tracked."""
    images = [episode.support_images.flatten(0, 2), episode.query_images]
    if tracks(backbone, episode):
        images.append(episode.track_images.flatten(0, 1))
    return torch.cat(images)


def tracks(backbone: Backbone, episode: Episode) -> bool:
    """Tell whether tracking teaches anything: with a frozen backbone its loss is a constant."""
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
) -> Outcome:
    """Run a batch of episodes.

    What is frozen keeps nothing for a backward pass: autograd's graph begins at the first trained tensor.

    Args:
        backbone: The backbone.
        propagations: By the prefix of their figures; the first has none ("").
        episode: The batch.
        settings: Weights and shares.
        step: Number of the training step; it sets the number of clicks, alike on all ranks.
        encode: Gives the features of `pictures`; the backbone does by default.
        begin: Is told the name of each part before it begins: click, track, semantic.
        tracking: What of earlier slices a slice attends to; what the backbone's rules say by default.
    """
    begin = begin or _untold
    batch, groups, count = episode.support_valid.shape
    supports = batch * groups * count
    features = (encode or backbone.encode)(pictures(backbone, episode))
    support = features.select(slice(0, supports))
    query = features.select(slice(supports, supports + batch))

    begin("click")
    masks = episode.support_masks.flatten(0, 2)
    clicks = 1 + step % settings.corrections
    chance = _spread(episode.chance, groups * count)
    start = first_click(masks, chance[:, 0])
    if tracks(backbone, episode):  # the first clicks of supports and clips are answered together
        clip = episode.track_images.shape[1]
        middles = torch.arange(batch, device=masks.device) * clip + clip // 2
        on_clips = first_click(episode.track_masks[:, clip // 2], episode.chance[:, -1])
        rows = torch.cat([torch.arange(supports, device=masks.device), supports + batch + middles])
        both = Prompts(torch.cat([start.points, on_clips.points]), torch.cat([start.labels, on_clips.labels]))
        first = backbone.decode(features.select(rows), both)
        answer, on_clip = (
            MaskPrediction(*(part[some] for part in first)) for some in (slice(supports), slice(supports, None))
        )
    else:
        answer = backbone.decode(support, start)
    click = _click(backbone, support, masks, episode.support_valid.flatten(), chance, clicks, start, answer)
    losses = {
        "click": settings.click_weight * click.loss,
        "click_presence": settings.presence_weight * click.presence_loss,
    }
    figures = {"click_first_dice": click.first_dice, "click_last_dice": click.last_dice}
    if tracks(backbone, episode):
        begin("track")
        track = features.select(slice(supports + batch, None))
        tracked = _track(backbone, track, episode, tracking or backbone.tracking, on_clip)
        losses |= {
            "track": settings.track_weight * tracked.loss,
            "track_presence": settings.presence_weight * tracked.presence_loss,
        }
        figures["track_dice"] = tracked.last_dice

    begin("semantic")
    predicted = (
        functional.interpolate(click.logits.unsqueeze(1).float(), masks.shape[-2:], mode="bilinear")
        .squeeze(1)
        .sigmoid()
    )
    use_truth = chance[:, -1] < settings.true_masks
    shown = torch.where(use_truth[:, None, None], masks.to(predicted.dtype), predicted)
    for prefix, propagation in propagations.items():
        found = find(backbone, propagation, episode, query, support, shown, settings)
        losses |= {prefix + name: value for name, value in found.losses.items()}
        figures |= {prefix + name: value for name, value in found.figures.items()}
    return Outcome(losses, figures)


def find(
    backbone: Backbone,
    propagation: Propagation,
    episode: Episode,
    query: Features,
    support: Features,
    shown: Tensor,
    settings: EpisodeLearning,
) -> Outcome:
    """Find what is like each group's exemplars, and what is a lesion at all without any.

    Args:
        backbone: The backbone.
        propagation: The propagation to train.
        episode: The batch.
        query: Features of the B queries.
        support: Features of the B x G x K supports.
        shown: (B x G x K, P, P) float, the masks that the exemplars are described by.
        settings: Weights and shares.
    """
    batch, groups, count = episode.support_valid.shape
    exemplars = propagation.describe(support, shown, backbone).reshape(batch * groups, count)
    exemplars = exemplars.map(valid=exemplars.valid & _shown_count(episode) & episode.support_valid.flatten(0, 1))
    questions = _and_without(_with_negatives(exemplars, episode, settings), groups)
    prediction = propagation(query, questions, backbone)
    each = prediction.logits.unflatten(0, (batch, groups + 1))
    logits, alone = each[:, :groups], each[:, groups]
    target = episode.query_targets.to(logits.dtype)
    asked = episode.support_valid.any(2)  # (B, G): a group without exemplars asks nothing
    lesions = episode.query_lesions.to(logits.dtype)
    wanted = torch.cat([target, lesions.unsqueeze(1)], dim=1)  # (B, G + 1, P, P)
    if prediction.drafts is None:
        found = mask_loss(each, wanted)
    else:
        drafts = prediction.drafts.unflatten(0, (batch, groups + 1))[:, :groups]
        found = mask_loss(torch.cat([each, drafts], dim=1), torch.cat([wanted, target], dim=1))
    presence = _presence_loss(prediction, wanted.flatten(0, 1)).view(batch, groups + 1)
    alone_weight = settings.no_exemplar_weight
    losses = {
        "semantic": settings.semantic_weight * masked_average(found[:, :groups], asked),
        "semantic_presence": settings.presence_weight * masked_average(presence[:, :groups], asked),
        "alone": settings.semantic_weight * alone_weight * found[:, groups].mean(),
        "alone_presence": settings.presence_weight * alone_weight * presence[:, groups].mean(),
    }
    if prediction.drafts is not None:
        draft = masked_average(found[:, groups + 1 :], asked)
        losses["draft"] = settings.semantic_weight * settings.draft_weight * draft
    with torch.no_grad():
        one, other = logits[:, 0] > 0, logits[:, 1] > 0
        first, second = episode.query_targets[:, 0], episode.query_targets[:, 1]
        lesion_pair = episode.group_is_lesion[:, 0] & episode.group_is_lesion[:, 1]
        figures = {
            "right": _pooled_dice(one, first, asked[:, 0]),
            "wrong": _pooled_dice(other, first, asked[:, 1]),
            "swapped": _pooled_dice(other, second, lesion_pair),
            "no_exemplars": _pooled_dice(alone > 0, first, asked[:, 0]),
        }
    return Outcome(losses, figures)


def _untold(part: str) -> None:
    """Take no notice."""


class _Answers(NamedTuple):
    loss: Tensor
    presence_loss: Tensor
    first_dice: Tensor
    last_dice: Tensor
    logits: Tensor


def _click(
    backbone: Backbone,
    features: Features,
    masks: Tensor,
    keep: Tensor,
    chance: Tensor,
    corrections: int,
    prompts: Prompts,
    answer: MaskPrediction,
) -> _Answers:
    """Correct the answer to the first clicks; every answer is supervised, not only the first."""
    answers = [answer]
    for step in range(corrections):
        prompts = correct(prompts, answers[-1].logits, masks, chance[:, step + 1])
        answers.append(backbone.decode(features, prompts))
    target = _halve(masks)
    ends = _enlarge(torch.stack([answers[0].logits, answers[-1].logits], dim=1)) > 0
    whole = target > 0.5
    presence = torch.stack([answer.presence for answer in answers])  # (answers, N)
    return _Answers(
        masked_average(_best_candidate_losses(answers, target), keep),
        masked_average(_presence_losses(presence, masks), keep),
        _pooled_dice(ends[:, 0], whole, keep),
        _pooled_dice(ends[:, 1], whole, keep),
        answers[-1].logits,
    )


def _track(
    backbone: Backbone, features: Features, episode: Episode, rules: TrackingRules, first: MaskPrediction
) -> _Answers:
    """Follow each clip's lesion both ways, in step, from the answer to the click on its middle slice."""
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
    # masks and their quality are learned where the lesion is; that it is gone is for the presence score to say
    at_click = masked_average(_best_candidate_losses([first], target[slices[:, middle]]), present[slices[:, middle]])
    along = masked_average(_best_candidate_losses([tracked], target[all_here]), present[all_here])
    presence = _presence_losses(tracked.presence.unsqueeze(0), masks.flatten(0, 1)[all_here])
    there = target[all_here] > 0.5
    found = _enlarge(tracked.logits.unsqueeze(1)).squeeze(1) > 0
    figure = _pooled_dice(found, there, torch.ones_like(there[:, 0, 0]))
    return _Answers((at_click + middle * along) / (1 + middle), presence.mean(), figure, figure, first.logits)


def _best_candidate_losses(answers: Sequence[MaskPrediction], target: Tensor) -> Tensor:
    """The mask loss of each answer's best candidate, and the error of the predicted quality of all, (answers, N).

    Candidates of all answers are compared with their target together: it is the same for all.
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
    """Cover of each cell of half the resolution, (N, P / 2, P / 2) float, of masks (N, P, P) bool."""
    return functional.avg_pool2d(masks.unsqueeze(1).float(), HALF).squeeze(1)


def _enlarge(logits: Tensor) -> Tensor:
    """SAM2's answers (N, M, P / 4, P / 4) at half the patch's resolution."""
    return functional.interpolate(logits.float(), scale_factor=4 / HALF, mode="bilinear")


def _presence_loss(answer: SemanticPrediction, masks: Tensor) -> Tensor:
    return _presence_losses(answer.presence.unsqueeze(0), masks).squeeze(0)


def _presence_losses(presence: Tensor, masks: Tensor) -> Tensor:
    """The loss of the presence scores (answers, N) of N masks, (answers, N)."""
    there = (masks.flatten(1) > 0.5).any(1).float().expand_as(presence)
    return functional.binary_cross_entropy_with_logits(presence.float(), there, reduction="none")


def _with_negatives(exemplars: Exemplars, episode: Episode, settings: EpisodeLearning) -> Exemplars:
    """Show some queries the other group's exemplars too, as what is not to be found."""
    batch, groups, _ = episode.support_valid.shape
    order = torch.arange(batch * groups, device=exemplars.valid.device).view(batch, groups).flip(1).flatten()
    others = exemplars.each(lambda tensor: tensor[order])
    chosen = (episode.chance[:, NEGATIVES] < settings.negatives).repeat_interleave(groups).unsqueeze(1)
    return Exemplars.cat(
        [exemplars, others.map(valid=others.valid & chosen, negative=torch.ones_like(others.negative))]
    )


def _and_without(exemplars: Exemplars, groups: int) -> Exemplars:
    """Add the question without any exemplars as each query's last: (B x G, K) to (B x (G + 1), K).

    All are answered together; a row in which none is valid has none (`Exemplars.valid`).
    """
    rows = torch.arange(len(exemplars.valid), device=exemplars.valid.device).view(-1, groups)
    with_one_more = torch.cat([rows, rows[:, :1]], dim=1)
    shown = (torch.arange(groups + 1, device=rows.device) < groups).expand_as(with_one_more).reshape(-1, 1)
    more = exemplars.each(lambda tensor: tensor[with_one_more.flatten()])
    return more.map(valid=more.valid & shown)


def _shown_count(episode: Episode) -> Tensor:
    """(B x G, K) bool: between one and all of a group's exemplars are shown."""
    _, groups, count = episode.support_valid.shape
    most = 1 + (episode.chance[:, COUNT] * count).floor()
    keep = torch.arange(count, device=most.device) < most.unsqueeze(1)
    return keep.repeat_interleave(groups, 0)


def _spread(chance: Tensor, items: int) -> Tensor:
    """Give each of an episode's items its own random numbers, (B x items, 9), in golden-ratio steps."""
    shift = 0.6180339887 * torch.arange(1, items + 1, device=chance.device, dtype=chance.dtype)
    return ((chance[:, None, CLICKS : CLICKS + 9] + shift[None, :, None]) % 1.0).flatten(0, 1)


def _pooled_dice(found: Tensor, truth: Tensor, keep: Tensor) -> Tensor:
    """Dice over all pictures to keep at once; NaN where these hold no truth."""
    keep = keep.view(-1, *([1] * (found.ndim - 1)))
    overlap = (found & truth & keep).sum()
    there = (truth & keep).sum()
    dice = 2 * overlap / ((found & keep).sum() + there).clamp(min=1)
    return torch.where(there > 0, dice, torch.nan)


def names(propagations: Sequence[Propagation]) -> dict[str, Propagation]:
    """Give each propagation the prefix of its figures: none for the first, the class's name (numbered) for others."""
    named: dict[str, Propagation] = {}
    for index, module in enumerate(propagations):
        name = type(module).__name__.lower()
        twice = sum(type(other) is type(module) for other in propagations[1:index])
        named[f"{name}{twice + 1 if twice else ''}/" if index else ""] = module
    return named
