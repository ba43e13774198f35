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
        Padding and exemplars of weight 0 take no room. At least one token of each zone is kept, and the tokens that are
        kept count as much as all tokens of their zone.
        """
        share = _shares(exemplars.present.sum(1), every, most)  # (B, T)
        kept = (exemplars.present.unsqueeze(2) & (share > 0).unsqueeze(1)).flatten(1)  # (B, K x T)
        running = kept.long().cumsum(1)
        rank = torch.arange(1, _room(exemplars.count, every, most) + 1, device=kept.device).expand(len(kept), -1)
        at = torch.searchsorted(running, rank.contiguous()).clamp(max=kept.shape[1] - 1)  # (B, L)
        own, slot = at // TOKENS, at % TOKENS
        row = torch.arange(len(at), device=at.device).unsqueeze(1)
        features, inside, weight = (
            exemplars.tokens[name][row, own, slot].float() for name in ("features", "inside", "weight")
        )
        weight = weight * exemplars.weight.gather(1, own) * share.gather(1, slot) * (rank <= running[:, -1:])
        zone = zones_of_tokens(at.device)[slot]
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
        return ((features - self.mean) / self.deviation).clamp(-CLIPPED_AT, CLIPPED_AT)


def _room(count: int, every: int, most: int | None) -> int:
    """Return the largest number L of tokens that K exemplars take in `TokenSet.of`."""
    wanted = count * ceil(TOKENS / every)
    return wanted if most is None else min(wanted, max(most + count, len(ZONE_TOKENS) * count))


def _shares(count: Tensor, every: int, most: int | None) -> Tensor:
    """Return how many tokens each token of an exemplar stands for, 0 for one that is left out.

    Args:
        count: (B,) number of exemplars of each question.
        every: Of so many tokens, one is kept.
        most: About how many tokens a question has at most.

    Returns:
        (B, T) float32.
    """
    zone = zones_of_tokens(count.device)
    slot = torch.arange(TOKENS, device=count.device)
    step = torch.full_like(count, every)
    if most is not None:
        step = torch.maximum(step, (count * TOKENS + most - 1) // most)
    thinned = slot % step.unsqueeze(1) == 0  # (B, T)
    there = functional.one_hot(zone, len(ZONE_TOKENS)).float()  # (T, zones)
    middle = (there.cumsum(0) == (there.sum(0) / 2).ceil()).float() * there
    kept = torch.where((step > min(ZONE_TOKENS.values())).unsqueeze(1), middle.any(1), thinned)
    size = there.sum(0) / (kept.float() @ there)  # (B, zones)
    return kept * size[:, zone]


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
