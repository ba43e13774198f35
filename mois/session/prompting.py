"""From the prompts of one lesion to its voxels.

A lesion is segmented from its prompts alone, in their order. Answers are cached by the prompts that led to them, never
by lesion or state. So the same prompts always give the same voxels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from mois.geometry import restore_stack
from mois.inference.encoded_volume import UNCOVERED_LOGIT, EncodedVolume, Tracked, enlarge
from mois.inference.lesion_tracking import Seeds, track_one_lesion
from mois.inference.matched_masks import by_cell, for_model, match_answer
from mois.inference.segmenter import VolumeSegmenter
from mois.interfaces import Memory
from mois.lesions import Mask
from mois.records import Features, MaskPrediction, Prompts
from mois.session.masks import BoxMask
from mois.session.state import Prompt

Value = TypeVar("Value")
MAX_ANSWERS = 128
"""Number of cached answers to prompts: 4 kB each for the nano, 66 kB each at 512 px."""
MAX_TRACKED = 16
"""Number of cached tracks of a lesion on a tile. A track has one answer per slice."""


@dataclass
class _TilePrompts:
    """The prompts that lie on one tile."""

    tile: int
    prompts: list[Prompt] = field(default_factory=list)

    def on(self, index: int) -> tuple[Prompt, ...]:
        """Return the prompts on a slice."""
        return tuple(prompt for prompt in self.prompts if prompt.slice_index == index)


class _SliceAnswer(NamedTuple):
    """The answer on one slice of a tile: logits (1, P / 4, P / 4), pointer (1, D) and presence (1,).

    With `inference.clicks=matched` the logits are (1, P / 2, P / 2). `own` is the mask of the model, (1, P / 4, P / 4),
    which describes the lesion as an exemplar.
    """

    logits: Tensor
    pointer: Tensor
    presence: Tensor
    own: Tensor

    @property
    def shows(self) -> bool:
        """Whether the answer has a voxel."""
        return bool((self.logits > 0).any())


class _LatestResults(Generic[Value]):
    """A cache by tile and prompts. It keeps the `most` results that were used last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[object, ...], Value] = OrderedDict()

    def get(self, key: tuple[object, ...]) -> Value | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: tuple[object, ...], value: Value) -> None:
        self._kept[key] = value
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)


@dataclass(frozen=True)
class SegmentedLesion:
    """A lesion as its prompts give it. Voxels of other lesions are not taken out yet.

    Attributes:
        mask: Mask on the scan's own pixels.
        soft: Probability (h, w) on the picture of a slice, by slice, for the slices that the model answered.
    """

    mask: BoxMask
    soft: dict[int, Tensor]


