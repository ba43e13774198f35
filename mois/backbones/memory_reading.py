"""Memory attention as tracking asks for it: what objects on one image share is computed once. Without gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CACHED_NUMBERS = 1 << 21
"""Numbers of an intermediate result on a CPU: 8 MiB in float32. Larger ones leave its cache."""


def objects_at_once(objects: int, numbers: int, device: torch.device) -> int:
    """Return how many objects to compute at once, so that their intermediate results stay in the cache of a CPU.

    Args:
        objects: How many objects there are.
        numbers: Numbers of the largest intermediate result of one object.
        device: Where they are computed; elsewhere than on a CPU, all are computed at once.
    """
    return max(1, CACHED_NUMBERS // numbers if device.type == "cpu" else objects)


def read_memory(
    attention: Any,
    query: Tensor,
    query_position: Tensor,
    image: Tensor | None,
    memory: Tensor,
    memory_position: Tensor,
    pointer_tokens: int,
) -> Tensor:
    """Return what `MemoryAttention` of sam2 returns, for M objects on N images.

    Until the first layer reads the memory, all objects of an image are the same, so that part is done once an image.
    On a CPU, few objects go through the layers at once, so that their intermediate results stay in its cache.

    Args:
        attention: The memory attention of sam2, in evaluation mode.
        query: (N, T, D), tokens of the images.
        query_position: (N, T, D), their position codes.
        image: (M,) int64, number of the image of each object; None if each object has its own image, in order.
        memory: (M, L, C), the remembered tokens. The last `pointer_tokens` tokens have no position on the grid.
        memory_position: (M, L, C).
        pointer_tokens: Number of these tokens.

    Returns:
        (M, T, D)
    """
    first = attention.layers[0]._forward_sa(query + 0.1 * query_position, query_position)  # (N, T, D)
    key = memory + memory_position
    widest = query.shape[1] * attention.layers[0].linear1.out_features
    at_once = objects_at_once(len(memory), widest, query.device)
    parts = []
    for start in range(0, len(memory), at_once):
        some = slice(start, start + at_once)
        which = some if image is None else image[some]
        out, position = first[which], query_position[which]
        for number, layer in enumerate(attention.layers):
            if number:
                out = layer._forward_sa(out, position)
            out = out + layer.cross_attn_image(layer.norm2(out), key[some], memory[some], pointer_tokens)
            hidden = functional.relu(layer.linear1(layer.norm3(out)), inplace=True)
            out = out + layer.linear2(hidden)
        parts.append(attention.norm(out))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def mix_values(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the mean of values (B, L, C), weighted by softmax(query key^T / sqrt(D)), on a CPU.

    `scaled_dot_product_attention` asks for as many channels of a value as of a key.

    Args:
        query: (B, T, D)
        key: (B, L, D)
        value: (B, L, C)

    Returns:
        (B, T, C)
    """
    scaled = query * query.shape[-1] ** -0.5
    (batch, tokens, _), length = query.shape, key.shape[1]
    rows = max(1, CACHED_NUMBERS // length)  # queries at once
    if rows >= tokens:
        at_once = rows // tokens
        parts = [
            (scaled[n : n + at_once] @ key[n : n + at_once].transpose(1, 2)).softmax(-1) @ value[n : n + at_once]
            for n in range(0, batch, at_once)
        ]
        return torch.cat(parts)
    one_by_one = [
        torch.cat([(part @ key[n].T).softmax(-1) @ value[n] for part in scaled[n].split(rows)]) for n in range(batch)
    ]
    return torch.stack(one_by_one)
