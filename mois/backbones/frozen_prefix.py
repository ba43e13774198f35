"""Hiera in two halves: the blocks before the first trained one, whose outputs can be kept, and the rest."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def is_trained(*modules: nn.Module) -> bool:
    """Tell whether any parameter of these is trained."""
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())


def frozen_blocks(trunk: Any) -> int:
    """Return how many blocks of a trunk come before anything of it that is trained."""
    blocks = list(trunk.blocks)
    own = [value for name, value in trunk.named_parameters() if not name.startswith("blocks.")]
    if any(value.requires_grad for value in own):
        return 0
    return next((number for number, block in enumerate(blocks) if is_trained(block)), len(blocks))


def run_first(trunk: Any, images: Tensor, stop: int) -> tuple[Tensor, ...]:
    """Return what each stage that ends before block `stop` hands out, then what that block gets.

    Args:
        trunk: Hiera.
        images: (N, 3, P, P), normalised.
        stop: Number of a block.

    Returns:
        (N, h, w, C) each; where a stage ends right before `stop`, both are one and stand there once.
    """
    tokens = trunk.patch_embed(images)
    tokens = tokens + trunk._get_pos_embed(tokens.shape[1:3])
    kept = []
    for number in range(stop):
        tokens = trunk.blocks[number](tokens)
        if number in trunk.stage_ends:
            kept.append(tokens)
    return tuple(kept) if stop - 1 in trunk.stage_ends else (*kept, tokens)


def run_rest(trunk: Any, kept: tuple[Tensor, ...], stop: int) -> list[Tensor]:
    """Return what the trunk would have, (N, C, h, w) of each stage, from what `run_first` returned."""
    tokens = kept[-1]
    stages = list(kept[: sum(end < stop for end in trunk.stage_ends)])
    for number in range(stop, len(trunk.blocks)):
        tokens = trunk.blocks[number](tokens)
        if number in trunk.stage_ends:
            stages.append(tokens)
    return [stage.permute(0, 3, 1, 2) for stage in stages]
