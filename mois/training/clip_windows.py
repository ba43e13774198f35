"""Clips cut to small squares around their lesions, before they are encoded.

a slice of a clip, P x P          the square is an image of its own: encoder, memories and decoder see nothing else
+---------------------+
|     +------+        |           - its side is the same for all clips, so a step has the same shapes every time
|     | ###  |        |           - it is the same on all slices of a clip: the lesion is followed within it
|     |  ##  |        |           - it lies around the box of the lesion on all slices
|     +------+        |           - if the lesion is larger, it lies around the first click
+---------------------+
"""

from __future__ import annotations

import torch
from torch import Tensor

from mois.clicks import first_click
from mois.records import Episode


def cut_clips(episode: Episode, side: int) -> Episode:
    """Return a batch whose clips are squares around their lesions. The host does not wait for the device.

    A square holds the whole lesion if the lesion's box is not larger. Otherwise it holds the place of the first click,
    so the lesion is on the middle slice of the square wherever it is on the middle slice of the clip.

    Args:
        episode: The batch. Its clips have the shapes (B, T, P, P), images also (B, T, C, P, P).
        side: Edge of a square in pixels.

    Returns:
        The batch with clips of the edge `side`.

    Raises:
        ValueError: If the side is larger than the patches.
    """
    patch_px = episode.track_masks.shape[-1]
    if side > patch_px:
        raise ValueError(
            f"model.learning.clip_px={side} is larger than the patches ({patch_px} pixels, data.init_args.patch_px); "
            "choose at most that, or null for whole patches."
        )
    if side == patch_px:
        return episode
    corner = square_corners(episode.track_masks, episode.chance[:, -1], side)
    return episode._replace(
        track_images=_cut(episode.track_images, corner, side), track_masks=_cut(episode.track_masks, corner, side)
    )


def square_corners(masks: Tensor, chance: Tensor, side: int) -> Tensor:
    """Return the first row and column of the square of each clip, (B, 2) int64.

    Args:
        masks: (B, T, P, P) bool, the lesion of each clip.
        chance: (B,), the random number of the first click, 0 to 1.
        side: Edge of a square in pixels.
    """
    patch_px, middle = masks.shape[-1], masks.shape[1] // 2
    click = first_click(masks[:, middle], chance).points[:, 0].flip(1).long()  # (B, 2), row and column
    union = masks.any(1)
    lines = torch.stack([union.any(2), union.any(1)], dim=1)  # (B, 2, P): rows and columns that the lesion meets
    first = lines.to(torch.uint8).argmax(2)
    last = patch_px - 1 - lines.flip(2).to(torch.uint8).argmax(2)
    fits = lines.any(2) & (last - first < side)
    centre = torch.where(fits.all(1, keepdim=True), (first + last + 1) // 2, click)
    return (centre - side // 2).clamp(0, patch_px - side)


def _cut(maps: Tensor, corner: Tensor, side: int) -> Tensor:
    """Return the squares (B, ..., side, side) of maps (B, ..., P, P)."""
    flat = maps.flatten(1, -3)  # (B, X, P, P)
    steps = torch.arange(side, device=maps.device)
    clip = torch.arange(len(maps), device=maps.device)[:, None, None]
    rows, columns = (corner[:, axis, None] + steps for axis in (0, 1))  # (B, side)
    parts = flat[clip, :, rows[:, :, None], columns[:, None, :]]  # (B, side, side, X)
    return parts.permute(0, 3, 1, 2).reshape(*maps.shape[:-2], side, side)
