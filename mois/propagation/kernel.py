"""A kernel mean: what the tokens around a place say on average, the nearer ones more."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

NEVER = -1e4
"""Log-weight of a token that does not count."""

_MULTIPLE = 8  # widths that the fast kernels of scaled_dot_product_attention take


def kernel_mean(queries: Tensor, keys: Tensor, log_weight: Tensor, values: Tensor) -> Tensor:
    """Average the values of L tokens at each of n places, under the weights exp(log_weight - |query - key|^2).

    Squared distances are inner products up to a term of the query alone, which cancels. So this is attention, and the
    matrix of all pairs is never in memory.

    Args:
        queries: (B, H, n, D), places as H heads see them.
        keys: (B, H, L, D), tokens as H heads see them.
        log_weight: (B, H, L), NEVER for a token that does not count.
        values: (B, H, L, V).

    Returns:
        (B, H, n, V).

    Source: Nadaraya, On estimating regression, 1964; Cheng et al., STCN, arXiv 2106.05210 (negative squared distance in
        attention).
    """
    count, width = keys.shape[-1], values.shape[-1]
    padded = -(-max(count + 1, width) // _MULTIPLE) * _MULTIPLE
    own = 0.5 * (log_weight - keys.square().sum(-1)).unsqueeze(-1)
    asked = torch.cat([queries, _one_and_zeros(queries, padded - count)], dim=-1)
    kept = functional.pad(torch.cat([keys, own], dim=-1), (0, padded - count - 1))
    meant = functional.pad(values, (0, padded - width))
    return functional.scaled_dot_product_attention(asked, kept, meant, scale=2.0)[..., :width]


def _one_and_zeros(queries: Tensor, count: int) -> Tensor:
    """Return the further `count` columns of the queries: 1, which meets what a token weighs by itself, and 0."""
    columns = queries.new_zeros(count)
    columns[:1] = 1
    return columns.expand(*queries.shape[:-1], -1)
