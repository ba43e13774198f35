"""Runs Hiera in two parts: the blocks before the first trained block, whose output can be cached, and the rest."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def is_trained(*modules: nn.Module) -> bool:
    """Return whether any parameter of these modules is trained."""
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())


def frozen_blocks(trunk: Any) -> int:
    """Return the number of blocks of a trunk before its first trained parameter."""
    blocks = list(trunk.blocks)
    own = [value for name, value in trunk.named_parameters() if not name.startswith("blocks.")]
    if any(value.requires_grad for value in own):
        return 0
    return next((number for number, block in enumerate(blocks) if is_trained(block)), len(blocks))


def run_first(trunk: Any, images: Tensor, stop: int) -> tuple[Tensor, ...]:
    """Return the output of each stage that ends before block `stop`, then the input of that block.

    Args:
        trunk: Hiera.
        images: (N, 3, P, P), normalised.
        stop: Number of a block.

    Returns:
        Tensors (N, h, w, C). If a stage ends right before `stop`, its output is the input of the block, and it is
        returned once.
    """
    tokens = trunk.patch_embed(images)
    tokens = tokens + trunk._get_pos_embed(tokens.shape[1:3])
    stage_outputs = []
    for number in range(stop):
        tokens = trunk.blocks[number](tokens)
        if number in trunk.stage_ends:
            stage_outputs.append(tokens)
    return tuple(stage_outputs) if stop - 1 in trunk.stage_ends else (*stage_outputs, tokens)


def run_rest(trunk: Any, first_part: tuple[Tensor, ...], stop: int) -> list[Tensor]:
    """Return the output of each stage of the trunk, (N, C, h, w), from the output of `run_first`."""
    tokens = first_part[-1]
    stages = list(first_part[: sum(end < stop for end in trunk.stage_ends)])
    for number in range(stop, len(trunk.blocks)):
        tokens = trunk.blocks[number](tokens)
        if number in trunk.stage_ends:
            stages.append(tokens)
    return [stage.permute(0, 3, 1, 2) for stage in stages]
