"""Records that the parts exchange: scans, episodes, features, prompts, predictions and exemplars.

Axes, used everywhere: B episodes, G exemplar groups of an episode, K exemplars of a group, N images, P patch edge in
pixels, S slices. Images of a patch are (..., P, P) with rows first; row 0 is the top of the picture. With C = 2 or 3
channels (`mois.scans.channels`) they are (..., C, P, P). Image intensities are normalised floats: 0 is the low level of
the scan, 1 its high level (`mois.intensities`). A backbone applies its own pixel statistics on top.
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


class Channel(NamedTuple):
    """A sequence of a scan.

    Attributes:
        name: Its name in dataset.json, such as "FLAIR"; empty if unknown.
        image: (I, J, K) float32, raw intensities.
        levels: Its normalisation in the whole scan, if this is a part of a scan; None for a whole scan.
        path: Its file.
    """

    name: str
    image: Tensor
    levels: Levels | None = None
    path: str = ""


class Volume(NamedTuple):
    """A scan on its scanner's grid.

    Attributes:
        subject: Name of the scan, unique within a dataset.
        patient: Name of the patient. All scans of a patient lie in the same split.
        image: (I, J, K) float32, raw intensities, voxel axes as in the file: the first or only channel.
        affine: (4, 4) float64, voxel indices to RAS millimetres.
        lesions: Instance map (I, J, K) int32, 0 is background; all zero if nothing was annotated.
        classes: Lesion id to class, both >= 1.
        path: File of the image. Results are written on its grid.
        declared: Classes that the dataset declares; empty if unknown.
        channel: Name of the image in dataset.json, such as "T2"; empty if unknown. "CT" has its own normalisation.
        levels: Normalisation of the whole scan, if this volume is a part of a scan; None for a whole scan.
        further: Further channels: sequences on the same grid, each with its name.
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
    further: tuple[Channel, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(I, J, K)."""
        return int(self.image.shape[0]), int(self.image.shape[1]), int(self.image.shape[2])

    @property
    def grid(self) -> Grid:
        """Position of its voxels in space."""
        return Grid.of(self.shape, self.affine)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return self.grid.voxel_ml


NO_CORES = torch.zeros(0, dtype=torch.bool)
"""`Episode.query_cores` of a source of episodes that knows no single lesions. Batches of it can be stacked."""


class Episode(NamedTuple):
    """A batch of B tasks, each with exemplars and with a query in which similar lesions are to be found.

    Every task has G = 2 groups of exemplars that share the query. Group 0 shows a lesion class of the subject. Group 1
    shows something else: another class, a transplanted lesion, or normal anatomy. The query need not show group 1.

    Attributes:
        support_images: (B, G, K, P, P) float32, one patch around one exemplar each.
        support_masks: (B, G, K, P, P) bool, mask of the exemplar alone, without other lesions of its class.
        support_valid: (B, G, K) bool, False for padding in a group with fewer than K exemplars.
        query_images: (B, P, P) float32, from another slice than any support of group 0.
        query_targets: (B, G, P, P) bool, everything of the class of the group in the query.
        query_lesions: (B, P, P) bool, lesions of every class in the query (the target when there are no exemplars).
        group_is_lesion: (B, G) bool, False if the group is no lesion class (anatomy, distractor) or is absent.
        track_images: (B, T, P, P) float32, T consecutive slices around one lesion. The middle slice is clicked.
        track_masks: (B, T, P, P) bool, that lesion on these slices.
        chance: (B, 64) float32, uniform in [0, 1): numbers for every random choice of a training step. So a step
            depends only on its episode, and not on rank, worker or resumption.
        query_cores: (B, P, P) bool, the cores of all lesions in the query: those of `query_lesions`, and transplanted
            lesions. Each lesion has a core, and the cores of touching lesions do not touch (`datamodules.cores`). Empty
            if unknown; then no cores are learned.
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
    query_cores: Tensor = NO_CORES


class Windows(NamedTuple):
    """Where N square windows of equal sides lie on their tiles.

    Attributes:
        corners: (N, 2) int64, row and column of the first cell of each window on the coarsest level of its tile.
        tile_px: Edge of a tile in pixels.
    """

    corners: Tensor
    tile_px: int

    def cut(self, code: Tensor, side: int) -> Tensor:
        """Return the parts (N, C, side, side) of a map (C, h, w) of the tile that lie in the windows."""
        row, column = self.corners.unbind(1)
        return code.unfold(1, side, 1).unfold(2, side, 1)[:, row, column].transpose(0, 1)


class Features(NamedTuple):
    """Features of N images, made by a backbone.

    Attributes:
        levels: From fine to coarse, (N, C_l, P / s_l, P / s_l) with s_l = `Backbone.strides[l]`.
        position: Position code of the coarsest level, in the shape of that level.
        image: The input, (N, C, P, P), normalised intensities of C = 1 to 3 channels.
        conditioned: Whether the coarsest level has attended to the memory of an object (`Backbone.attend`).
        windows: Where the images lie on tiles, if they are windows of tiles; else None.
        filters: Answers of the filter bank on the image (`mois.filters.filter_bank`), if they are known; else None.
    """

    levels: tuple[Tensor, ...]
    position: Tensor
    image: Tensor
    conditioned: bool = False
    windows: Windows | None = None
    filters: Tensor | None = None

    def select(self, index: Tensor | slice) -> Features:
        """Return the features of some of the images (an index, a mask or a slice over N)."""
        levels = tuple(level[index] for level in self.levels)
        windows = None if self.windows is None else self.windows._replace(corners=self.windows.corners[index])
        return Features(levels, self.position[index], self.image[index], self.conditioned, windows)

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
        labels: (N, Q) int32: 1 positive click, 0 negative click, 2 and 3 the corners of a box, -1 padding.
        mask_logits: (N, 1, P / 4, P / 4) logits of an earlier answer to correct, or None.
    """

    points: Tensor
    labels: Tensor
    mask_logits: Tensor | None = None


class MaskPrediction(NamedTuple):
    """Answer to prompts on N images.

    Attributes:
        logits: (N, P / 4, P / 4), the candidate with the best predicted quality.
        candidates: (N, M, P / 4, P / 4); M = 3 after one click and while tracking, 1 otherwise.
        iou: (N, M), predicted intersection over union of each candidate, 0 to 1.
        pointer: (N, D), a vector that describes the object.
        presence: (N,), logit that the object is on this slice.
    """

    logits: Tensor
    candidates: Tensor
    iou: Tensor
    pointer: Tensor
    presence: Tensor


@dataclass(frozen=True)
class Exemplars:
    """K exemplars for each of B queries, described by a propagation.

    Attributes:
        tokens: Name to (B, K, ...) float; the names and shapes belong to the propagation.
        valid: (B, K) bool, False for padding. A row without any True has no exemplars.
        negative: (B, K) bool, True for an exemplar of what must not be found.
        weight: (B, K) float32, default 1. Weight 2 counts as two equal exemplars, weight 0 as no exemplar.
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
        """Number K of exemplars, with padding."""
        return self.valid.shape[1]

    @property
    def present(self) -> Tensor:
        """(B, K) bool: exemplars that are valid and have a weight above 0."""
        return self.valid & (self.weight > 0)

    @property
    def positive(self) -> Tensor:
        """(B, K) bool: present exemplars of what must be found."""
        return self.present & ~self.negative

    @property
    def present_negative(self) -> Tensor:
        """(B, K) bool: present exemplars of what must not be found."""
        return self.present & self.negative

    def bytes_per_exemplar(self) -> int:
        """Return the size of the tokens of one exemplar in bytes."""
        return sum(token[0, 0].numel() * token.element_size() for token in self.tokens.values())

    def map(self, change: dict[str, Tensor] | None = None, **fields: Tensor) -> Exemplars:
        """Return a copy with other tokens or flags."""
        return replace(self, **({"tokens": change} if change is not None else {}), **fields)  # type: ignore[arg-type]

    def each(self, change: Callable[[Tensor], Tensor]) -> Exemplars:
        """Apply a change of the axes B and K to every tensor, (B, K, ...) or (B, K)."""
        tokens = {name: change(token) for name, token in self.tokens.items()}
        return Exemplars(tokens, change(self.valid), change(self.negative), change(self.weight))

    def pick(self, index: Tensor | slice) -> Exemplars:
        """Return the exemplars at `index` of the K axis."""
        return self.each(lambda tensor: tensor[:, index])

    def expand(self, batch: int) -> Exemplars:
        """Return the exemplars of one query (B = 1) for `batch` queries, without a copy."""
        if self.valid.shape[0] != 1:
            raise ValueError(f"expand needs the exemplars of one query, got those of {self.valid.shape[0]}")
        return self.each(lambda tensor: tensor.expand(batch, *tensor.shape[1:]))

    def reshape(self, batch: int, count: int) -> Exemplars:
        """Return the same exemplars with the axes (B, K) reshaped to (batch, count)."""
        return self.each(lambda tensor: tensor.reshape(batch, count, *tensor.shape[2:]))

    def and_none(self, groups: int) -> Exemplars:
        """Add a question without exemplars after every `groups` questions: (B x G, K) to (B x (G + 1), K).

        So all questions are answered in one pass. In the row of an added question no exemplar is valid.
        """
        rows = torch.arange(len(self.valid), device=self.valid.device).view(-1, groups)
        with_one_more = torch.cat([rows, rows[:, :1]], dim=1)
        shown = (torch.arange(groups + 1, device=rows.device) < groups).expand_as(with_one_more).reshape(-1, 1)
        more = self.each(lambda tensor: tensor[with_one_more.flatten()])
        return more.map(valid=more.valid & shown)

    def sides_changed(self) -> Exemplars:
        """Return the exemplars with their signs changed: what must not be found is looked for, and the reverse."""
        return self.map(negative=self.valid & ~self.negative)

    @staticmethod
    def cat(parts: Sequence[Exemplars]) -> Exemplars:
        """Join exemplars of the same queries along K."""
        tokens = {name: torch.cat([part.tokens[name] for part in parts], dim=1) for name in parts[0].tokens}
        flags = zip(*((part.valid, part.negative, part.weight) for part in parts), strict=True)
        return Exemplars(tokens, *(torch.cat(flag, dim=1) for flag in flags))


class SemanticPrediction(NamedTuple):
    """Lesions that look like the exemplars, on B queries.

    Attributes:
        logits: (B, P, P), at the resolution of the patch.
        presence: (B,), logit that the query shows such a lesion.
        drafts: (B, P, P), logits of an earlier stage, which are supervised too; or None.
        cores: (B, P, P), logits of the cores of these lesions (`Episode.query_cores`), which tell touching lesions
            apart; or None.
    """

    logits: Tensor
    presence: Tensor
    drafts: Tensor | None = None
    cores: Tensor | None = None


@dataclass(frozen=True)
class WeightsIdentity:
    """Identity of the weights of a backbone.

    Attributes:
        name: Size of the model, such as "nano" or "tiny".
        source: "bundled", "random", the name of a file, or a hub id.
        sha256: SHA-256 of the file that was read; of the tensors if there was no file.
    """

    name: str
    source: str
    sha256: str
