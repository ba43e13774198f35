"""Episodes of noise and bright discs."""

from __future__ import annotations

import torch

from mois.records import Episode
from mois.testing import example_patches


def example_episode(batch: int = 2, exemplars: int = 3, clip: int = 3, patch_px: int = 128, seed: int = 0) -> Episode:
    """Return a batch of episodes of noise and discs, with all parts filled.

    Args:
        batch: Number of episodes.
        exemplars: Number of exemplars in each of the two groups.
        clip: Number of slices to track over.
        patch_px: Edge of the patches.
        seed: Seed of noise and discs.
    """
    generator = torch.Generator().manual_seed(seed)
    support, masks = example_patches(batch * 2 * exemplars, patch_px, seed)
    query, target = example_patches(batch, patch_px, seed + 1)
    track, track_masks = example_patches(batch * clip, patch_px, seed + 2)
    targets = torch.stack([target > 0.5, (target > 0.5).roll(patch_px // 3, 1)], dim=1)
    shape = (batch, 2, exemplars)
    return Episode(
        support.view(*shape, patch_px, patch_px),
        masks.view(*shape, patch_px, patch_px) > 0.5,
        torch.ones(shape, dtype=torch.bool),
        query,
        targets,
        targets.any(1),
        torch.ones(batch, 2, dtype=torch.bool),
        track.view(batch, clip, patch_px, patch_px),
        track_masks.view(batch, clip, patch_px, patch_px) > 0.5,
        torch.rand(batch, 64, generator=generator),
        targets.any(1),
    )
