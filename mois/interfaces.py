"""What can be swapped: backbones, propagations and adapters.

The one import of a plug-in: the records that travel between the parts (`mois.records`) are offered here too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mois.memory import Memory, TrackingRules
from mois.records import (
    CERTAIN,
    Episode,
    Exemplars,
    Features,
    MaskPrediction,
    Prompts,
    SemanticPrediction,
    Volume,
    WeightsIdentity,
)

__all__ = [
    "CERTAIN",
    "Adapter",
    "Backbone",
    "Episode",
    "Exemplars",
    "Features",
    "MaskPrediction",
    "Memory",
    "Prompts",
    "Propagation",
    "SemanticPrediction",
    "TrackingRules",
    "Volume",
    "WeightsIdentity",
]


class Backbone(nn.Module, ABC):
    """SAM2 seen as four functions of a batch; frozen unless an adapter says otherwise.

    Attributes:
        patch_px: P, edge of the square input in pixels.
        strides: Pixels per cell of each feature level, fine to coarse.
        channels: Channels of each feature level, fine to coarse.
        width: D, channels of the coarsest level and of pointers.
        memory_width: M, channels of a memory map.
        identity: Which weights these are.
        tracking: What of earlier slices a slice attends to while an object is tracked.
    """

    patch_px: int
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    width: int
    memory_width: int
    identity: WeightsIdentity
    tracking: TrackingRules = TrackingRules()

    def behaviour(self) -> dict[str, Any]:
        """Return what besides its weights decides its answers, as plain values; empty where there is no choice."""
        return {}

    def behave(self, behaviour: Mapping[str, Any]) -> None:
        """Answer as a backbone of this class did whose `behaviour` this was.

        Raises:
            ValueError: If this one cannot.
        """
        if dict(behaviour) != self.behaviour():
            raise ValueError(f"{type(self).__name__} answers as {self.behaviour()} alone, not as {dict(behaviour)}.")

    @abstractmethod
    def encode(self, images: Tensor) -> Features:
        """Encode images (N, P, P), normalised intensities; P may differ from `patch_px`, in multiples of 32."""

    def frozen_part(self) -> str:
        """Name how far `encode` is frozen, as a cache's key; empty where it is trained from its first layer on."""
        with torch.enable_grad():
            levels = self.encode(torch.zeros(1, 64, 64, device=next(self.parameters()).device)).levels
        return "" if any(level.requires_grad for level in levels) else "encoder"

    def encode_frozen(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what the frozen part of `encode` makes of images (N, P, P): tensors (N, ...) that may be kept."""
        features = self.encode(images)
        return (*features.levels, features.position)

    def encode_rest(self, images: Tensor, frozen: tuple[Tensor, ...]) -> Features:
        """Return what `encode` would, from what `encode_frozen` made of the same images."""
        return Features(frozen[:-1], frozen[-1], images.unsqueeze(1))

    @abstractmethod
    def decode(self, features: Features, prompts: Prompts | None, dense: Tensor | None = None) -> MaskPrediction:
        """Segment one object per image.

        Args:
            features: Of N images.
            prompts: Clicks of each, or None for none.
            dense: (N, D, P / 16, P / 16) added to the dense prompt, or None.
        """

    @abstractmethod
    def remember(self, features: Features, logits: Tensor, pointer: Tensor) -> Memory:
        """Return the memory (T = 1) of masks given as logits (N, P / 4, P / 4), with their pointers (N, D)."""

    def remember_slice(
        self, features: Features, logits: Tensor, pointer: Tensor, presence: Tensor, *, hard: bool = False
    ) -> Memory:
        """Return the memory of a slice for tracking; what `remember` gives, unless a backbone takes more into account.

        Args:
            features: Of N images, not conditioned.
            logits: (N, P / 4, P / 4), the masks.
            pointer: (N, D).
            presence: (N,), logit that the object is there.
            hard: The masks are those that a reader saw and left: they may be taken as inside and outside alone. Not in
                training, where gradient goes through their shades.
        """
        return self.remember(features, logits, pointer)

    def adopt(self, features: Features, masks: Tensor) -> MaskPrediction:
        """Return masks that a reader gave as if they were answers.

        Args:
            features: Of N images; not conditioned where `TrackingRules.masks_alone` says so.
            masks: (N, P, P) float, the share of each pixel that is inside.
        """
        cells = functional.avg_pool2d(masks.unsqueeze(1), 4)  # (N, 1, P / 4, P / 4)
        surest = cells.amax((2, 3), keepdim=True)
        small = (surest > 0) & (surest <= 0.5)  # a mask smaller than a cell keeps its surest cell
        larger = cells * (0.6 / surest.double()).to(cells.dtype)
        logits = (torch.where(small, larger, cells) * 2 - 1) * CERTAIN
        nowhere = masks.new_zeros(len(masks), 1, 2)
        padding = torch.full((len(masks), 1), -1, dtype=torch.int32, device=masks.device)
        answer = self.decode(features, Prompts(nowhere, padding, logits))
        return answer._replace(logits=logits.squeeze(1).to(answer.logits.dtype))

    @abstractmethod
    def attend(self, features: Features, memory: Memory) -> Features:
        """Return the features with their coarsest level conditioned on each object's memory."""

    @abstractmethod
    def attention_stack(self, *, rotary_keys: bool = True) -> nn.Module:
        """Return a copy of this backbone's memory attention, weights included, for a propagation to train.

        Call it as `stack(query, query_position, memory, memory_position, pointer_tokens, key_mask, cells)` with query
        (N, h * w, D), memory (N, L, M) and its position, of which the last `pointer_tokens` have no place on the grid;
        key_mask (N, L): bool, True where a token may be attended to (at least one of each row), or float, added; and
        cells (N, L - pointer_tokens) int64, the place of the others on the query's grid, or None without rotary keys.

        Args:
            rotary_keys: Whether the position on the grid turns queries and keys, as in SAM2's own.
        """

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Return all tensors by the names that they have in a weights file; of a backbone without injected adapter."""

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """Return the named parts that an adapter may touch: trunk, neck, memory_attention, memory_encoder, decoder."""


class Propagation(nn.Module, ABC):
    """From exemplars to all that is like them.

    Contract (`mois.testing.check_propagation`): K = 0 works; the order of exemplars does not matter, their weight does
    (`Exemplars.present`); the queries of a batch do not see each other's exemplars; any input size works; every
    trainable tensor gets gradient; an exemplar takes at most `bytes_per_exemplar` bytes; prepared exemplars (`prepare`)
    give what the same unprepared ones give; `describe_on` gives what `describe` gives.
    """

    bytes_per_exemplar: int

    @abstractmethod
    def build(self, backbone: Backbone) -> None:
        """Make the layers, in the sizes of this backbone. Called once, before anything else."""

    @abstractmethod
    def describe(self, features: Features, masks: Tensor, backbone: Backbone) -> Exemplars:
        """Turn masked lesions into exemplars, with gradient.

        Args:
            features: Of N images.
            masks: (N, P, P) float, 0 to 1: one lesion on each image, soft where it was predicted.
            backbone: Whose features these are.

        Returns:
            Exemplars with B = N and K = 1, valid where the mask is not empty.
        """

    def describe_on(self, features: Features, image: Tensor, masks: Tensor, backbone: Backbone) -> Exemplars:
        """Turn several masked lesions of an image into exemplars, as `describe` would one by one.

        A module for which an image costs something by itself works that out once here.

        Args:
            features: Of N images.
            image: (M,) int64, the image that each lesion lies on.
            masks: (M, P, P) float, 0 to 1.
            backbone: Whose features these are.

        Returns:
            Exemplars with B = M and K = 1.
        """
        return self.describe(features.select(image), masks, backbone)

    def prepare(self, exemplars: Exemplars) -> Exemplars:
        """Work out what depends on the exemplars alone, once for all the images that will be asked about them.

        `forward` takes prepared exemplars and others alike. What comes out keeps the axes B and K, flags and weights;
        its tokens are this module's own affair.
        """
        return exemplars

    def condense(self, exemplars: Exemplars, most: int) -> Exemplars:
        """Return at most so many prepared exemplars that stand for all; a module that cannot returns what it got."""
        del most
        return exemplars

    @abstractmethod
    def forward(self, features: Features, exemplars: Exemplars, backbone: Backbone) -> SemanticPrediction:
        """Find all that is like a query's exemplars, and unlike its negative ones.

        Args:
            features: Of N images.
            exemplars: Of B = N x R queries, R in a row of each image: what an image shows is worked out once, whatever
                the number of questions about it.
            backbone: Whose features these are.

        Returns:
            B predictions, in the order of the exemplars.
        """


class Adapter(ABC):
    """How a frozen backbone and its propagation are made trainable, by part."""

    @abstractmethod
    def attach(self, backbone: Backbone, propagation: Propagation) -> None:
        """Make the named parts trainable and everything else frozen.

        Raises:
            ValueError: If a name matches nothing; the message lists what there is.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what was trained of the backbone into `folder` (PEFT's format where it is a PEFT adapter)."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read what `save` wrote into the attached backbone.

        Raises:
            ValueError: If a tensor is missing or left over; the message lists them.
        """
