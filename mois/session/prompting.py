"""From all that a reader pointed at for one lesion to its voxels.

The lesion is worked out from its prompts alone, in their order. Answers are kept by the prompts that led to them, never
by lesion or state, so that what comes of the same prompts is always the same.
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
from mois.inference.segmenter import VolumeSegmenter
from mois.interfaces import Memory
from mois.lesions import Mask
from mois.records import Features, MaskPrediction, Prompts
from mois.session.masks import BoxMask
from mois.session.state import Prompt

Value = TypeVar("Value")
ANSWERS = 128
"""Answers that are kept, 4 kB each for the nano and 66 kB at 512 px."""
TRACKS = 16
"""Lesions followed on a tile that are kept, as many answers each as they have slices."""


@dataclass
class _Part:
    """The prompts that one tile shows."""

    tile: int
    prompts: list[Prompt] = field(default_factory=list)

    def on(self, index: int) -> tuple[Prompt, ...]:
        """Return those on a slice."""
        return tuple(prompt for prompt in self.prompts if prompt.slice_index == index)


class _Seen(NamedTuple):
    """What is needed further of a `MaskPrediction`: logits (1, P / 4, P / 4), pointer (1, D) and presence (1,)."""

    logits: Tensor
    pointer: Tensor
    presence: Tensor

    @staticmethod
    def of(answer: MaskPrediction) -> _Seen:
        return _Seen(answer.logits, answer.pointer, answer.presence)

    @property
    def shows(self) -> bool:
        """Whether there is anything."""
        return bool((self.logits > 0).any())


class _Latest(Generic[Value]):
    """What was worked out, by tile and prompts: the latest `most` that were asked for."""

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
class Answer:
    """A lesion as its prompts give it, whatever voxels belong to others.

    Attributes:
        mask: On the scan's own pixels.
        soft: Slice to probability (h, w) on its picture, of the slices that the model answered on.
    """

    mask: BoxMask
    soft: dict[int, Tensor]


class PromptSegmenter:
    """Lesions of one scan from their prompts.

    Every prompted slice is answered first, later ones knowing the earlier ones; then the lesion is followed from all of
    them. On a prompted slice the latest prompt holds: where a click fell is inside or outside as it says, and a mask is
    taken as it is. A mask over several slices is the whole lesion, whatever was there before; later prompts change it
    on their slices.

    A lesion too large for a tile is put together from several, each with the prompts that it shows. What a further
    prompt does not change is not worked out again: the answers to the prompts before it, and tiles that do not show it.
    """

    def __init__(self, segmenter: VolumeSegmenter, encoded: EncodedVolume) -> None:
        self._segmenter = segmenter
        self._backbone = segmenter.backbone
        self._encoded = encoded
        self._answered = _Latest[_Seen](ANSWERS)
        self._followed = _Latest[Tracked](TRACKS)

    @torch.inference_mode()
    def segment(self, prompts: Sequence[Prompt]) -> Answer:
        """Segment a lesion in 3-D."""
        prompts = _standing(prompts)
        solid = _solid(prompts)
        with self._segmenter.autocast():
            score = self._scores([self._follow(part, solid) for part in self._parts(prompts)])
        indices = sorted({*score, *(prompt.slice_index for prompt in prompts), *_slices(solid)})
        first = indices[0] if indices else 0
        stack = np.zeros((indices[-1] - first + 1 if indices else 0, *self._encoded.grid.stack_shape[1:]), dtype=bool)
        for index in indices:
            stack[index - first] = self._plane(prompts, index, score.get(index))
        return Answer(BoxMask.of(stack, (first, 0, 0)), {index: logits.sigmoid() for index, logits in score.items()})

    @torch.inference_mode()
    def on_slice(self, prompts: Sequence[Prompt], index: int) -> Mask:
        """Return what `segment` gives on a prompted slice, (H, W) bool, without following the lesion from there."""
        prompts = _standing(prompts)
        solid = _solid(prompts)
        tracked = []
        with self._segmenter.autocast():
            for part in self._parts(prompts):
                if part.on(index):
                    tracked.append(self._seeds(part.tile, {index: self._answers(part, index)[index]}))
                else:  # it is followed to here from another slice
                    tracked.append(self._follow(part, solid))
        return self._plane(prompts, index, self._scores(tracked).get(index))

    def _plane(self, prompts: Sequence[Prompt], index: int, logits: Tensor | None) -> Mask:
        """Return a lesion on a slice, (H, W) bool: the logits (h, w), or the whole mask's slice; then what holds."""
        grid, solid = self._encoded.grid, _solid(prompts)
        shape = grid.stack_shape[1:]
        if logits is not None:
            plane: Mask = (restore_stack(logits.unsqueeze(0), grid)[0] > 0).numpy()
        else:
            plane = np.zeros(shape, dtype=bool) if solid is None else solid.on_slice(index, shape)
        here = [prompt for prompt in prompts if prompt.slice_index == index]
        for prompt in here:
            if prompt.mask is not None and prompt.mask is not solid and prompt is here[-1]:
                plane = prompt.mask.on_slice(index, shape)
            if prompt.kind == "click":
                _hold(plane, prompt, (grid.row_mm, grid.column_mm), self._segmenter.settings.pixel_mm)
        return plane

    def _parts(self, prompts: Sequence[Prompt]) -> list[_Part]:
        """Share the prompts out to tiles: each goes to every tile in use that shows it well, or opens the best one."""
        parts: list[_Part] = []
        edge = self._encoded.tile_px
        for prompt in prompts:
            if prompt.mask is not None and len(prompt.mask.inside) > 1:
                continue
            y, x = self._picture_place(prompt.slice_index, *_middle(prompt))
            best = self._encoded.tiles.best_tile(y, x)
            margin = edge / 8 if prompt.positive else 0.0
            shown = False
            for part in parts:
                top, left = self._encoded.corner(part.tile)
                deep = min(y - top, x - left, top + edge - 1 - y, left + edge - 1 - x)
                if part.tile == best or deep >= margin:
                    part.prompts.append(prompt)
                    shown = True
            if prompt.positive and not shown:
                parts.append(_Part(best, [prompt]))
        return parts

    def _picture_place(self, slice_index: int, row: float, column: float) -> tuple[float, float]:
        """Return a place of the stack in the pixels of its picture."""
        index = torch.tensor([[float(slice_index), row, column]], dtype=torch.float64)
        _, y, x = self._encoded.grid.to_picture_index(index, self._segmenter.settings.pixel_mm)[0].tolist()
        height, width = self._encoded.pictures.shape[1:]
        return min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)

    def _follow(self, part: _Part, solid: BoxMask | None) -> Tracked:
        """Answer the prompts of a tile, slice by slice, and follow the lesion unless it is given whole."""
        if solid is not None:
            return self._seeds(part.tile, self._answers(part))
        key = (part.tile, *part.prompts)
        tracked = self._followed.get(key)
        if tracked is None:
            answers = dict(sorted(self._answers(part).items()))
            rows = self._rows(part.tile, answers)
            seeds = Seeds(rows, *(torch.cat(parts) for parts in zip(*answers.values(), strict=True)))
            tracked = track_one_lesion(self._backbone, self._encoded, seeds, self._segmenter.limits)
            self._followed.put(key, tracked)
        return tracked

    def _seeds(self, tile: int, answers: Mapping[int, _Seen]) -> Tracked:
        """Return the answers on a tile, by slice, as a lesion that is followed nowhere."""
        rows = self._rows(tile, answers)
        logits = torch.cat([answer.logits for answer in answers.values()])
        return Tracked(np.zeros(len(rows), np.int64), rows, logits.float().cpu())

    def _rows(self, tile: int, slices: Iterable[int]) -> npt.NDArray[np.int64]:
        return np.array([self._encoded.row(index, tile) for index in slices])

    def _answers(self, part: _Part, last: int | None = None) -> dict[int, _Seen]:
        """Return slice to the answer to its prompts, in the order of first prompts; no slice after the last named."""
        answers: dict[int, _Seen] = {}
        memories: dict[int, Memory] = {}
        before: tuple[Prompt, ...] = ()  # on the slices that this one knows
        for index in dict.fromkeys(prompt.slice_index for prompt in part.prompts):
            asked = part.on(index)
            answers[index] = self._answer(part.tile, before, asked, answers, memories)
            before += asked
            if index == last:
                break
        return answers

    def _answer(
        self,
        tile: int,
        before: tuple[Prompt, ...],
        asked: tuple[Prompt, ...],
        answers: Mapping[int, _Seen],
        memories: dict[int, Memory],
    ) -> _Seen:
        """Answer the prompts of one slice, each correcting the answer to those before it; what is known is kept."""
        answer: _Seen | None = None
        known = len(asked)
        while known and (answer := self._answered.get((tile, *before, *asked[:known]))) is None:
            known -= 1
        if answer is not None and known == len(asked):
            return answer
        index = asked[0].slice_index
        plain = features = self._encoded.select(self._rows(tile, [index]))
        memory = self._near(tile, index, answers, memories)
        if memory is not None:
            features = self._backbone.attend(plain, memory)
        if answer is None and not asked[0].positive:
            answer = _Seen.of(self._backbone.decode(features, None))
            if memory is None:  # nothing there to take away from
                answer = answer._replace(logits=torch.full_like(answer.logits, UNCOVERED_LOGIT))
        points: list[tuple[float, float]] = []
        labels: list[int] = []
        for count, prompt in enumerate(asked, start=1):
            if prompt.mask is not None:
                points, labels = [], []
            points += self._on_tile(tile, prompt)
            labels += {"click": [int(prompt.positive)], "box": [2, 3], "mask": []}[prompt.kind]
            if count <= known:
                continue
            if prompt.mask is not None:
                alone = self._segmenter.tracking.masks_alone
                answer = self._given(tile, plain if alone else features, prompt.mask, index)
            elif prompt.positive or answer is None or answer.shows:
                answer = self._decode(features, points, labels, answer)
            self._answered.put((tile, *before, *asked[:count]), answer)
        if answer is None:
            raise LookupError("no prompt was answered: a caller gave an empty list")
        return answer

    def _near(self, tile: int, index: int, answers: Mapping[int, _Seen], memories: dict[int, Memory]) -> Memory | None:
        """Return what is remembered of answered slices within reach of another, as seen from there."""
        reach = int(self._segmenter.settings.track_mm / self._encoded.grid.gap_mm)
        near = [other for other, answer in answers.items() if abs(other - index) <= reach and answer.shows]
        if not near:
            return None
        near.sort(key=lambda other: abs(other - index))
        for other in near:
            if other not in memories:
                features = self._encoded.select(self._rows(tile, [other]))
                memories[other] = self._backbone.remember_slice(features, *answers[other], hard=True)
        direction = 1 if index > near[0] else -1
        known = [(direction * (index - other), memories[other]) for other in near]
        return self._segmenter.tracking.gather(known, [], slices=len(self._encoded.pictures))

    def _on_tile(self, tile: int, prompt: Prompt) -> list[tuple[float, float]]:
        """Return the points of a prompt in the pixels of a tile, x before y."""
        top, left = self._encoded.corner(tile)
        places = [self._picture_place(prompt.slice_index, row, column) for row, column in prompt.points]
        return [(x - left, y - top) for y, x in places]

    def _decode(
        self, features: Features, points: list[tuple[float, float]], labels: list[int], earlier: _Seen | None
    ) -> _Seen:
        """Return the answer to points that correct an earlier one."""
        given = Prompts(
            torch.tensor([points], dtype=torch.float32, device=self._segmenter.device),
            torch.tensor([labels], dtype=torch.int32, device=self._segmenter.device),
            None if earlier is None else earlier.logits.float().unsqueeze(1),
        )
        return _Seen.of(self._backbone.decode(features, given))

    def _given(self, tile: int, features: Features, mask: BoxMask, index: int) -> _Seen:
        """Return a mask of the reader's on a slice as if the model had given it."""
        encoded, device = self._encoded, self._segmenter.device
        plane = torch.from_numpy(mask.on_slice(index, encoded.grid.stack_shape[1:]))
        size = encoded.pictures.shape[1:]
        soft = functional.interpolate(
            plane[None, None].float(), (int(size[0]), int(size[1])), mode="bilinear", antialias=True
        )
        return _Seen.of(self._backbone.adopt(features, encoded.crop(soft[0, 0], tile).unsqueeze(0).to(device)))

    def _scores(self, tracked: Sequence[Tracked]) -> dict[int, Tensor]:
        """Return slice to the highest logit (h, w) of what was answered there."""
        encoded, edge = self._encoded, self._encoded.tile_px
        scores: dict[int, Tensor] = {}
        for part in tracked:
            for row, small in zip(part.rows.tolist(), part.logits, strict=True):
                logits = enlarge(small.unsqueeze(0), edge)[0].clamp(UNCOVERED_LOGIT, -UNCOVERED_LOGIT)
                index, tile = encoded.places[row].tolist()
                score = scores.setdefault(index, torch.full_like(encoded.pictures[index], UNCOVERED_LOGIT))
                top, left = encoded.corner(tile)
                there = score[top : top + edge, left : left + edge]
                torch.maximum(there, logits[: there.shape[0], : there.shape[1]], out=there)
        return dict(sorted(scores.items()))


