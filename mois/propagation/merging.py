"""Merges the exemplars that look most alike, so that the cost of a question does not grow with the bank."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mois.records import Exemplars

SIGN_DISTANCE = 1e3
"""Distance added between positive and negative exemplars. Two exemplars of one sign are never this far apart."""


def merge_most_alike(exemplars: Exemplars, descriptors: Tensor, most: int) -> Exemplars:
    """Merge each bank of K exemplars into M exemplars. Negative exemplars are merged only with negative exemplars.

    The exemplars that differ most become the centres. Every other exemplar joins its nearest centre. Tokens are
    averaged by weight, and the weights are added. The order of the exemplars plays no part.

    Args:
        exemplars: (B, K), K above `most`.
        descriptors: (B, K, D) float32, descriptors: near exemplars look alike.
        most: M, 2 or more.

    Returns:
        (B, M) exemplars.
    """
    signed_descriptors = torch.cat([descriptors, SIGN_DISTANCE * exemplars.negative.float().unsqueeze(2)], dim=2)
    member = functional.one_hot(_nearest_centre(signed_descriptors, exemplars.present, most), most).bool()
    member &= exemplars.present.unsqueeze(2)  # (B, K, M)
    weight = member * exemplars.weight.unsqueeze(2)
    total = weight.sum(1)
    mean = weight / torch.where(total > 0, total, 1.0).unsqueeze(1)
    tokens = {
        name: torch.einsum("bkm,bk...->bm...", mean, token.float()).to(token.dtype)
        for name, token in exemplars.tokens.items()
    }
    return Exemplars(tokens, member.any(1), (member & exemplars.negative.unsqueeze(2)).any(1), total)


def _nearest_centre(descriptors: Tensor, present: Tensor, most: int) -> Tensor:
    """Return the number of the centre of each exemplar, (B, K).

    Each new centre is the exemplar that is farthest from the centres before it.

    Source: Gonzalez, Clustering to minimize the maximum intercluster distance, Theoretical Computer Science 1985.
    """
    rows = torch.arange(len(descriptors), device=descriptors.device)
    is_present = present.unsqueeze(2).float()
    middle = (descriptors * is_present).sum(1, keepdim=True) / is_present.sum(1, keepdim=True).clamp(min=1)
    first = (descriptors - middle).norm(dim=2).masked_fill(~present, -1).argmax(1)
    distance = (descriptors - descriptors[rows, first].unsqueeze(1)).norm(dim=2).masked_fill(~present, -1)
    centre = torch.zeros_like(present, dtype=torch.int64)
    for number in range(1, most):
        chosen = distance.argmax(1)
        to_chosen = (descriptors - descriptors[rows, chosen].unsqueeze(1)).norm(dim=2)
        closer = to_chosen < distance
        centre = torch.where(closer, number, centre)
        distance = torch.where(closer, to_chosen, distance)
    return centre
