"""From the prompts of one lesion to its voxels.

A lesion is segmented from its prompts alone, in their order. Answers are cached by the prompts that led to them, never
by lesion or state. So the same prompts always give the same voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mois.geometry import restore_stack
from mois.inference.encoded_volume import UNCOVERED_LOGIT, EncodedVolume, Tracked, enlarge
from mois.inference.lesion_tracking import Seeds, track_one_lesion
from mois.inference.segmenter import VolumeSegmenter
from mois.lesions import Mask
from mois.session.masks import BoxMask
from mois.session.prompts.prompt_voxels import corrected
from mois.session.prompts.slice_answers import LatestResults, SliceAnswer, SliceAnswers, TilePrompts
from mois.session.state import Prompt

MAX_TRACKED = 16
"""Number of cached tracks of a lesion on a tile. A track has one answer per slice."""


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
        self._slices = SliceAnswers(segmenter, encoded)
        self._tracks = LatestResults[Tracked](MAX_TRACKED)

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
            own = {}
            if self._segmenter.settings.shows_own_masks:
                own = self._logits_by_slice([self._own(part) for part in parts])
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
                    tracked.append(self._seeds(part.tile, {index: self._slices.answers(part, index)[index]}))
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
        here = [prompt for prompt in prompts if index in prompt.slices]
        return corrected(plane, here, index, *self._slices.pixels)

    def _share_out(self, prompts: Sequence[Prompt]) -> list[TilePrompts]:
        """Give each prompt to the tiles in use on which it lies well, or to the best tile for it."""
        parts: list[TilePrompts] = []
        edge = self._encoded.tile_px
        for prompt in prompts:
            if len(prompt.slices) > 1:
                continue
            for row, column in _prompt_places(prompt):
                y, x = self._slices.picture_position(prompt.slice_index, row, column)
                best = self._encoded.tiles.best_tile(y, x)
                margin = edge / 8 if prompt.positive else 0.0
                lies_on_tile = False
                for part in parts:
                    top, left = self._encoded.corner(part.tile)
                    deep = min(y - top, x - left, top + edge - 1 - y, left + edge - 1 - x)
                    if part.tile == best or deep >= margin:
                        lies_on_tile = True
                        if not part.prompts or part.prompts[-1] is not prompt:
                            part.prompts.append(prompt)
                if prompt.positive and not lies_on_tile:
                    parts.append(TilePrompts(best, [prompt]))
        return parts

    def _track(self, part: TilePrompts, whole: BoxMask | None) -> Tracked:
        """Answer the prompts of a tile, and track the lesion from them unless a mask gives the whole lesion."""
        if whole is not None:
            return self._seeds(part.tile, self._slices.answers(part))
        key = (part.tile, *part.prompts)
        tracked = self._tracks.get(key)
        if tracked is None:
            answers = dict(sorted(self._slices.answers(part).items()))
            rows = self._slices.rows(part.tile, answers)
            seeds = Seeds(rows, *(torch.cat(parts) for parts in [*zip(*answers.values(), strict=True)][:3]))
            tracked = track_one_lesion(self._backbone, self._encoded, seeds, self._segmenter.limits)
            self._tracks.put(key, tracked)
        return tracked

    def _seeds(self, tile: int, answers: Mapping[int, SliceAnswer]) -> Tracked:
        """Return the answers on a tile, by slice, as a lesion that is not tracked further."""
        rows = self._slices.rows(tile, answers)
        logits = torch.cat([answer.logits for answer in answers.values()])
        return Tracked(np.zeros(len(rows), np.int64), rows, logits.float().cpu())

    def _own(self, part: TilePrompts) -> Tracked:
        """Return the masks of the model on the prompted slices of a tile."""
        answers = self._slices.answers(part)
        logits = torch.cat([answer.own for answer in answers.values() if answer.own is not None])
        return Tracked(np.zeros(len(answers), np.int64), self._slices.rows(part.tile, answers), logits.float().cpu())

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
    whole = [n for n, prompt in enumerate(prompts) if prompt.is_whole]
    return prompts[whole[-1] :] if whole else prompts


def _whole_lesion_mask(prompts: Sequence[Prompt]) -> BoxMask | None:
    """Return the mask that gives the whole lesion; None if no mask does."""
    return prompts[0].mask if prompts and prompts[0].is_whole else None


def _slices_of(mask: BoxMask | None) -> range:
    return range(0) if mask is None else range(mask.corner[0], mask.corner[0] + len(mask.inside))


def _prompt_places(prompt: Prompt) -> Sequence[tuple[float, float]]:
    """Return the rows and columns that decide on which tiles a prompt lies: its middle, or all places of a scribble."""
    if prompt.kind == "scribble":
        return prompt.points
    if prompt.kind == "mask" and prompt.mask is not None:
        return [prompt.mask.centre()[1:]]
    row, column = np.array(prompt.points).mean(0).tolist()
    return [(row, column)]
