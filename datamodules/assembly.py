"""Puts the patches that were drawn for an episode together, and augments them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.subjects import Patch
from datamodules.transforms import Augmentation, augment
from mois.records import Episode

CHANCES = 64
"""Random numbers of an episode (`Episode.chance`)."""


class DrawnExemplar(NamedTuple):
    """A patch and the mask (P, P) bool of the exemplar on it."""

    patch: Patch
    mask: Tensor


def assemble(
    groups: Sequence[Sequence[DrawnExemplar]],
    query: Tensor,
    query_masks: Tensor,
    clip: tuple[Tensor, Tensor],
    count: int,
    augmentation: Augmentation,
    sequences: Sequence[int] = (),
) -> Episode:
    """Augment all patches of an episode together. The caller sets flags and chance.

    Args:
        groups: Exemplars of both groups, at most K each.
        query: (P, P), or (C, P, P) with C channels, as the images of all patches.
        query_masks: (4, P, P), the targets of both groups, all lesions, and the cores of lesions.
        clip: Images and masks of the T slices to track over.
        count: Number K of exemplars in a group.
        augmentation: How patches are varied.
        sequences: Number of the sequence of each channel.
    """
    size = query.shape[-1]
    supports, steps = len(groups) * count, len(clip[0])
    images = torch.zeros(supports + 1 + steps, *query.shape)
    masks = torch.zeros(supports + 1 + steps, 4, size, size, dtype=torch.bool)
    valid = torch.zeros(len(groups), count, dtype=torch.bool)
    for g, group in enumerate(groups):
        for k, exemplar in enumerate(group):
            images[g * count + k], masks[g * count + k, 0] = exemplar.patch.image, exemplar.mask
            valid[g, k] = True
    images[supports], masks[supports] = query, query_masks
    images[supports + 1 :], masks[supports + 1 :, 0] = clip
    moved_alike = torch.arange(len(images)).clamp(max=supports + 1)
    images, masks = augment(images, masks, moved_alike, augmentation, may_vanish=1, sequences=sequences)
    return Episode(
        support_images=images[:supports].view(*valid.shape, *query.shape),
        support_masks=masks[:supports, 0].reshape(*valid.shape, size, size),
        support_valid=valid,
        query_images=images[supports],
        query_targets=masks[supports, :2],
        query_lesions=masks[supports, 2],
        group_is_lesion=torch.zeros(len(groups), dtype=torch.bool),
        track_images=images[supports + 1 :],
        track_masks=masks[supports + 1 :, 0],
        chance=torch.zeros(CHANCES),
        query_cores=masks[supports, 3],
    )
