"""The sizes of SAM 2.1, as numbers.

Source: the configurations sam2.1_hiera_{t,s,b+,l}.yaml of Meta. The size nano is our own.
"""

from __future__ import annotations

from dataclasses import dataclass

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Sizes:
    """Sizes of a SAM 2.1. The defaults are the same in all official models."""

    embed_dim: int
    num_heads: int
    stages: tuple[int, ...]
    global_att_blocks: tuple[int, ...]
    background_size: tuple[int, int]
    window_spec: tuple[int, ...] = (8, 4, 14, 7)
    width: int = 256
    memory_width: int = 64
    attention_layers: int = 4
    attention_hidden: int = 2048
    decoder_hidden: int = 2048
    decoder_heads: int = 8
    quality_hidden: int = 256
    neck_norm: bool = False
    layer_scale: float = 1e-6
    dropout: float = 0.1
    patch_px: int = 1024
    statistics: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET


SIZES = {
    "nano": Sizes(
        24, 1, (1, 1, 2, 1), (3,), (7, 7), (8, 4, 8, 4), width=64, memory_width=32, attention_layers=1,
        attention_hidden=128, decoder_hidden=128, decoder_heads=4, quality_hidden=64, neck_norm=True, layer_scale=0.1,
        dropout=0.0, patch_px=128, statistics=((0.3,) * 3, (0.3,) * 3),
    ),
    "tiny": Sizes(96, 1, (1, 2, 7, 2), (5, 7, 9), (7, 7)),
    "small": Sizes(96, 1, (1, 2, 11, 2), (7, 10, 13), (7, 7)),
    "base_plus": Sizes(112, 2, (2, 3, 16, 3), (12, 16, 20), (14, 14)),
    "large": Sizes(144, 2, (2, 6, 36, 4), (23, 33, 43), (7, 7), (8, 4, 16, 8)),
}  # fmt: skip
