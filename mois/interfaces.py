"""Interfaces of the parts that can be swapped: backbones, propagations and adapters.

A plug-in needs no other import: the records of `mois.records` are offered here too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mois.memory import Memory, TrackingRules
from mois.records import (
    CERTAIN,
    Channel,
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
    "Channel",
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


def with_channels(images: Tensor) -> Tensor:
    """Return images (N, P, P) as (N, 1, P, P); images (N, C, P, P) stay."""
    return images.unsqueeze(1) if images.dim() == 3 else images


class Backbone(nn.Module, ABC):
    """A SAM2-like model as four functions of a batch: encode, decode, remember, attend.

    A backbone is frozen unless an adapter makes parts of it trainable.

    Attributes:
        patch_px: Edge P of the square input in pixels.
        strides: Pixels per cell of each feature level, fine to coarse.
        channels: Channels of each feature level, fine to coarse.
        width: Channels D of the coarsest level and of pointers.
        memory_width: Channels M of a memory map.
        identity: Identity of the weights.
        tracking: Which earlier slices a slice attends to during tracking.
        most_channels: Largest number of channels of an image. SAM2 has three inputs.
    """

    patch_px: int
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    width: int
    memory_width: int
    identity: WeightsIdentity
    tracking: TrackingRules = TrackingRules()
    most_channels: int = 1

    def behaviour(self) -> dict[str, Any]:
        """Return the settings that change the answers, besides the weights, as plain values; {} if there are none."""
        return {}

    def behave(self, behaviour: Mapping[str, Any]) -> None:
        """Take the settings that `behaviour` of another backbone of this class returned.

        Raises:
            ValueError: If this backbone cannot behave so.
        """
        if dict(behaviour) != self.behaviour():
            raise ValueError(f"{type(self).__name__} answers as {self.behaviour()} alone, not as {dict(behaviour)}.")

    @abstractmethod
    def encode(self, images: Tensor) -> Features:
        """Encode images of normalised intensities, (N, P, P) or (N, C, P, P). P may be any multiple of 32.

        C is 2 to `most_channels`.
        """

    def frozen_part(self) -> str:
        """Return a name for the frozen part of `encode`, for the key of a cache; "" if its first layer is trained."""
        with torch.enable_grad():
            levels = self.encode(torch.zeros(1, 64, 64, device=next(self.parameters()).device)).levels
        return "" if any(level.requires_grad for level in levels) else "encoder"

    def encoder_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that decide what `encode` returns, by name. The default is all tensors.

        Models whose encoders have the same tensors share the features of a scan.
        """
        return self.state_dict()

    def encode_frozen(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the output of the frozen part of `encode` for images (N, P, P): tensors (N, ...) for a cache."""
        features = self.encode(images)
        return (*features.levels, features.position)

    def encode_rest(self, images: Tensor, frozen: tuple[Tensor, ...]) -> Features:
        """Return the features of `encode`, computed from the output of `encode_frozen` for the same images."""
        return Features(frozen[:-1], frozen[-1], with_channels(images))

    @abstractmethod
    def decode(self, features: Features, prompts: Prompts | None, dense: Tensor | None = None) -> MaskPrediction:
        """Segment one object per image.

        Args:
            features: Features of N images.
            prompts: Prompts on each image; None stands for no prompt.
            dense: (N, D, P / 16, P / 16), added to the dense prompt; or None.
        """

    @abstractmethod
    def remember(self, features: Features, logits: Tensor, pointer: Tensor) -> Memory:
        """Return the memory (T = 1) of masks.

        Args:
            features: Features of N images.
            logits: (N, P / 4, P / 4), the masks.
            pointer: (N, D), object pointers.
        """

    def remember_slice(
        self, features: Features, logits: Tensor, pointer: Tensor, presence: Tensor, *, hard: bool = False
    ) -> Memory:
        """Return the memory of a slice for tracking. The default is `remember`; a backbone may use more input.

        Args:
            features: Features of N images, not conditioned.
            logits: (N, P / 4, P / 4), the masks.
            pointer: (N, D), object pointers.
            presence: (N,), logit that the object is present.
            hard: Whether a reader accepted the masks. Then a backbone may use binary masks. Never true in training,
                because the gradient needs soft masks.
        """
        return self.remember(features, logits, pointer)

    def adopt(self, features: Features, masks: Tensor) -> MaskPrediction:
        """Return masks that a reader gave in the form of an answer.

        Args:
            features: Features of N images. They are not conditioned if `TrackingRules.masks_alone` is true.
            masks: (N, P, P) float, share of each pixel that lies inside.
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
        """Return the features with their coarsest level conditioned on the memory of each object."""

    def attend_on(self, features: Features, image: Tensor | None, memory: Memory) -> Features:
        """Return the features of M objects on N images, with the result of `attend` for each object.

        A backbone can override it to compute the work of each image only once.

        Args:
            features: Features of N images.
            image: (M,) int64, number of the image of each object; None if each object has its own image, in order.
            memory: Memory of M objects.
        """
        return self.attend(features if image is None else features.select(image), memory)

    @abstractmethod
    def attention_stack(self, *, rotary_keys: bool = True) -> nn.Module:
        """Return a copy of this backbone's memory attention, weights included, for a propagation to train.

        Call it as `stack(query, query_position, memory, memory_position, pointer_tokens, key_mask, cells)`:

        - query and query_position: (N, h * w, D).
        - memory and memory_position: (N, L, M). The last `pointer_tokens` tokens have no position on the grid.
        - key_mask: (N, L). Bool: True for a token that may be attended to, at least one in each row. Float: added.
        - cells: (N, L - pointer_tokens) int64, cell of each other token on the grid of the query; None without rotary
          keys.

        Args:
            rotary_keys: Whether queries and keys are rotated by their position on the grid, as in SAM2.
        """

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """Return all tensors by their names in a weights file. Call it before an adapter is attached."""

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """Return the parts that an adapter may train: trunk, neck, memory_attention, memory_encoder, decoder."""


class Propagation(nn.Module, ABC):
    """Finds all lesions that look like the exemplars.

    Contract (`mois.testing.check_propagation`):

    - K = 0 works.
    - The order of exemplars does not matter. Their weight does (`Exemplars.present`).
    - The queries of a batch do not see each other's exemplars.
    - Any input size works.
    - Every trainable tensor gets a gradient.
    - An exemplar takes at most `bytes_per_exemplar` bytes.
    - Prepared exemplars (`prepare`) give the same result as unprepared exemplars.
    - `describe_on` gives the same exemplars as `describe`.
    """

    bytes_per_exemplar: int

    @abstractmethod
    def build(self, backbone: Backbone) -> None:
        """Make the layers in the sizes of this backbone. It is called once, before all other methods."""

    @abstractmethod
    def describe(self, features: Features, masks: Tensor, backbone: Backbone) -> Exemplars:
        """Turn masked lesions into exemplars, with gradient.

        Args:
            features: Features of N images.
            masks: (N, P, P) float, 0 to 1: one lesion on each image. Predicted masks are soft.
            backbone: The backbone that made the features.

        Returns:
            Exemplars with B = N and K = 1. An exemplar of an empty mask is not valid.
        """

    def describe_on(self, features: Features, image: Tensor, masks: Tensor, backbone: Backbone) -> Exemplars:
        """Turn M masked lesions on N images into exemplars, with the result of `describe` for each lesion.

        A propagation can override it to compute the work of each image only once.

        Args:
            features: Features of N images.
            image: (M,) int64, number of the image of each lesion.
            masks: (M, P, P) float, 0 to 1.
            backbone: The backbone that made the features.

        Returns:
            Exemplars with B = M and K = 1.
        """
        return self.describe(features.select(image), masks, backbone)

    def prepare(self, exemplars: Exemplars) -> Exemplars:
        """Compute everything that depends on the exemplars alone, once for all images.

        `forward` takes both prepared and unprepared exemplars. Prepared exemplars keep the axes B and K, the flags and
        the weights. The propagation decides what their tokens are.
        """
        return exemplars

    def complete(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return saved weights with what they lack and this propagation can begin without. The default adds nothing."""
        return tensors

    @property
    def merges(self) -> bool:
        """Whether `condense` merges exemplars. By default it does if the class has a `condense` of its own."""
        return type(self).condense is not Propagation.condense

    def condense(self, exemplars: Exemplars, most: int) -> Exemplars:
        """Merge prepared exemplars into at most `most` exemplars. The default merges nothing."""
        del most
        return exemplars

    @abstractmethod
    def forward(self, features: Features, exemplars: Exemplars, backbone: Backbone) -> SemanticPrediction:
        """Find all pixels that look like the positive exemplars of a query and unlike its negative exemplars.

        Args:
            features: Features of N images.
            exemplars: Exemplars of B = N x R queries, the R queries of an image in a row. So the work of an image is
                done once for its R queries.
            backbone: The backbone that made the features.

        Returns:
            B predictions, in the order of the exemplars.
        """

    def plain_answer(self, features: Features, exemplars: Exemplars) -> Tensor | None:
        """Return a plain answer, of which nothing was learned: logits (B, P, P). The default has none.

        It is a second opinion for scans that differ from the training (`inference.level: mixed`).

        Args:
            features: Features of N images.
            exemplars: Exemplars of B = N x R queries, as for `forward`.
        """
        del features, exemplars
        return None

    def both_answers(
        self, features: Features, exemplars: Exemplars, plain_of: Exemplars | None, backbone: Backbone
    ) -> tuple[SemanticPrediction, Tensor | None]:
        """Return the answer, and the plain answer. What both need may be computed once.

        Args:
            features: Features of N images.
            exemplars: Exemplars of B = N x R queries, as for `forward`.
            plain_of: Those queries, N x any number, of which the plain answer is wanted; None for no plain answer.
            backbone: The backbone that made the features.
        """
        prediction: SemanticPrediction = self(features, exemplars, backbone)
        return prediction, None if plain_of is None else self.plain_answer(features, plain_of)


class Adapter(ABC):
    """Makes parts of a frozen backbone and its propagation trainable."""

    @abstractmethod
    def attach(self, backbone: Backbone, propagation: Propagation) -> None:
        """Make the named parts trainable and everything else frozen.

        Raises:
            ValueError: If a name matches no part; the message lists the parts.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the trained tensors of the backbone into `folder`. A PEFT adapter uses the format of PEFT."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Load the tensors that `save` wrote into the attached backbone.

        Raises:
            ValueError: If a tensor is missing or left over; the message lists them.
        """

    def disabled(self) -> AbstractContextManager[None]:
        """Return a context in which the attached backbone answers exactly as before `attach`.

        An adapter that trains the backbone's own tensors has none: the default refuses.

        Raises:
            ValueError: If the adapter cannot be switched off.
        """
        raise ValueError(f"model.adapter={type(self).__name__} trains the backbone's own tensors; it cannot be off.")

    def merge(self) -> None:  # noqa: B027 (most adapters have nothing to do)
        """Fold the adapter into the attached backbone's own tensors. Its tensors then have the names of `weights`.

        It is done once, and cannot be undone. The default does nothing: an adapter without layers of its own has
        nothing to fold.

        Raises:
            ValueError: If the adapter computes what the backbone's own layers cannot.
        """
