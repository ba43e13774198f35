"""The memory attention of SAM2 as a separate module, for propagations to train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class AttentionStack(nn.Module):
    """A memory attention with the batch axis first, a key mask, and optional rotary keys.

    Args:
        attention: The memory attention of SAM2. It is used as it is, and made trainable.
        rotary_keys: Whether queries and keys are rotated by their position on the grid.
    """

    attention: Any  # sam2's classes carry no types

    def __init__(self, attention: nn.Module, rotary_keys: bool) -> None:
        super().__init__()
        self.attention = attention
        self.requires_grad_(True)
        self.rotary_keys = rotary_keys

    def forward(
        self,
        query: Tensor,
        query_position: Tensor,
        memory: Tensor,
        memory_position: Tensor,
        pointer_tokens: int,
        key_mask: Tensor,
        cells: Tensor | None = None,
    ) -> Tensor:
        """See `Backbone.attention_stack`."""
        out = query + 0.1 * query_position
        for layer in self.attention.layers:
            out = layer._forward_sa(out, query_position)
            normed = layer.norm2(out)
            out = out + self._cross(layer, normed, memory + memory_position, memory, pointer_tokens, key_mask, cells)
            out = out + layer.linear2(layer.activation(layer.linear1(layer.norm3(out))))
        answer: Tensor = self.attention.norm(out)
        return answer

    def _cross(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pointer_tokens: int,
        key_mask: Tensor,
        cells: Tensor | None,
    ) -> Tensor:
        cross = layer.cross_attn_image
        query, key, value = (
            projection(tokens).unsqueeze(1)
            for projection, tokens in ((cross.q_proj, query), (cross.k_proj, key), (cross.v_proj, value))
        )
        if self.rotary_keys:
            if cells is None:
                raise ValueError("rotary keys need the cell of every token; pass cells")
            angles = cross.turns(query.shape[2], query.device)
            on_grid = key.shape[2] - pointer_tokens
            turned = _turn(key[:, :, :on_grid], angles[cells].unsqueeze(1))
            query, key = _turn(query, angles), torch.cat([turned, key[:, :, on_grid:]], dim=2)
        mask = key_mask if key_mask.dtype == torch.bool else key_mask.to(query.dtype)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        out: Tensor = cross.out_proj(mixed.squeeze(1))
        return out


def _turn(tokens: Tensor, angles: Tensor) -> Tensor:
    """Rotate pairs of channels of tokens (N, heads, L, C) by complex numbers (..., L, C / 2), as sam2 does."""
    pairs = torch.view_as_complex(tokens.float().reshape(*tokens.shape[:3], -1, 2))
    return torch.view_as_real(pairs * angles).flatten(3).to(tokens.dtype)
