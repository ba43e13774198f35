"""Augmentation of the patches of an episode: changes of the scanner for all patches, and a movement of each patch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch
import torchio as tio
from torch import Tensor
from torch.nn import functional

_BIAS_PX = 16  # a bias field is smooth, so it is computed on this grid and enlarged


@dataclass(frozen=True)
class Augmentation:
    """How training patches are varied.

    Attributes:
        bias: Probability of a bias field, the same for the episode.
        gamma: Probability of another gamma, the same for the episode.
        noise: Probability of added noise, in the whole episode.
        ghosting: Probability of ghosts along one axis, in the whole episode.
        motion: Probability of motion artefacts, in the whole episode; each patch has its own artefacts.
        flip: Probability of mirroring, for each patch and axis.
        affine: Probability of a rotation and a zoom, for each patch.
        degrees: Largest rotation in degrees.
        zoom: Largest zoom, as a share of the size.
    """

    bias: float = 0.3
    gamma: float = 0.3
    noise: float = 0.3
    ghosting: float = 0.05
    motion: float = 0.05
    flip: float = 0.5
    affine: float = 0.5
    degrees: float = 20.0
    zoom: float = 0.15

    def __post_init__(self) -> None:
        """Refuse probabilities outside 0 to 1, a zoom of 1 or more, and a rotation above 180 degrees."""
        for name in [field.name for field in fields(self)][:7]:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.init_args.augmentation.{name}={getattr(self, name)} is a share; choose 0 to 1.")
        if not 0 <= self.zoom < 1 or not 0 <= self.degrees <= 180:
            raise ValueError(
                f"data.init_args.augmentation: zoom={self.zoom}, degrees={self.degrees}; choose a zoom from 0 "
                "to below 1, and 0 to 180 degrees."
            )

    @staticmethod
    def none() -> Augmentation:
        """Return the augmentation that changes nothing."""
        return Augmentation(0, 0, 0, 0, 0, 0, 0, 0, 0)


def augment(
    images: Tensor,
    masks: Tensor,
    clips: Tensor,
    settings: Augmentation,
    may_vanish: int = 0,
    sequences: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Vary the patches of one episode, with torch's generator.

    Args:
        images: (N, P, P) or (N, C, P, P) float32, normalised. Exact zeros lie outside of the body, and stay zeros.
        masks: (N, M, P, P) bool, M masks of each patch.
        clips: (N,) int64. Patches with the same number move together.
        settings: How patches are varied.
        may_vanish: Number of last masks of each patch that may be lost in a movement.
        sequences: Number of the sequence of each channel; by default each channel is a sequence. The intensities of a
            sequence change alike, those of two sequences do not. All move together.

    Returns:
        Images and masks of the same shapes, with zeros where a patch left its frame. A patch that would lose a whole
        mask does not move, unless the mask may vanish.
    """
    vary = vary_intensities if images.dim() == 3 else partial(_vary_sequences, sequences=sequences)
    return _move(vary(images, settings), masks, clips, settings, masks.shape[1] - may_vanish)


def _vary_sequences(images: Tensor, settings: Augmentation, sequences: Sequence[int]) -> Tensor:
    """Vary each sequence of patches (N, C, P, P) on its own."""
    images, belongs = images.clone(), list(sequences or range(images.shape[1]))
    for number in sorted(set(belongs)):
        own = [place for place, sequence in enumerate(belongs) if sequence == number]
        patches = images[:, own]
        images[:, own] = vary_intensities(patches.flatten(0, 1), settings).view(patches.shape)
    return images


