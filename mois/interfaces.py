"""What can be swapped, and what travels between the parts.

Axes, used everywhere: B episodes, G exemplar groups of an episode, K exemplars of a group, N images, P patch edge in
pixels, S slices. Images of a patch are (..., P, P) with rows first; row 0 is the top of the picture. Image intensities
are normalised floats: 0 is the scan's low percentile, 1 its high one (`mois.intensities`); a backbone applies its own
pixel statistics on top.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mois.grid import Grid
from mois.intensities import Levels
from mois.memory import Memory as Memory
from mois.memory import TrackingRules as TrackingRules

CERTAIN = 10.0
"""Logit of a mask that a reader gave."""


class Volume(NamedTuple):
    """A scan on its scanner's grid.

    Attributes:
        subject: Name of the scan, unique within a dataset.
        patient: Whom it was taken of; scans of one patient never stand in two splits.
        image: (I, J, K) float32, raw intensities, voxel axes as in the file.
        affine: (4, 4) float64, voxel indices to RAS millimetres.
        lesions: Instance map (I, J, K) int32, 0 is background; all zero where nothing was annotated.
        classes: Lesion id to class, both >= 1.
        path: The file that the image came from; its grid is the one that results are written on.
        declared: The classes that its dataset declares; empty where nobody says.
        channel: What its dataset calls the image, such as "T2"; "CT" is normalised in its own way. Empty where nobody
            says.
        levels: What the whole scan is normalised by, where this is a part of it; None of a whole scan.
    """

    subject: str
    patient: str
    image: Tensor
    affine: Tensor
    lesions: Tensor
    classes: dict[int, int]
    path: str = ""
    declared: tuple[int, ...] = ()
    channel: str = ""
    levels: Levels | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(I, J, K)."""
        return int(self.image.shape[0]), int(self.image.shape[1]), int(self.image.shape[2])

    @property
    def grid(self) -> Grid:
        """Where its voxels lie."""
        return Grid.of(self.shape, self.affine)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return self.grid.voxel_ml


class Episode(NamedTuple):
    """A batch of B tasks: exemplars to look at, and a query to find their like in.

    Every task has G = 2 groups of exemplars that share the query. Group 0 is a lesion class of the subject; group 1 is
    something else: another class, a transplanted lesion, normal anatomy. What group 1 shows may be absent from the
    query.

    Attributes:
        support_images: (B, G, K, P, P) float32, one patch around one exemplar each.
        support_masks: (B, G, K, P, P) bool, the exemplar's own mask, nothing else of its class.
        support_valid: (B, G, K) bool, False where a group has fewer than K exemplars (padding).
        query_images: (B, P, P) float32, from another slice than any support of group 0.
        query_targets: (B, G, P, P) bool, all that is of the group's class in the query.
        query_lesions: (B, P, P) bool, lesions of every class in the query (the target when there are no exemplars).
        group_is_lesion: (B, G) bool, False where the group is no lesion class (anatomy, distractor) or is absent.
        track_images: (B, T, P, P) float32, T consecutive slices around one lesion, the middle one is clicked.
        track_masks: (B, T, P, P) bool, that lesion on these slices.
        chance: (B, 64) float32, uniform in [0, 1): every random choice of a training step, so that it depends on the
            episode alone and not on rank, worker or resumption.
    """

    support_images: Tensor
    support_masks: Tensor
    support_valid: Tensor
    query_images: Tensor
    query_targets: Tensor
    query_lesions: Tensor
    group_is_lesion: Tensor
    track_images: Tensor
    track_masks: Tensor
    chance: Tensor


class Features(NamedTuple):
    """What a backbone sees in N images.

    Attributes:
        levels: From fine to coarse, (N, C_l, P / s_l, P / s_l) with s_l = `Backbone.strides[l]`.
        position: Position code of the coarsest level, same shape as it.
        image: The input, (N, 1, P, P), normalised intensities.
        conditioned: True where the coarsest level has attended to an object's memory (`Backbone.attend`).
    """

    levels: tuple[Tensor, ...]
    position: Tensor
    image: Tensor
    conditioned: bool = False

    def select(self, index: Tensor | slice) -> Features:
        """Return the features of some of the images (an index, a mask or a slice over N)."""
        levels = tuple(level[index] for level in self.levels)
        return Features(levels, self.position[index], self.image[index], self.conditioned)

    def repeat(self, times: int) -> Features:
        """Return every image `times` times in a row, (N * times, ...)."""
        if times == 1:
            return self
        return Features(
            tuple(level.repeat_interleave(times, 0) for level in self.levels),
            self.position.repeat_interleave(times, 0),
            self.image.repeat_interleave(times, 0),
            self.conditioned,
        )


