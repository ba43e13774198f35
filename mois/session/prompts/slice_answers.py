"""The answers of the model to prompts, on single slices. What is known of one slice is remembered for the others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from mois.inference.encoded_volume import UNCOVERED_LOGIT, EncodedVolume
from mois.inference.matched_masks import by_cell, for_model, match_answer
from mois.inference.segmenter import VolumeSegmenter
from mois.interfaces import Memory
from mois.lesions import Mask
from mois.records import CERTAIN, Features, MaskPrediction, Prompts
from mois.session.masks import BoxMask
from mois.session.prompts.prompt_voxels import ruled_out
from mois.session.state import Prompt

Value = TypeVar("Value")
MAX_ANSWERS = 128
"""Number of cached answers to prompts: 4 kB each for the nano, 66 kB each at 512 px."""


@dataclass
class TilePrompts:
    """The prompts that lie on one tile."""

    tile: int
    prompts: list[Prompt] = field(default_factory=list)

    def on(self, index: int) -> tuple[Prompt, ...]:
        """Return the prompts on a slice."""
        return tuple(prompt for prompt in self.prompts if prompt.slice_index == index)


class _Points(NamedTuple):
    """Points that the model gets at once: (x, y) in pixels of a tile, and their labels as in `Prompts`.

    Attributes:
        first_alone: Whether the model gets the first point alone if no other prompt is there: to one click it answers
            with several candidates. All points then decide how these are matched to the picture.
    """

    points: list[tuple[float, float]]
    labels: list[int]
    first_alone: bool = False


class _Asked:
    """A slice of a tile, and all points on it that the model was given so far.

    Args:
        tile: The tile.
        index: The slice.
        plain: Features of the tile.
        features: The same, once they have attended to the memory of other slices.
    """

    def __init__(self, tile: int, index: int, plain: Features, features: Features) -> None:
        self.tile, self.index, self.plain, self.features = tile, index, plain, features
        self.forget()

    def add(self, steps: Iterable[_Points]) -> None:
        """Add points."""
        for step in steps:
            self.points += step.points
            self.labels += step.labels

    def forget(self) -> None:
        """Drop the points: a mask replaces them."""
        self.points: list[tuple[float, float]] = []
        self.labels: list[int] = []


class SliceAnswer(NamedTuple):
    """The answer on one slice of a tile: logits (1, P / 4, P / 4), pointer (1, D) and presence (1,).

    Where clicks are matched to the picture, the logits are (1, P / 2, P / 2). `own` is the mask of the model,
    (1, P / 4, P / 4), where it describes the lesion as an exemplar (`InferenceSettings.shows_own_masks`); else None.
    """

    logits: Tensor
    pointer: Tensor
    presence: Tensor
    own: Tensor | None = None

    @property
    def shows(self) -> bool:
        """Whether the answer has a voxel."""
        return bool((self.logits > 0).any())

    def each(self, change: Callable[[Tensor], Tensor]) -> SliceAnswer:
        """Apply a change to the mask, and to the mask of the model if it is kept."""
        return self._replace(logits=change(self.logits), own=None if self.own is None else change(self.own))


class LatestResults(Generic[Value]):
    """A cache by tile and prompts. It keeps the `most` results that were used last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[object, ...], Value] = OrderedDict()

    def get(self, key: tuple[object, ...]) -> Value | None:
        """Return a result; None if it is not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: tuple[object, ...], value: Value) -> None:
        """Keep a result."""
        self._kept[key] = value
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)


class SliceAnswers:
    """Answers the prompts of a lesion on the slices on which they lie.

    - Slices are answered in the order of their first prompts. Each answer uses the memory of the answers before it.
    - On a slice, each prompt corrects the answer to the prompts before it. A scribble is a click in its middle, which
      clicks along it then correct. A lasso is its box, and its inside as an earlier answer.
    - What the area of a prompt rules out is taken out of the answer, so that it is not tracked to other slices.
    - Answers are cached by the prompts that led to them.

    Args:
        segmenter: The model.
        encoded: The scan.
    """

    def __init__(self, segmenter: VolumeSegmenter, encoded: EncodedVolume) -> None:
        self._segmenter = segmenter
        self._backbone = segmenter.backbone
        self._encoded = encoded
        self._known_answers = LatestResults[SliceAnswer](MAX_ANSWERS)

    @property
    def pixels(self) -> tuple[tuple[float, float], float]:
        """Height and width of a pixel of a slice, and the radius of a click, in mm."""
        grid = self._encoded.grid
        return (grid.row_mm, grid.column_mm), self._segmenter.settings.pixel_mm

    def picture_position(self, slice_index: int, row: float, column: float) -> tuple[float, float]:
        """Return a position of the stack as (y, x) in pixels of the picture of its slice."""
        index = torch.tensor([[float(slice_index), row, column]], dtype=torch.float64)
        _, y, x = self._encoded.grid.to_picture_index(index, self._segmenter.settings.pixel_mm)[0].tolist()
        height, width = self._encoded.pictures.shape[1:]
        return min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)

    def rows(self, tile: int, slices: Iterable[int]) -> npt.NDArray[np.int64]:
        """Return the rows of a tile on some slices in the encoded scan."""
        return np.array([self._encoded.row(index, tile) for index in slices])

    def answers(self, part: TilePrompts, last: int | None = None) -> dict[int, SliceAnswer]:
        """Return the answer by slice, in the order of first prompts, up to slice `last`."""
        answers: dict[int, SliceAnswer] = {}
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
        answers: Mapping[int, SliceAnswer],
        memories: dict[int, Memory],
    ) -> SliceAnswer:
        """Answer the prompts of one slice. Each prompt corrects the answer to the prompts before it; all are cached."""
        answer: SliceAnswer | None = None
        cached = len(prompts)  # number of prompts whose answer is cached
        while cached and (answer := self._known_answers.get((tile, *before, *prompts[:cached]))) is None:
            cached -= 1
        if answer is not None and cached == len(prompts):
            return answer
        index = prompts[0].slice_index
        plain = features = self._encoded.select(self.rows(tile, [index]))
        memory = self._memory_near(tile, index, answers, memories)
        if memory is not None:
            features = self._backbone.attend(plain, memory)
        if answer is None and not prompts[0].positive:
            answer = self._as_answer(self._backbone.decode(features, None))
            if memory is None:  # nothing that a negative click could correct
                answer = answer.each(lambda logits: torch.full_like(logits, UNCOVERED_LOGIT))
        asked = _Asked(tile, index, plain, features)
        for count, prompt in enumerate(prompts, start=1):
            steps = self._steps(tile, prompt)
            if prompt.gives_mask:
                asked.forget()
            if count <= cached:
                asked.add(steps)
                continue
            answer = self._next_answer(asked, prompts[:count], steps, answer)
            self._known_answers.put((tile, *before, *prompts[:count]), answer)
        if answer is None:
            raise LookupError("no prompt was answered: a caller gave an empty list")
        return answer

    def _next_answer(
        self, asked: _Asked, prompts: Sequence[Prompt], steps: Sequence[_Points], answer: SliceAnswer | None
    ) -> SliceAnswer:
        """Return the answer once the last of some prompts is taken in; `answer` is that to the prompts before it."""
        prompt, index = prompts[-1], asked.index
        if prompt.mask is not None and prompt.gives_mask:
            alone = self._segmenter.tracking.masks_alone
            answer = self._adopt_mask(asked.tile, asked.plain if alone else asked.features, prompt.mask, index)
        if prompt.mask is not None and prompt.kind == "lasso" and prompt.positive:
            answer = self._outlined(asked.tile, prompt.mask, index)
        for step in steps:
            asked.add([step])
            if not (prompt.positive or answer is None or answer.shows):
                continue
            given = self._given(asked.points, asked.labels, answer)
            told = given
            if step.first_alone and len(asked.points) == len(step.points):
                told = self._given(asked.points[:1], asked.labels[:1], answer)
            decoded = self._backbone.decode(asked.features, told)
            own = decoded.logits
            if not any(each.gives_mask for each in prompts):
                rules = self._segmenter.settings.mask_rules
                decoded = match_answer(self._encoded, self.rows(asked.tile, [index]), given, decoded, rules)
            answer = self._as_answer(decoded, own)
        if answer is None:
            raise LookupError("a prompt has no point on its tile, and no answer came before it")
        return self._without_ruled_out(asked.tile, prompts, index, answer)

    def _memory_near(
        self, tile: int, index: int, answers: Mapping[int, SliceAnswer], memories: dict[int, Memory]
    ) -> Memory | None:
        """Return the memory of the answered slices within reach of a slice; None if there is none."""
        reach = int(self._segmenter.settings.track_mm / self._encoded.grid.gap_mm)
        near = [other for other, answer in answers.items() if abs(other - index) <= reach and answer.shows]
        if not near:
            return None
        near.sort(key=lambda other: abs(other - index))
        for other in near:
            if other not in memories:
                features = self._encoded.select(self.rows(tile, [other]))
                logits = for_model(answers[other].logits, self._encoded.tile_px)
                memories[other] = self._backbone.remember_slice(features, logits, *answers[other][1:3], hard=True)
        direction = 1 if index > near[0] else -1
        answered = [(direction * (index - other), memories[other]) for other in near]
        return self._segmenter.tracking.gather(answered, [], slices=len(self._encoded.pictures))

    def _steps(self, tile: int, prompt: Prompt) -> list[_Points]:
        """Return the points of a prompt that the model gets, one step after the other: (x, y) in pixels of a tile."""
        if prompt.erases or prompt.kind == "mask":
            return []
        top, left = self._encoded.corner(tile)
        edge = self._encoded.tile_px
        positions = [self.picture_position(prompt.slice_index, row, column) for row, column in prompt.points]
        points = [(x - left, y - top) for y, x in positions]
        if prompt.kind in ("box", "lasso"):
            return [_Points(points, [2, 3])]
        if prompt.kind == "click":
            return [_Points(points, [int(prompt.positive)])]
        middle = (len(points) - 1) / 2
        order = sorted(range(len(points)), key=lambda place: abs(place - middle))
        points = [points[place] for place in order if 0 <= min(points[place]) <= max(points[place]) <= edge - 1]
        labels = [int(prompt.positive)] * len(points)
        if self.matched and prompt.positive:
            return [_Points(points, labels, first_alone=True)][: len(points)]
        return [_Points(points[:1], labels[:1]), _Points(points[1:], labels[1:])][: len(points)]

    def _given(self, points: list[tuple[float, float]], labels: list[int], earlier: SliceAnswer | None) -> Prompts:
        """Return points as prompts, which correct an earlier answer if there is one."""
        device = self._segmenter.device
        mask = None if earlier is None else for_model(earlier.logits.float().unsqueeze(1), self._encoded.tile_px)
        return Prompts(
            torch.tensor([points], dtype=torch.float32, device=device),
            torch.tensor([labels], dtype=torch.int32, device=device),
            mask,
        )

    @property
    def matched(self) -> bool:
        """Whether answers to clicks are matched to the picture."""
        return self._segmenter.settings.matches_clicks

    def _as_answer(self, answer: MaskPrediction, own: Tensor | None = None) -> SliceAnswer:
        """Return an answer on one slice. `own` is the mask of the model; None if the answer has that mask."""
        logits = by_cell(answer.logits, self._encoded.tile_px) if self.matched else answer.logits
        if not self._segmenter.settings.shows_own_masks:
            return SliceAnswer(logits, answer.pointer, answer.presence)
        return SliceAnswer(logits, answer.pointer, answer.presence, answer.logits if own is None else own)

    def _adopt_mask(self, tile: int, features: Features, mask: BoxMask, index: int) -> SliceAnswer:
        """Return a mask of the reader on a slice as if it were an answer of the model."""
        soft = self._on_tile(tile, mask.on_slice(index, self._encoded.grid.stack_shape[1:]))
        return self._as_answer(self._backbone.adopt(features, soft))

    def _on_tile(self, tile: int, plane: Mask) -> Tensor:
        """Return voxels (H, W) bool of a slice on a tile, (1, P, P) float, 0 to 1."""
        encoded, size = self._encoded, self._encoded.pictures.shape[1:]
        soft = functional.interpolate(
            torch.from_numpy(plane)[None, None].float(), (int(size[0]), int(size[1])), mode="bilinear", antialias=True
        )
        return encoded.crop(soft[0, 0], tile).unsqueeze(0).to(self._segmenter.device)

    def _outlined(self, tile: int, mask: BoxMask, index: int) -> SliceAnswer:
        """Return the inside of a lasso as an earlier answer, which the model corrects."""
        soft = self._on_tile(tile, mask.on_slice(index, self._encoded.grid.stack_shape[1:]))
        small = functional.avg_pool2d(soft, 4)
        logits = (small / small.amax().clamp(min=1e-6) * 2 - 1) * CERTAIN
        nothing = logits.new_zeros(1)
        return SliceAnswer(logits, nothing, nothing)

    def _without_ruled_out(self, tile: int, prompts: Sequence[Prompt], index: int, answer: SliceAnswer) -> SliceAnswer:
        """Return an answer without the voxels that areas of the reader rule out."""
        out = ruled_out(prompts, index, self._encoded.grid.stack_shape[1:], *self.pixels)
        if out is None:
            return answer
        soft = self._on_tile(tile, out)

        def less(logits: Tensor) -> Tensor:
            share = functional.adaptive_avg_pool2d(soft, logits.shape[-1])
            return torch.where(share > 0.5, torch.full_like(logits, UNCOVERED_LOGIT), logits)

        return answer.each(less)
