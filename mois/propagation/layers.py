"""Layers that propagations share: a shallow view of the image, and residual blocks that the exemplars modulate."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mois.records import Features


class Embedding(NamedTuple):
    """Embeddings of the pixels of N images.

    Attributes:
        coarse: (N, C, P / 4, P / 4), a quarter of the resolution.
        fine: (N, F, P / 2, P / 2), half of the resolution.
    """

    coarse: Tensor
    fine: Tensor

    def repeat(self, times: int) -> Embedding:
        """Return the embeddings of every image `times` times in a row, (N * times, ...)."""
        if times == 1:
            return self
        return Embedding(*(part.permute(0, 2, 3, 1).repeat_interleave(times, 0).permute(0, 3, 1, 2) for part in self))


def check_sizes(width: int, blocks: int) -> None:
    """Refuse a network without channels, or with a negative number of blocks."""
    if width < 1:
        raise ValueError(f"propagation.width={width} must be 1 or more.")
    if blocks < 0:
        raise ValueError(f"propagation.blocks={blocks} must be 0 or more.")


def embed(features: Features, stem: Stem, levels: nn.ModuleList, fuse: nn.Module) -> Embedding:
    """Embed N images: the stem's view of the image, and all feature levels of the backbone, at a quarter of the image.

    Args:
        features: Features of N images.
        stem: Looks at the images.
        levels: A projection to C channels for each feature level, fine to coarse.
        fuse: Turns the sum of all of these (N, C, P / 4, P / 4) into the coarse embedding.
    """
    seen: Embedding = stem(features.image)
    total = seen.coarse
    for level, project in zip(features.levels, levels, strict=True):
        projected = project(level)
        if projected.shape[-1] != total.shape[-1]:
            projected = functional.interpolate(projected, total.shape[-2:], mode="bilinear")
        total = total + projected
    return Embedding(fuse(total), seen.fine)


class Stem(nn.Module):
    """Convolutions that turn an image (N, C, P, P) into a coarse and a fine embedding: the mean over its channels."""

    fine_width = 16

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_half = nn.Sequential(
            nn.Conv2d(1, self.fine_width, 5, stride=2, padding=2), norm(self.fine_width), nn.GELU(),
            nn.Conv2d(self.fine_width, self.fine_width, 3, padding=1), nn.GELU(),
        )  # fmt: skip
        self.to_quarter = nn.Sequential(
            nn.Conv2d(self.fine_width, width, 3, stride=2, padding=1), nn.GELU(), *separable(width, 3)
        )

    def forward(self, image: Tensor) -> Embedding:
        """Embed images (N, C, P, P)."""
        count = image.shape[1]
        fine = self.to_half(image if count == 1 else image.flatten(0, 1).unsqueeze(1))
        if count > 1:
            fine = fine.unflatten(0, (-1, count)).mean(1)
        return Embedding(self.to_quarter(fine), fine)


class Block(nn.Module):
    """A residual block. A vector made from the exemplars scales and shifts its channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = norm(width)
        self.modulate = nn.Linear(width, 2 * width)
        self.mix = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1))

    def forward(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        """Refine hidden (N, C, h, w) under modulation (N, C)."""
        scale, shift = self.modulate(modulation)[:, :, None, None].chunk(2, dim=1)
        out: Tensor = hidden + self.mix(torch.addcmul(shift, self.norm(self.spread(hidden)), 1 + scale))
        return out


def separable(width: int, edge: int) -> tuple[nn.Module, nn.Module]:
    """Return a convolution within each channel, and one across channels, that keep the size of their input."""
    return nn.Conv2d(width, width, edge, padding=edge // 2, groups=width), nn.Conv2d(width, width, 1)


def joined(*maps: Tensor) -> Tensor:
    """Return the maps (N, C, h, w) concatenated along C, with the channels last in memory."""
    return torch.cat([part.permute(0, 2, 3, 1) for part in maps], dim=3).permute(0, 3, 1, 2)


def norm(width: int) -> nn.GroupNorm:
    """Return a norm over all channels and places of an image."""
    return nn.GroupNorm(1, width)