class PromptSegmenter:
    """Segments the lesions of one scan from their prompts.

    - Prompted slices are answered first, in the order of their first prompts. Each answer uses the memory of the
      answers before it. Then the lesion is tracked from all of these slices.
    - On a prompted slice the latest prompt holds. The place of a click is inside or outside as the click says. A mask
      is taken as it is.
    - A mask on several slices is the whole lesion and replaces the earlier prompts. Later prompts change their slices.
    - A lesion larger than a tile is put together from several tiles. Each tile answers the prompts that lie on it.
    - A new prompt does not compute again the answers to earlier prompts, or the tiles on which it does not lie.
    """

    def __init__(self, segmenter: VolumeSegmenter, encoded: EncodedVolume) -> None:
        self._segmenter = segmenter
        self._backbone = segmenter.backbone
        self._encoded = encoded
        self._known_answers = _LatestResults[_SliceAnswer](MAX_ANSWERS)
        self._tracks = _LatestResults[Tracked](MAX_TRACKED)

    @torch.inference_mode()
    def segment(self, prompts: Sequence[Prompt]) -> SegmentedLesion:
        """Return a lesion in 3-D.

        Args:
            prompts: All prompts of the lesion, in order.
        """
        prompts = _prompts_in_force(prompts)
        whole = _whole_lesion_mask(prompts)
        with self._segmenter.autocast():
            parts = self._share_out(prompts)
            score = self._logits_by_slice([self._track(part, whole) for part in parts])
            own = self._logits_by_slice([self._own(part) for part in parts]) if self._matched else {}
        indices = sorted({*score, *(prompt.slice_index for prompt in prompts), *_slices_of(whole)})
        first = indices[0] if indices else 0
        stack = np.zeros((indices[-1] - first + 1 if indices else 0, *self._encoded.grid.stack_shape[1:]), dtype=bool)
        for index in indices:
            stack[index - first] = self._plane(prompts, index, score.get(index))
        return SegmentedLesion(
            BoxMask.of(stack, (first, 0, 0)), {index: logits.sigmoid() for index, logits in (score | own).items()}
        )

    @torch.inference_mode()
    def on_slice(self, prompts: Sequence[Prompt], index: int) -> Mask:
        """Return the lesion as `segment` gives it on a prompted slice, (H, W) bool, without tracking it from there."""
        prompts = _prompts_in_force(prompts)
        whole = _whole_lesion_mask(prompts)
        tracked = []
        with self._segmenter.autocast():
            for part in self._share_out(prompts):
                if part.on(index):
                    tracked.append(self._seeds(part.tile, {index: self._answers(part, index)[index]}))
                else:  # tracked to here from another slice
                    tracked.append(self._track(part, whole))
        return self._plane(prompts, index, self._logits_by_slice(tracked).get(index))

    def _plane(self, prompts: Sequence[Prompt], index: int, logits: Tensor | None) -> Mask:
        """Return a lesion on a slice, (H, W) bool: logits (h, w) or a whole-lesion mask, corrected by the prompts."""
        grid, whole = self._encoded.grid, _whole_lesion_mask(prompts)
        shape = grid.stack_shape[1:]
        if logits is not None:
            plane: Mask = (restore_stack(logits.unsqueeze(0), grid)[0] > 0).numpy()
        else:
            plane = np.zeros(shape, dtype=bool) if whole is None else whole.on_slice(index, shape)
        here = [prompt for prompt in prompts if prompt.slice_index == index]
        for prompt in here:
            if prompt.mask is not None and prompt.mask is not whole and prompt is here[-1]:
                plane = prompt.mask.on_slice(index, shape)
            if prompt.kind == "click":
                _apply_click(plane, prompt, (grid.row_mm, grid.column_mm), self._segmenter.settings.pixel_mm)
        return plane

    def _share_out(self, prompts: Sequence[Prompt]) -> list[_TilePrompts]:
        """Give each prompt to the tiles in use on which it lies well, or to the best tile for it."""
        parts: list[_TilePrompts] = []
        edge = self._encoded.tile_px
        for prompt in prompts:
            if prompt.mask is not None and len(prompt.mask.inside) > 1:
                continue
            y, x = self._picture_position(prompt.slice_index, *_prompt_centre(prompt))
            best = self._encoded.tiles.best_tile(y, x)
            margin = edge / 8 if prompt.positive else 0.0
            lies_on_tile = False
            for part in parts:
                top, left = self._encoded.corner(part.tile)
                deep = min(y - top, x - left, top + edge - 1 - y, left + edge - 1 - x)
                if part.tile == best or deep >= margin:
                    part.prompts.append(prompt)
                    lies_on_tile = True
            if prompt.positive and not lies_on_tile:
                parts.append(_TilePrompts(best, [prompt]))
        return parts

    def _picture_position(self, slice_index: int, row: float, column: float) -> tuple[float, float]:
        """Return a position of the stack as (y, x) in pixels of the picture of its slice."""
        index = torch.tensor([[float(slice_index), row, column]], dtype=torch.float64)
        _, y, x = self._encoded.grid.to_picture_index(index, self._segmenter.settings.pixel_mm)[0].tolist()
        height, width = self._encoded.pictures.shape[1:]
        return min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)

    def _track(self, part: _TilePrompts, whole: BoxMask | None) -> Tracked:
        """Answer the prompts of a tile, and track the lesion from them unless a mask gives the whole lesion."""
        if whole is not None:
            return self._seeds(part.tile, self._answers(part))
        key = (part.tile, *part.prompts)
        tracked = self._tracks.get(key)
        if tracked is None:
            answers = dict(sorted(self._answers(part).items()))
            rows = self._rows(part.tile, answers)
            seeds = Seeds(rows, *(torch.cat(parts) for parts in [*zip(*answers.values(), strict=True)][:3]))
            tracked = track_one_lesion(self._backbone, self._encoded, seeds, self._segmenter.limits)
            self._tracks.put(key, tracked)
        return tracked

    def _seeds(self, tile: int, answers: Mapping[int, _SliceAnswer]) -> Tracked:
        """Return the answers on a tile, by slice, as a lesion that is not tracked further."""
        rows = self._rows(tile, answers)
        logits = torch.cat([answer.logits for answer in answers.values()])
        return Tracked(np.zeros(len(rows), np.int64), rows, logits.float().cpu())

    def _own(self, part: _TilePrompts) -> Tracked:
        """Return the masks of the model on the prompted slices of a tile."""
        answers = self._answers(part)
        logits = torch.cat([answer.own for answer in answers.values()])
        return Tracked(np.zeros(len(answers), np.int64), self._rows(part.tile, answers), logits.float().cpu())

    def _rows(self, tile: int, slices: Iterable[int]) -> npt.NDArray[np.int64]:
        return np.array([self._encoded.row(index, tile) for index in slices])

    def _answers(self, part: _TilePrompts, last: int | None = None) -> dict[int, _SliceAnswer]:
        """Return the answer by slice, in the order of first prompts, up to slice `last`."""
        answers: dict[int, _SliceAnswer] = {}
        memories: dict[int, Memory] = {}
        before: tuple[Prompt, ...] = ()  # prompts on the slices answered so far
        for index in dict.fromkeys(prompt.slice_index for prompt in part.prompts):
            here = part.on(index)
            answers[index] = self._answer(part.tile, before, here, answers, memories)
            before += here
            if index == last:
                break
        return answers

    def _answer(
        self,
        tile: int,
        before: tuple[Prompt, ...],
        prompts: tuple[Prompt, ...],
        answers: Mapping[int, _SliceAnswer],
        memories: dict[int, Memory],
    ) -> _SliceAnswer:
        """Answer the prompts of one slice. Each prompt corrects the answer to the prompts before it; all are cached."""
        answer: _SliceAnswer | None = None
        cached = len(prompts)  # number of prompts whose answer is cached
        while cached and (answer := self._known_answers.get((tile, *before, *prompts[:cached]))) is None:
            cached -= 1
        if answer is not None and cached == len(prompts):
            return answer
        index = prompts[0].slice_index
        plain = features = self._encoded.select(self._rows(tile, [index]))
        memory = self._memory_near(tile, index, answers, memories)
        if memory is not None:
            features = self._backbone.attend(plain, memory)
        if answer is None and not prompts[0].positive:
            answer = self._as_answer(self._backbone.decode(features, None))
            if memory is None:  # nothing that a negative click could correct
                logits, own = (torch.full_like(part, UNCOVERED_LOGIT) for part in (answer.logits, answer.own))
                answer = answer._replace(logits=logits, own=own)
        points: list[tuple[float, float]] = []
        labels: list[int] = []
        for count, prompt in enumerate(prompts, start=1):
            if prompt.mask is not None:
                points, labels = [], []
            points += self._tile_points(tile, prompt)
            labels += {"click": [int(prompt.positive)], "box": [2, 3], "mask": []}[prompt.kind]
            if count <= cached:
                continue
            if prompt.mask is not None:
                alone = self._segmenter.tracking.masks_alone
                answer = self._adopt_mask(tile, plain if alone else features, prompt.mask, index)
            elif prompt.positive or answer is None or answer.shows:
                given = self._given(points, labels, answer)
                decoded = self._backbone.decode(features, given)
                own = decoded.logits
                if self._matched and not any(prompt.mask is not None for prompt in prompts[:count]):
                    decoded = match_answer(self._encoded, self._rows(tile, [index]), given, decoded)
                answer = self._as_answer(decoded)._replace(own=own)
            self._known_answers.put((tile, *before, *prompts[:count]), answer)
        if answer is None:
            raise LookupError("no prompt was answered: a caller gave an empty list")
        return answer

    def _memory_near(
        self, tile: int, index: int, answers: Mapping[int, _SliceAnswer], memories: dict[int, Memory]
    ) -> Memory | None:
        """Return the memory of the answered slices within reach of a slice; None if there is none."""
        reach = int(self._segmenter.settings.track_mm / self._encoded.grid.gap_mm)
        near = [other for other, answer in answers.items() if abs(other - index) <= reach and answer.shows]
        if not near:
            return None
        near.sort(key=lambda other: abs(other - index))
        for other in near:
            if other not in memories:
                features = self._encoded.select(self._rows(tile, [other]))
                logits = for_model(answers[other].logits, self._encoded.tile_px)
                memories[other] = self._backbone.remember_slice(features, logits, *answers[other][1:3], hard=True)
        direction = 1 if index > near[0] else -1
        answered = [(direction * (index - other), memories[other]) for other in near]
        return self._segmenter.tracking.gather(answered, [], slices=len(self._encoded.pictures))

    def _tile_points(self, tile: int, prompt: Prompt) -> list[tuple[float, float]]:
        """Return the points of a prompt as (x, y) in pixels of a tile."""
        top, left = self._encoded.corner(tile)
        positions = [self._picture_position(prompt.slice_index, row, column) for row, column in prompt.points]
        return [(x - left, y - top) for y, x in positions]

    def _given(self, points: list[tuple[float, float]], labels: list[int], earlier: _SliceAnswer | None) -> Prompts:
        """Return points as prompts, which correct an earlier answer if there is one."""
        device = self._segmenter.device
        mask = None if earlier is None else for_model(earlier.logits.float().unsqueeze(1), self._encoded.tile_px)
        return Prompts(
            torch.tensor([points], dtype=torch.float32, device=device),
            torch.tensor([labels], dtype=torch.int32, device=device),
            mask,
        )

    @property
    def _matched(self) -> bool:
        return self._segmenter.settings.clicks == "matched"

    def _as_answer(self, answer: MaskPrediction) -> _SliceAnswer:
        """Return an answer of the model on one slice."""
        logits = by_cell(answer.logits, self._encoded.tile_px) if self._matched else answer.logits
        return _SliceAnswer(logits, answer.pointer, answer.presence, answer.logits)

    def _adopt_mask(self, tile: int, features: Features, mask: BoxMask, index: int) -> _SliceAnswer:
        """Return a mask of the reader on a slice as if it were an answer of the model."""
        encoded, device = self._encoded, self._segmenter.device
        plane = torch.from_numpy(mask.on_slice(index, encoded.grid.stack_shape[1:]))
        size = encoded.pictures.shape[1:]
        soft = functional.interpolate(
            plane[None, None].float(), (int(size[0]), int(size[1])), mode="bilinear", antialias=True
        )
        return self._as_answer(self._backbone.adopt(features, encoded.crop(soft[0, 0], tile).unsqueeze(0).to(device)))

    def _logits_by_slice(self, tracked: Sequence[Tracked]) -> dict[int, Tensor]:
        """Return the highest logit (h, w) of all tiles, by slice."""
        encoded, edge = self._encoded, self._encoded.tile_px
        scores: dict[int, Tensor] = {}
        for part in tracked:
            for row, small in zip(part.rows.tolist(), part.logits, strict=True):
                logits = enlarge(small.unsqueeze(0), edge)[0].clamp(UNCOVERED_LOGIT, -UNCOVERED_LOGIT)
                index, tile = encoded.places[row].tolist()
                score = scores.setdefault(index, torch.full_like(encoded.pictures[index], UNCOVERED_LOGIT))
                top, left = encoded.corner(tile)
                on_tile = score[top : top + edge, left : left + edge]
                torch.maximum(on_tile, logits[: on_tile.shape[0], : on_tile.shape[1]], out=on_tile)
        return dict(sorted(scores.items()))


