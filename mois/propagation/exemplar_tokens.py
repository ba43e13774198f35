"""An exemplar as a bounded set of tokens: single places inside a lesion, around it and further away.

Axes: B questions, K exemplars, T tokens of an exemplar, L = K x T tokens of a question, F features of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mois.propagation.kernel import NEVER, kernel_mean
from mois.propagation.pooling import is_present
from mois.records import Exemplars

STRIDE = 2
"""Pixels per cell of the grid that tokens are taken from."""

NEAR_CELLS = 6
"""How far the surroundings of a lesion reach, in cells."""

CORE, RIM, NEAR, FAR = range(4)
ZONE_TOKENS = {CORE: 36, RIM: 28, NEAR: 36, FAR: 20}
"""Tokens of an exemplar by zone: inside, along the border, around, and in further tissue."""

ZONE_WEIGHT = {CORE: 0.6, RIM: 0.4, NEAR: 0.5, FAR: 0.5}
"""What the tokens of a zone count together."""

TOKENS = sum(ZONE_TOKENS.values())
"""T."""

CLIPPED_AT = 5.0
"""Standard deviations beyond which a feature is as good as there."""

SMALLEST_WEIGHT = 1e-4
SMALLEST_DENSITY = 1e-9

_AIR = 0.02  # smoothed intensity of a cell of air or padding
_SMALLEST_DEVIATION = 1e-4
_SMALLEST_WEIGHT = 1e-6


class TokenSet(NamedTuple):
    """All tokens of B questions side by side.

    Attributes:
        features: (B, L, F) float32.
        inside: (B, L), share of the token's cell that is inside its lesion, 0 to 1.
        zone: (B, L) int64, CORE, RIM, NEAR or FAR.
        negative: (B, L) bool, tokens of negative exemplars.
        weight: (B, L), 0 for what does not count.
    """

    features: Tensor
    inside: Tensor
    zone: Tensor
    negative: Tensor
    weight: Tensor

    @staticmethod
    def of(exemplars: Exemplars, every: int = 1, most: int | None = None) -> TokenSet:
        """Put the tokens of K exemplars side by side; with `every`, one of so many neighbours only.

        With `most`, `every` is as large as it must be for at most about `most` tokens of a question: the more exemplars
        it has, the fewer tokens of each. So the cost of a comparison does not grow with the number of exemplars.
        Padding and exemplars of weight 0 take no room. Zones keep their weight, about or exactly (`_times`).
        """
        kept = _kept(exemplars, every, most)  # (B, K, T)
        running = kept.flatten(1).long().cumsum(1)
        rank = torch.arange(_room(exemplars.count, every, most), device=kept.device) + 1
        at = torch.searchsorted(running, rank.expand(len(kept), -1).contiguous()).clamp(max=running.shape[1] - 1)
        own, slot = at // TOKENS, at % TOKENS  # (B, L)
        row = torch.arange(len(at), device=at.device).unsqueeze(1)
        features, inside, weight = (
            exemplars.tokens[name][row, own, slot].float() for name in ("features", "inside", "weight")
        )
        zone = zones_of_tokens(at.device)[slot]
        weight = weight * exemplars.weight.gather(1, own) * (rank <= running[:, -1:])
        weight = weight * _times(kept, exemplars.present).gather(1, zone)
        return TokenSet(features, inside, zone, exemplars.negative.gather(1, own), weight)


@dataclass(frozen=True)
class Scale:
    """What makes the features of a question comparable: mean and deviation over its own tokens, (B, 1, F) each."""

    mean: Tensor
    deviation: Tensor

    @staticmethod
    def of(tokens: TokenSet) -> Scale:
        """Measure the tokens of B questions by their weights; where none counts, mean 0 and deviation 1."""
        share = tokens.weight.unsqueeze(2)
        total = share.sum(1, keepdim=True)
        some = total > 0
        share = share / torch.where(some, total, 1.0)
        mean = (share * tokens.features).sum(1, keepdim=True)
        variance = (share * (tokens.features - mean).square()).sum(1, keepdim=True)
        deviation = torch.where(some, (variance + _SMALLEST_DEVIATION**2).sqrt(), 1.0)
        return Scale(mean, deviation)

    def __call__(self, features: Tensor) -> Tensor:
        """Standardise (B, n, F)."""
        centred = features - self.mean
        if torch.is_grad_enabled():
            return (centred / self.deviation).clamp(-CLIPPED_AT, CLIPPED_AT)
        return centred.div_(self.deviation).clamp_(-CLIPPED_AT, CLIPPED_AT)  # no further memory: a fourth of the time


def _kept(exemplars: Exemplars, every: int, most: int | None) -> Tensor:
    """Return which tokens of present exemplars are compared, (B, K, T) bool; see `TokenSet.of`.

    Each exemplar keeps one of `every` neighbours; then one token of each zone; then one of some zones, other exemplars
    of other zones. Turns go by content, not by place, so that the order of the exemplars does not matter.
    """
    zone, present = zones_of_tokens(exemplars.valid.device), exemplars.present
    slot = torch.arange(TOKENS, device=zone.device)
    if most is None:
        return present.unsqueeze(2) & (slot % every == 0)
    count = present.sum(1, keepdim=True)  # (B, 1)
    step = ((count * TOKENS + most - 1) // most).clamp(min=every)
    there = functional.one_hot(zone, len(ZONE_TOKENS))  # (T, zones)
    middle = ((there.cumsum(0) == (there.sum(0) + 1) // 2) & (there > 0)).any(1)
    kept = torch.where(step > min(ZONE_TOKENS.values()), middle, slot % step == 0).unsqueeze(1)  # (B, 1, T)
    if exemplars.count * len(ZONE_TOKENS) > most:
        turns = ((count * len(ZONE_TOKENS) + most - 1) // most).clamp(min=1).unsqueeze(2)
        content = exemplars.tokens["features"].float().mean((2, 3)).masked_fill(~present, torch.inf)
        kept = kept & ((content.argsort(1).argsort(1).unsqueeze(2) + zone) % turns == 0)
    return kept & present.unsqueeze(2)


@cache
def _room(count: int, every: int, most: int | None) -> int:
    """Return the largest number of tokens that `_kept` keeps of a question with at most `count` exemplars."""
    if most is None:
        return count * ceil(TOKENS / every)
    largest = 0
    for present in range(1, count + 1):
        step = max(every, ceil(present * TOKENS / most))
        turns = ceil(present * len(ZONE_TOKENS) / most)
        each = len(ZONE_TOKENS) if step > min(ZONE_TOKENS.values()) else ceil(TOKENS / step)
        largest = max(largest, present * each if turns == 1 else len(ZONE_TOKENS) * ceil(present / turns))
    return largest


def _times(kept: Tensor, present: Tensor) -> Tensor:
    """Return how many tokens of its zone each kept token (B, K, T) stands for, by zone (B, zones).

    One of `every` neighbours leaves the zones about the weights that they have among each other: 1. With fewer tokens
    of an exemplar it would not.
    """
    there = functional.one_hot(zones_of_tokens(kept.device), len(ZONE_TOKENS)).float()  # (T, zones)
    times = present.sum(1, keepdim=True) * there.sum(0) / (kept.float().sum(1) @ there).clamp(min=1)
    several = kept.sum(2).amax(1, keepdim=True) > len(ZONE_TOKENS)  # (B, 1)
    return torch.where(several, 1.0, times)


def for_each_question(cells: Tensor, questions: int) -> Tensor:
    """Return the cells of N images for B = N x R questions: (N, n, F) to (B, n, F), without a copy if R = 1."""
    return cells if len(cells) == questions else cells.repeat_interleave(questions // len(cells), 0)


def kernel_log_odds(cells: Tensor, tokens: TokenSet, temperature: float) -> Tensor:
    """Return the log-odds that cells are inside a lesion, by a kernel mean over the tokens.

    What is inside and what is outside count the same together, whatever the number and size of the exemplars.

    Args:
        cells: (N, n, F), features of the cells of N images.
        tokens: Tokens of B = N x R questions. They standardise the features.
        temperature: Width of the kernel, as a squared distance a feature.

    Returns:
        (B, n).
    """
    scale = Scale.of(tokens)
    keys = scale(tokens.features)  # (B, L, F)
    queries = scale(for_each_question(cells, len(keys)))  # (B, n, F)
    unit = (keys.shape[2] * temperature) ** -0.5
    inside = tokens.inside * ~tokens.negative
    sides = torch.stack([tokens.weight * inside, tokens.weight * (1 - inside)], dim=2)  # (B, L, 2)
    sides = sides / sides.sum(1, keepdim=True).clamp(min=SMALLEST_WEIGHT)
    counts = torch.where(tokens.weight > 0, 0.0, NEVER)
    one_head = (part.unsqueeze(1) for part in (unit * queries, unit * keys, counts, sides))
    density = kernel_mean(*one_head).squeeze(1).clamp(min=SMALLEST_DENSITY).log()  # (B, n, 2)
    return density[..., 0] - density[..., 1]


def zone_means(features: Tensor, tokens: TokenSet) -> Tensor:
    """Return the mean features of each zone of the positive exemplars of B questions.

    Args:
        features: (B, L, F), the features of the tokens, standardised or not.
        tokens: What the tokens are.

    Returns:
        (B, 4 x F), in the order core, rim, surroundings, further tissue.
    """
    weight = tokens.weight * ~tokens.negative
    means = []
    for zone in ZONE_TOKENS:
        own = weight * (tokens.zone == zone)
        means.append((own.unsqueeze(2) * features).sum(1) / own.sum(1, keepdim=True).clamp(min=_SMALLEST_WEIGHT))
    return torch.cat(means, dim=1)


def take_tokens(cells: Tensor, images: Tensor, on: Tensor, masks: Tensor) -> Exemplars:
    """Describe M lesions on N images by T single cells each.

    Args:
        cells: (N, F, h, w), features of the cells of each image.
        images: (N, C, P, P).
        on: (M,) int64, the image that each lesion lies on.
        masks: (M, P, P), 0 to 1, one lesion each.

    Returns:
        Exemplars with B = M and K = 1. Tokens: features (M, 1, T, F) and weight and inside (M, 1, T), all float16. A
        mask that is empty is not valid.
    """
    share = functional.avg_pool2d(masks.unsqueeze(1), STRIDE)
    taken = _places(share.detach(), functional.avg_pool2d(images.amax(1, keepdim=True), STRIDE)[on])
    features = cells.flatten(2)[on.unsqueeze(1), :, taken.cells]  # (M, T, F): only these cells are copied
    inside = torch.gather(share.flatten(1), 1, taken.cells)
    present = is_present(masks)
    tokens = {
        "features": features.unsqueeze(1).half(),
        "inside": inside.unsqueeze(1).half(),
        "weight": (taken.weight * present).unsqueeze(1).half(),
    }
    return Exemplars(tokens, present, torch.zeros_like(present))


class _Places(NamedTuple):
    """Cells (N, T) int64 that tokens are taken from, and the weight (N, T) of each."""

    cells: Tensor
    weight: Tensor


@cache
def zones_of_tokens(device: torch.device) -> Tensor:
    """Return the zone of each token slot, (T,) int64. It is sent to a device once."""
    with torch.inference_mode(False):  # a training may use it after an inference
        zones = [zone for zone, number in ZONE_TOKENS.items() for _ in range(number)]
        return torch.tensor(zones, device=device)


def _places(share: Tensor, image: Tensor) -> _Places:
    """Choose T cells of each lesion, evenly spread over each zone in the order of the grid."""
    most = share.amax((2, 3), keepdim=True)
    inside = (share >= 0.5) | ((most < 0.5) & (share > 0) & (share >= most))  # smaller than a cell: its surest cell
    solid = inside.float()
    core = -functional.max_pool2d(-solid, 3, stride=1, padding=1) > 0
    close = functional.max_pool2d(solid, 3, stride=1, padding=1) > 0
    near = functional.max_pool2d(solid, 2 * NEAR_CELLS + 1, stride=1, padding=NEAR_CELLS) > 0
    zones = {CORE: core, RIM: close & ~core, NEAR: near & ~close, FAR: ~near & (image > _AIR)}
    cells, weights = [], []
    for zone, wanted in ZONE_TOKENS.items():
        running = zones[zone].flatten(1).long().cumsum(1)  # (N, h * w)
        count = running[:, -1:]
        rank = ((torch.arange(wanted, device=share.device) + 0.5) * count / wanted).floor().long() + 1
        found = torch.searchsorted(running, rank).clamp(max=running.shape[1] - 1)
        cells.append(found)
        weights.append((count > 0).float().expand(-1, wanted) * (ZONE_WEIGHT[zone] / wanted))
    return _Places(torch.cat(cells, dim=1), torch.cat(weights, dim=1))
