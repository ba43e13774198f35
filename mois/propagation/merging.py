"""Exemplars that look most alike become one. So the cost of a question does not grow with its bank."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mois.records import Exemplars

SIGN_DISTANCE = 1e3
"""Added between positive and negative exemplars: further than any two exemplars of one sign lie apart."""


def merge_most_alike(exemplars: Exemplars, looks: Tensor, most: int) -> Exemplars:
    """Return banks of `most` exemplars that stand for larger ones; negative ones are merged with negative ones only.

    Those that differ most become the centres, each of the others joins the nearest one. Tokens are averaged by weight;
    a merged exemplar weighs as much as all that it stands for. The order plays no part.

    Args:
        exemplars: (B, K), K above `most`.
        looks: (B, K, D) float32, what makes exemplars alike.
        most: M, 2 or more.
    """
    signed = torch.cat([looks, SIGN_DISTANCE * exemplars.negative.float().unsqueeze(2)], dim=2)
    share = functional.one_hot(_nearest_centre(signed, exemplars.present, most), most).bool()
    share &= exemplars.present.unsqueeze(2)  # (B, K, M)
    weight = share * exemplars.weight.unsqueeze(2)
    total = weight.sum(1)
    mean = weight / torch.where(total > 0, total, 1.0).unsqueeze(1)
    tokens = {
        name: torch.einsum("bkm,bk...->bm...", mean, token.float()).to(token.dtype)
        for name, token in exemplars.tokens.items()
    }
    return Exemplars(tokens, share.any(1), (share & exemplars.negative.unsqueeze(2)).any(1), total)


def _nearest_centre(looks: Tensor, present: Tensor, most: int) -> Tensor:
    """Return the centre that each exemplar belongs to, (B, K); a centre is the one farthest from all before it.

    Source: Gonzalez, Clustering to minimize the maximum intercluster distance, Theoretical Computer Science 1985.
    """
    rows = torch.arange(len(looks), device=looks.device)
    some = present.unsqueeze(2).float()
    middle = (looks * some).sum(1, keepdim=True) / some.sum(1, keepdim=True).clamp(min=1)
    first = (looks - middle).norm(dim=2).masked_fill(~present, -1).argmax(1)
    distance = (looks - looks[rows, first].unsqueeze(1)).norm(dim=2).masked_fill(~present, -1)
    centre = torch.zeros_like(present, dtype=torch.int64)
    for number in range(1, most):
        chosen = distance.argmax(1)
        away = (looks - looks[rows, chosen].unsqueeze(1)).norm(dim=2)
        closer = away < distance
        centre = torch.where(closer, number, centre)
        distance = torch.where(closer, away, distance)
    return centre