def _standing(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Return the prompts from the latest mask of a whole lesion on."""
    whole = [n for n, prompt in enumerate(prompts) if prompt.mask is not None and len(prompt.mask.inside) > 1]
    return prompts[whole[-1] :] if whole else prompts


def _solid(standing: Sequence[Prompt]) -> BoxMask | None:
    """Return the mask that is given as the whole lesion."""
    mask = standing[0].mask if standing else None
    return mask if mask is not None and len(mask.inside) > 1 else None


def _slices(mask: BoxMask | None) -> range:
    return range(0) if mask is None else range(mask.corner[0], mask.corner[0] + len(mask.inside))


def _hold(plane: Mask, prompt: Prompt, pixel_mm: tuple[float, float], radius_mm: float) -> None:
    """Let a click hold on its slice: the voxel that it fell on, and those whose centre is within the radius."""
    row, column = prompt.points[0]
    rows = (np.arange(plane.shape[0]) - row) * pixel_mm[0]
    columns = (np.arange(plane.shape[1]) - column) * pixel_mm[1]
    plane[rows[:, None] ** 2 + columns[None] ** 2 <= radius_mm**2] = prompt.positive
    plane[round(row), round(column)] = prompt.positive


def _middle(prompt: Prompt) -> tuple[float, float]:
    """Return the row and column that a prompt is about."""
    if prompt.mask is not None:
        _, row, column = prompt.mask.centre()
        return row, column
    points = np.array(prompt.points)
    row, column = points.mean(0).tolist()
    return row, column
