"""From all that a reader pointed at for one lesion to its voxels.

The lesion is worked out from its prompts alone, in their order: nothing of an earlier answer is kept, so that what
comes of the same prompts is always the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mois.encoded import OUTSIDE, EncodedVolume, Tracked, enlarge
from mois.follow import Seeds, follow_one
from mois.geometry import restore_stack
from mois.inference import VolumeSegmenter
from mois.interfaces import Features, MaskPrediction, Memory, Prompts
from mois.metrics import Mask
from mois.session.state import BoxMask, Prompt

CERTAIN = 10.0
"""Logit of a mask that the reader gave."""


@dataclass
class _Part:
    """The prompts that one tile shows."""

    tile: int
    prompts: list[Prompt] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """A lesion as its prompts give it, whatever voxels belong to others.

    Attributes:
        mask: On the scan's own pixels.
        soft: Slice to probability (h, w) on its picture, of the slices that the model answered on.
    """

    mask: BoxMask
    soft: dict[int, Tensor]


@torch.inference_mode()
def segment(segmenter: VolumeSegmenter, encoded: EncodedVolume, prompts: Sequence[Prompt]) -> Answer:
    """Segment one lesion.

    Every prompted slice is answered first, later ones knowing the earlier ones; then the lesion is followed from all of
    them. On a prompted slice the latest prompt holds: where a click fell is inside or outside as it says, and a mask is
    taken as it is. A mask over several slices is the whole lesion, which later prompts change on their slices.

    A lesion too large for a tile is put together from several, each with the prompts that it shows.
    """
    solid = next((prompt.mask for prompt in prompts if prompt.mask is not None and len(prompt.mask.inside) > 1), None)
    with segmenter.autocast():
        tracked = [
            _answer_part(segmenter, encoded, part, solid is not None) for part in _parts(segmenter, encoded, prompts)
        ]
    score = _scores(encoded, tracked)
    shape = encoded.grid.stack_shape
    indices = sorted({*score, *(prompt.slice_index for prompt in prompts), *_slices(solid)})
    first = indices[0] if indices else 0
    stack = np.zeros((indices[-1] - first + 1 if indices else 0, *shape[1:]), dtype=bool)
    if solid is not None:
        stack[solid.corner[0] - first :][: len(solid.inside), solid.region[1], solid.region[2]] = solid.inside
    for index, logits in score.items():
        stack[index - first] = (restore_stack(logits.unsqueeze(0), encoded.grid)[0] > 0).numpy()
    hold_mm = segmenter.settings.pixel_mm
    for prompt in prompts:
        if prompt.kind == "mask" and prompt.mask is not None and prompt.mask is not solid:
            later = prompts[_place(prompts, prompt) + 1 :]
            if not any(other.slice_index == prompt.slice_index for other in later):
                stack[prompt.slice_index - first] = prompt.mask.on_slice(prompt.slice_index, shape[1:])
        if prompt.kind == "click":
            _hold(stack[prompt.slice_index - first], prompt, (encoded.grid.row_mm, encoded.grid.column_mm), hold_mm)
    return Answer(BoxMask.of(stack, (first, 0, 0)), {index: logits.sigmoid() for index, logits in score.items()})


def _place(prompts: Sequence[Prompt], prompt: Prompt) -> int:
    return next(n for n, other in enumerate(prompts) if other is prompt)


def _slices(mask: BoxMask | None) -> range:
    return range(0) if mask is None else range(mask.corner[0], mask.corner[0] + len(mask.inside))


def _hold(plane: Mask, prompt: Prompt, pixel_mm: tuple[float, float], radius_mm: float) -> None:
    """Let a click hold on its slice: the voxel that it fell on, and those whose centre is within the radius."""
    row, column = prompt.points[0]
    rows = (np.arange(plane.shape[0]) - row) * pixel_mm[0]
    columns = (np.arange(plane.shape[1]) - column) * pixel_mm[1]
    plane[rows[:, None] ** 2 + columns[None] ** 2 <= radius_mm**2] = prompt.positive
    plane[round(row), round(column)] = prompt.positive


def _parts(segmenter: VolumeSegmenter, encoded: EncodedVolume, prompts: Sequence[Prompt]) -> list[_Part]:
    """Share the prompts out to tiles: each goes to every tile in use that shows it well, or opens the best one."""
    parts: list[_Part] = []
    for prompt in prompts:
        if prompt.mask is not None and len(prompt.mask.inside) > 1:
            continue
        row, column = _middle(prompt)
        y, x = picture_place(segmenter, encoded, prompt.slice_index, row, column)
        edge = encoded.tile_px
        best = encoded.tiles.best_tile(y, x)
        margin = edge / 8 if prompt.positive else 0.0
        shown = False
        for part in parts:
            top, left = encoded.corner(part.tile)
            deep = min(y - top, x - left, top + edge - 1 - y, left + edge - 1 - x)
            if part.tile == best or deep >= margin:
                part.prompts.append(prompt)
                shown = True
        if prompt.positive and not shown:
            parts.append(_Part(best, [prompt]))
    return parts


def _middle(prompt: Prompt) -> tuple[float, float]:
    """Return the row and column that a prompt is about."""
    if prompt.mask is not None:
        _, row, column = prompt.mask.centre()
        return row, column
    points = np.array(prompt.points)
    row, column = points.mean(0).tolist()
    return row, column


def picture_place(
    segmenter: VolumeSegmenter, encoded: EncodedVolume, slice_index: int, row: float, column: float
) -> tuple[float, float]:
    """Return a place of the stack in the pixels of its picture."""
    index = torch.tensor([[float(slice_index), row, column]], dtype=torch.float64)
    _, y, x = encoded.grid.to_picture_index(index, segmenter.settings.pixel_mm)[0].tolist()
    height, width = encoded.pictures.shape[1:]
    return min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)


def _answer_part(segmenter: VolumeSegmenter, encoded: EncodedVolume, part: _Part, solid: bool) -> Tracked:
    """Answer the prompts of a tile, slice by slice, and follow the lesion unless it is given whole."""
    order = list(dict.fromkeys(prompt.slice_index for prompt in part.prompts))
    seeds: dict[int, MaskPrediction] = {}
    memories: dict[int, Memory] = {}
    for index in order:
        row = np.array([encoded.row(index, part.tile)])
        features = encoded.select(row)
        asked = [prompt for prompt in part.prompts if prompt.slice_index == index]
        answer = _answer_slice(
            segmenter, encoded, part.tile, features, asked, _near(segmenter, encoded, memories, index)
        )
        seeds[index] = answer
        if bool((answer.logits > 0).any()):
            memories[index] = segmenter.backbone.remember(features, answer.logits, answer.pointer)
    ascending = sorted(order)
    rows = np.array([encoded.row(index, part.tile) for index in ascending])
    logits = torch.cat([seeds[index].logits for index in ascending])
    if solid:
        return Tracked(np.zeros(len(rows), np.int64), rows, logits.float().cpu())
    pointers = torch.cat([seeds[index].pointer for index in ascending])
    return follow_one(segmenter.backbone, encoded, Seeds(rows, logits, pointers), segmenter.limits)


def _near(segmenter: VolumeSegmenter, encoded: EncodedVolume, memories: dict[int, Memory], index: int) -> Memory | None:
    """Return what is remembered of answered slices within reach of another, as seen from there."""
    reach = int(segmenter.settings.track_mm / encoded.grid.gap_mm)
    near = sorted((other for other in memories if abs(other - index) <= reach), key=lambda other: abs(other - index))
    if not near:
        return None
    direction = 1 if index > near[0] else -1
    return Memory.cat([memories[other].at(direction * (index - other), clicked=True) for other in near])


def _answer_slice(
    segmenter: VolumeSegmenter,
    encoded: EncodedVolume,
    tile: int,
    features: Features,
    prompts: Sequence[Prompt],
    memory: Memory | None,
) -> MaskPrediction:
    """Answer the prompts of one slice, each correcting the answer to those before it."""
    backbone = segmenter.backbone
    if memory is not None:
        features = backbone.attend(features, memory)
    answer = None if prompts[0].positive else backbone.decode(features, None)
    if memory is None and answer is not None:
        answer = answer._replace(logits=torch.full_like(answer.logits, OUTSIDE))  # nothing there to take away from
    points: list[tuple[float, float]] = []
    labels: list[int] = []
    for prompt in prompts:
        if prompt.mask is not None:
            shape = encoded.grid.stack_shape[1:]
            plane = torch.from_numpy(prompt.mask.on_slice(prompt.slice_index, shape))
            answer = _given(segmenter, encoded, tile, features, plane)
            points, labels = [], []
            continue
        top, left = encoded.corner(tile)
        for row, column in prompt.points:
            y, x = picture_place(segmenter, encoded, prompt.slice_index, row, column)
            points.append((x - left, y - top))
        labels += [2, 3] if prompt.kind == "box" else [int(prompt.positive)]
        if not prompt.positive and answer is not None and not bool((answer.logits > 0).any()):
            continue
        earlier = None if answer is None else answer.logits.float().unsqueeze(1)
        given = Prompts(
            torch.tensor([points], dtype=torch.float32, device=segmenter.device),
            torch.tensor([labels], dtype=torch.int32, device=segmenter.device),
            earlier,
        )
        answer = backbone.decode(features, given)
    if answer is None:
        raise LookupError("no prompt was answered: a caller gave an empty list")
    return answer


def _given(
    segmenter: VolumeSegmenter, encoded: EncodedVolume, tile: int, features: Features, plane: Tensor
) -> MaskPrediction:
    """Return a mask (H, W) of the reader's as if the model had given it."""
    size = encoded.pictures.shape[1:]
    soft = functional.interpolate(
        plane[None, None].float(), (int(size[0]), int(size[1])), mode="bilinear", antialias=True
    )
    cell = functional.avg_pool2d(encoded.crop(soft[0, 0], tile)[None, None], 4)[0]  # (1, P / 4, P / 4)
    surest = float(cell.amax())
    if 0 < surest <= 0.5:
        cell = cell * (0.6 / surest)  # a mask smaller than a cell keeps its surest cell
    logits = ((cell * 2 - 1) * CERTAIN).to(segmenter.device)
    nowhere = torch.zeros(1, 1, 2, device=segmenter.device)
    padding = torch.full((1, 1), -1, dtype=torch.int32, device=segmenter.device)
    answer = segmenter.backbone.decode(features, Prompts(nowhere, padding, logits.unsqueeze(1)))
    return answer._replace(logits=logits.to(answer.logits.dtype))


def _scores(encoded: EncodedVolume, tracked: Sequence[Tracked]) -> dict[int, Tensor]:
    """Return slice to the highest logit (h, w) of what was answered there."""
    scores: dict[int, Tensor] = {}
    edge = encoded.tile_px
    for part in tracked:
        for row, logits in zip(part.rows.tolist(), enlarge(part.logits, edge).clamp(OUTSIDE, -OUTSIDE), strict=True):
            index, tile = encoded.places[row].tolist()
            score = scores.setdefault(index, torch.full_like(encoded.pictures[index], OUTSIDE))
            top, left = encoded.corner(tile)
            there = score[top : top + edge, left : left + edge]
            torch.maximum(there, logits[: there.shape[0], : there.shape[1]], out=there)
    return dict(sorted(scores.items()))