def _prompts_in_force(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Return the prompts from the latest whole-lesion mask on; without such a mask, all prompts."""
    whole = [n for n, prompt in enumerate(prompts) if prompt.mask is not None and len(prompt.mask.inside) > 1]
    return prompts[whole[-1] :] if whole else prompts


def _whole_lesion_mask(prompts: Sequence[Prompt]) -> BoxMask | None:
    """Return the mask that gives the whole lesion; None if no mask does."""
    mask = prompts[0].mask if prompts else None
    return mask if mask is not None and len(mask.inside) > 1 else None


def _slices_of(mask: BoxMask | None) -> range:
    return range(0) if mask is None else range(mask.corner[0], mask.corner[0] + len(mask.inside))


def _apply_click(plane: Mask, prompt: Prompt, pixel_mm: tuple[float, float], radius_mm: float) -> None:
    """Set the voxel of a click, and the voxels whose centre lies within the radius, inside or outside the lesion."""
    row, column = prompt.points[0]
    rows = (np.arange(plane.shape[0]) - row) * pixel_mm[0]
    columns = (np.arange(plane.shape[1]) - column) * pixel_mm[1]
    plane[rows[:, None] ** 2 + columns[None] ** 2 <= radius_mm**2] = prompt.positive
    plane[round(row), round(column)] = prompt.positive


def _prompt_centre(prompt: Prompt) -> tuple[float, float]:
    """Return the row and column of the middle of a prompt."""
    if prompt.mask is not None:
        _, row, column = prompt.mask.centre()
        return row, column
    points = np.array(prompt.points)
    row, column = points.mean(0).tolist()
    return row, column