class Prompts(NamedTuple):
    """Clicks and boxes on N images.

    Attributes:
        points: (N, Q, 2) float32, x (column) then y (row), in pixels of the patch.
        labels: (N, Q) int32: 1 positive click, 0 negative click, 2 and 3 a box's two corners, -1 padding.
        mask_logits: (N, 1, P / 4, P / 4) logits of an earlier answer to correct, or None.
    """

    points: Tensor
    labels: Tensor
    mask_logits: Tensor | None = None


class MaskPrediction(NamedTuple):
    """Answer to prompts on N images.

    Attributes:
        logits: (N, P / 4, P / 4), the mask chosen among the candidates by predicted quality.
        candidates: (N, M, P / 4, P / 4); M = 3 after one click and while tracking, 1 otherwise.
        iou: (N, M), predicted intersection over union of each candidate, 0 to 1.
        pointer: (N, D), one vector that stands for the object.
        presence: (N,), logit that the object is on this slice.
    """

    logits: Tensor
    candidates: Tensor
    iou: Tensor
    pointer: Tensor
    presence: Tensor


@dataclass(frozen=True)
class Exemplars:
    """K exemplars for each of B queries, as the propagation that made them describes them.

    Attributes:
        tokens: Name to (B, K, ...) float; the names and shapes belong to the propagation.
        valid: (B, K) bool, False is padding. A row without any True has no exemplars.
        negative: (B, K) bool, True for what is not to be found ("not like this").
        weight: (B, K) float32: one of weight 2 counts as if it were there twice, 0 as if it were not; 1 if not given.
    """

    tokens: dict[str, Tensor]
    valid: Tensor
    negative: Tensor
    weight: Tensor = None  # type: ignore[assignment]  # made from `valid` below

    def __post_init__(self) -> None:
        if self.weight is None:
            object.__setattr__(self, "weight", torch.ones_like(self.valid, dtype=torch.float32))

    @property
    def count(self) -> int:
        """K, padding included."""
        return self.valid.shape[1]

    @property
    def present(self) -> Tensor:
        """(B, K) bool: which exemplars count, those that are valid and have any weight."""
        return self.valid & (self.weight > 0)

    def bytes_per_exemplar(self) -> int:
        """Return the size of one exemplar's tokens in memory."""
        return sum(token[0, 0].numel() * token.element_size() for token in self.tokens.values())

    def map(self, change: dict[str, Tensor] | None = None, **fields: Tensor) -> Exemplars:
        """Return a copy with other tokens or flags."""
        return replace(self, **({"tokens": change} if change is not None else {}), **fields)  # type: ignore[arg-type]

    def each(self, change: Callable[[Tensor], Tensor]) -> Exemplars:
        """Return what a change of the axes B and K makes of every tensor, (B, K, ...) or (B, K), alike."""
        tokens = {name: change(token) for name, token in self.tokens.items()}
        return Exemplars(tokens, change(self.valid), change(self.negative), change(self.weight))

    def pick(self, index: Tensor | slice) -> Exemplars:
        """Return the exemplars at `index` of the K axis."""
        return self.each(lambda tensor: tensor[:, index])

    def expand(self, batch: int) -> Exemplars:
        """Return one query's exemplars (B = 1) for `batch` queries, without copying."""
        if self.valid.shape[0] != 1:
            raise ValueError(f"expand needs the exemplars of one query, got those of {self.valid.shape[0]}")
        return self.each(lambda tensor: tensor.expand(batch, *tensor.shape[1:]))

    def reshape(self, batch: int, count: int) -> Exemplars:
        """Return the same exemplars, (B, K) regrouped as (batch, count)."""
        return self.each(lambda tensor: tensor.reshape(batch, count, *tensor.shape[2:]))

    @staticmethod
    def cat(parts: Sequence[Exemplars]) -> Exemplars:
        """Join exemplars of the same queries along K."""
        tokens = {name: torch.cat([part.tokens[name] for part in parts], dim=1) for name in parts[0].tokens}
        flags = zip(*((part.valid, part.negative, part.weight) for part in parts), strict=True)
        return Exemplars(tokens, *(torch.cat(flag, dim=1) for flag in flags))


class SemanticPrediction(NamedTuple):
    """All that is like the exemplars, on B queries.

    Attributes:
        logits: (B, P, P), patch resolution.
        presence: (B,), logit that there is anything like the exemplars on the query.
        drafts: (B, P, P), logits of an earlier stage to be supervised as well, or None.
    """

    logits: Tensor
    presence: Tensor
    drafts: Tensor | None = None


@dataclass(frozen=True)
class WeightsIdentity:
    """Which weights a backbone holds.

    Attributes:
        name: Size of the model, such as "nano" or "tiny".
        source: "bundled", "random", a file's name or a hub id.
        sha256: Of the file that was read; of the tensors where there was no file.
    """

    name: str
    source: str
    sha256: str


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
