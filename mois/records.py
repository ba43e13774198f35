"""What travels between the parts: scans, episodes, features, prompts, predictions and exemplars.

Axes, used everywhere: B episodes, G exemplar groups of an episode, K exemplars of a group, N images, P patch edge in
pixels, S slices. Images of a patch are (..., P, P) with rows first; row 0 is the top of the picture. Image intensities
are normalised floats: 0 is the low level of the scan, 1 its high level (`mois.intensities`). A backbone applies
its own pixel statistics on top.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mois.grid import Grid
from mois.intensities import Levels

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