def vary_intensities(images: Tensor, settings: Augmentation) -> Tensor:
    """Apply TorchIO's intensity transforms to patches (N, P, P), stacked in depth so that they change alike."""
    draws = torch.rand(5).tolist()
    chances = (settings.bias, settings.gamma, settings.ghosting, settings.motion, settings.noise)
    wanted = [draw < chance for draw, chance in zip(draws, chances, strict=True)]
    if not any(wanted):
        return images
    bias, gamma, ghosting, motion, noise = wanted
    outside = images == 0
    if bias:
        images = images * _bias_field(images)
    if gamma:
        images = _apply(tio.RandomGamma(log_gamma=0.3), images)
    if ghosting:
        images = _apply(tio.RandomGhosting(num_ghosts=(2, 5), axes=(0, 1), intensity=(0.2, 0.6)), images)
    if motion:
        shake = tio.RandomMotion(degrees=4, translation=4, num_transforms=1)
        images = torch.cat([_apply(shake, image.unsqueeze(0)) for image in images])
    if noise:
        images = _apply(tio.RandomNoise(std=(0, 0.06)), images)
    return images.clamp(0, 2).masked_fill_(outside, 0)


def _apply(transform: tio.Transform, images: Tensor) -> Tensor:
    """Apply a transform to (N, P, P) as a scan of depth N."""
    changed = transform(images.permute(1, 2, 0).unsqueeze(0))  # (1, P, P, N)
    if not isinstance(changed, Tensor):
        raise TypeError(f"{type(transform).__name__} turned a tensor into {type(changed).__name__}")
    return changed.squeeze(0).permute(2, 0, 1).to(torch.float32)


def _bias_field(images: Tensor) -> Tensor:
    flat = torch.ones(1, _BIAS_PX, _BIAS_PX, len(images))
    field = tio.RandomBiasField(coefficients=0.25, order=3)(flat).squeeze(0).permute(2, 0, 1)
    return functional.interpolate(field.unsqueeze(1).to(torch.float32), images.shape[-2:], mode="bilinear").squeeze(1)


def _move(images: Tensor, masks: Tensor, clips: Tensor, settings: Augmentation, kept: int) -> tuple[Tensor, Tensor]:
    """Rotate, zoom and mirror patches around their middle. Only rotated patches are resampled.

    A patch that would lose one of its first `kept` masks does not move.
    """
    count = int(clips.max()) + 1
    mirrored = torch.rand(count, 2) < settings.flip  # across, down
    turned = torch.rand(count) < settings.affine
    angles = (2 * torch.rand(count) - 1) * math.radians(settings.degrees)
    zooms = 1 + (2 * torch.rand(count) - 1) * settings.zoom
    if not mirrored.any() and not turned.any():
        return images, masks
    images, masks = images.clone(), masks.clone()
    for number in sorted(set(clips.tolist())):
        rows = clips == number
        patches, shapes = images[rows], masks[rows]
        if turned[number]:
            patches, moved = _turn(patches, shapes, float(angles[number]), float(zooms[number]))
            if (shapes[:, :kept].flatten(2).any(2) & ~moved[:, :kept].flatten(2).any(2)).any():
                continue
            shapes = moved
        axes = [axis for axis, yes in zip((-1, -2), mirrored[number].tolist(), strict=True) if yes]
        images[rows], masks[rows] = patches.flip(axes), shapes.flip(axes)
    return images, masks


def _turn(images: Tensor, masks: Tensor, angle: float, zoom: float) -> tuple[Tensor, Tensor]:
    """Sample patches (N, ..., P, P) and masks (N, M, P, P) at one angle (radians) and zoom; empty masks stay empty."""
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    grid = functional.affine_grid(
        torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]]), [1, 1, *images.shape[-2:]], align_corners=False
    )  # (1, P, P, 2)
    flat = images.flatten(0, -3).unsqueeze(0)
    turned = functional.grid_sample(flat, grid, mode="bilinear", align_corners=False).view(images.shape)
    moved, drawn = masks.clone(), masks.flatten(2).any(2)  # (N, M)
    if drawn.any():
        shapes = masks[drawn].float().unsqueeze(0)
        moved[drawn] = functional.grid_sample(shapes, grid, mode="nearest", align_corners=False).squeeze(0) > 0.5
    return turned, moved
