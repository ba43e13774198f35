"""Advice to the reader: what to click next, what the exemplars do not cover, and which exemplars help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mois.geometry import SliceGrid
from mois.inference.encoded_volume import EncodedVolume
from mois.inference.lesion_maps import log_odds
from mois.inference.segmenter import VolumeSegmenter
from mois.records import Exemplars
from mois.session.found_lesions import outline
from mois.session.masks import BoxMask
from mois.session.state import Lesion, State
from mois.sharing.bank import Exemplar

MOST_VETOES = 2
"""Rejected lesions that veto for each positive exemplar. With one exemplar, the fourth took all true lesions along."""
MIN_LESIONS = 5
"""A share of fewer found lesions than this is not reported."""
SIZE_FACTOR = 3.0
"""A lesion is much smaller or larger from this factor beyond the exemplars' range of areas."""
INTENSITY_MARGIN = 0.1
"""A lesion is much darker or brighter from this difference beyond the exemplars' range of normalised intensities."""
FAR_NOVELTY = 2.0
"""A lesion with a greater `Lesion.novelty` looks unlike every exemplar."""
UNSURE_ODDS = 0.05
"""Odds that a candidate is a lesion if it was not found: 4 % of 606 on phantoms were, and 48 % of the found ones."""

Rejected = TypeVar("Rejected", Sequence[str], Tensor)


@dataclass(frozen=True)
class Suggestion:
    """A place that the reader should look at.

    Attributes:
        point_lps_mm: Where to click, LPS mm.
        lesion: Id of the found lesion; None for a candidate whose probability is too low. A lesion that is well drawn
            is better accepted than clicked: a click draws it again.
        benefit: Expected benefit of an action there, 0 to 1. It has a meaning beside other suggestions only.
        reason: Why, in words for the reader.
    """

    point_lps_mm: tuple[float, float, float]
    lesion: int | None
    benefit: float
    reason: str


@dataclass(frozen=True)
class Influence:
    """How much an exemplar helps.

    Attributes:
        key: Key of the exemplar.
        negative: Whether the exemplar shows what must not be found.
        effect: Soft Dice of the other judged lesions with the exemplar, minus the same without it (mean). For rejected
            lesions, the share that is not found replaces the Dice. Above 0 the exemplar helps, below 0 it harms. None
            if there is no other judged lesion.
    """

    key: str
    negative: bool
    effect: float | None


def suggestions(state: State, grid: SliceGrid, voxel_ml: float, count: int) -> list[Suggestion]:
    """Return the places where the reader's next action would help most, the most helpful first.

    The best exemplar is a large lesion that surely is one. So a place counts by odds x size^2 / (0.1 + novelty):

    - The odds that it is a lesion come from the confidence. For a candidate that was not found, they are `UNSURE_ODDS`.
    - Large found lesions are seldom false, and their masks describe a lesion best. Size is the volume, as a share of
      the largest place here.
    - What is far from every exemplar is more often false. Beyond `FAR_NOVELTY` it counts as that far, and so does a
      candidate that was not found.

    docs/metrics.md has the measurement.

    Args:
        state: State of the session, after a propagation.
        grid: Grid of the scan.
        voxel_ml: Volume of a voxel in millilitres.
        count: Largest number of suggestions.
    """
    found = {n: each for n, each in state.lesions.items() if not each.owns and each.mask.voxels}
    sizes = [*(each.mask.voxels for each in found.values()), *(each.voxels for each in state.unsure)]
    largest = max(sizes, default=1)
    advised: list[Suggestion] = []
    for number, lesion in found.items():
        reason = (
            f"found with confidence {lesion.confidence:.2f}; {lesion.novelty:.1f} times as far from its nearest "
            f"exemplar ({lesion.explained_by or 'there is none'}) as exemplars are from each other; "
            f"{lesion.mask.voxels * voxel_ml:.2f} ml"
        )
        odds = lesion.confidence / max(1 - lesion.confidence, 0.001)
        benefit = _benefit(odds, lesion.mask.voxels / largest, lesion.novelty)
        advised.append(Suggestion(_lps(grid, inner_voxel(lesion.mask)), number, benefit, reason))
    for candidate in state.unsure:
        why = f"missed by little: the probability is {candidate.peak:.2f} at most"
        if candidate.like_rejected:
            why = "left out: it is more like the rejected lesions than like the exemplars"
        reason = f"{why}; {candidate.voxels * voxel_ml:.2f} ml"
        benefit = _benefit(UNSURE_ODDS, candidate.voxels / largest, FAR_NOVELTY)
        advised.append(Suggestion(_lps(grid, candidate.point), None, benefit, reason))
    advised.sort(key=lambda each: -each.benefit)
    return advised[:count]


def _benefit(odds: float, size: float, novelty: float) -> float:
    """Return the benefit of a place, 0 to 1."""
    score = odds * size**2 / (0.1 + min(novelty, FAR_NOVELTY))  # between two equal exemplars, novelty has no unit
    return score / (1 + score)


def inner_voxel(mask: BoxMask) -> tuple[int, int, int]:
    """Return the slice, row and column of the voxel deepest inside a lesion, on the slice on which it is largest."""
    from scipy import ndimage

    index = mask.largest_slice()
    depth = ndimage.distance_transform_edt(np.pad(mask.inside[index - mask.corner[0]], 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return index, int(row) + mask.corner[1], int(column) + mask.corner[2]


def _lps(grid: SliceGrid, index: tuple[int, int, int]) -> tuple[float, float, float]:
    x, y, z = grid.to_lps_mm(torch.tensor([index], dtype=torch.float64))[0].tolist()
    return x, y, z


def coverage_warnings(state: State, grid: SliceGrid) -> list[str]:
    """Return warnings where the exemplars do not cover the found lesions: in size, intensity, place or look."""
    shown = [exemplar for exemplar in state.exemplars.values() if not exemplar.negative and exemplar.weight > 0]
    found = {number: lesion for number, lesion in state.lesions.items() if lesion.origin == "found"}
    if not found:
        return []
    if not shown:
        return [f"{len(found)} lesions were found without any exemplar; click a few that are typical."]
    areas = {number: each.area_mm2 for number, each in found.items()}
    means = {number: each.mean_intensity for number, each in found.items()}
    return [
        *_outside_range(found, areas, [exemplar.area_mm2 for exemplar in shown], "mm2"),
        *_outside_range(found, means, [exemplar.mean_intensity for exemplar in shown], ""),
        *_uncovered_thirds(found, shown, grid),
        *_unlike_exemplars(found),
    ]


def _outside_range(
    found: Mapping[int, Lesion], values: Mapping[int, float], shown: Sequence[float], unit: str
) -> list[str]:
    """Warn if a fifth or more of the found lesions lies outside the range of the exemplars."""
    low, high = min(shown), max(shown)
    if unit:
        low, high = low / SIZE_FACTOR, high * SIZE_FACTOR
    else:
        low, high = low - INTENSITY_MARGIN, high + INTENSITY_MARGIN
    warnings = []
    words = ("smaller", "larger") if unit else ("darker", "brighter")
    sides = ([n for n, value in values.items() if value < low], [n for n, value in values.items() if value > high])
    for word, outside in zip(words, sides, strict=True):
        if len(outside) >= max(1, 0.2 * len(found)) and (len(found) >= MIN_LESIONS or len(outside) == len(found)):
            extreme = (min if word in ("smaller", "darker") else max)(outside, key=lambda n: values[n])
            them = "every exemplar" if len(shown) > 1 else "the exemplar"
            warnings.append(
                f"{len(outside)} of {len(found)} found lesions are much {word} than {them} ({_range(shown, unit)}); "
                f"click lesion {extreme} or another like it."
            )
    return warnings


def _range(values: Sequence[float], unit: str) -> str:
    """Return the range of some values in words; a single number if both ends read the same."""
    ends = [f"{value:.0f}" if unit else f"{value:.2f}" for value in (min(values), max(values))]
    return " to ".join(dict.fromkeys(ends)) + (f" {unit}" if unit else "")


def _uncovered_thirds(found: Mapping[int, Lesion], shown: Sequence[Exemplar], grid: SliceGrid) -> list[str]:
    """Warn if a third of the scan's height holds a fifth or more of the found lesions, and no exemplar."""
    corners = torch.tensor([[0.0, 0.0, 0.0], [n - 1.0 for n in grid.stack_shape]], dtype=torch.float64)
    ends = grid.to_lps_mm(corners)[:, 2]
    low, high = float(ends.min()), float(ends.max())
    centres = grid.to_lps_mm(torch.tensor([each.mask.centre() for each in found.values()], dtype=torch.float64))[:, 2]

    def third(z: float) -> int:
        return min(2, max(0, int(3 * (z - low) / max(high - low, 1e-6))))

    count = np.bincount([third(z) for z in centres.tolist()], minlength=3)
    covered = {third(exemplar.position_lps_mm[2]) for exemplar in shown}
    return [
        f"{count[part]} of {len(found)} found lesions lie in the {name} third of the scan, where there is no exemplar; "
        "click a lesion there."
        for part, name in enumerate(("lower", "middle", "upper"))
        if part not in covered and len(found) >= MIN_LESIONS and count[part] >= 0.2 * len(found)
    ]


def _unlike_exemplars(found: Mapping[int, Lesion]) -> list[str]:
    """Warn if a fifth or more of the found lesions looks unlike every exemplar."""
    far = [number for number, lesion in found.items() if lesion.novelty > FAR_NOVELTY]
    if len(far) < max(1, 0.2 * len(found)) or len(found) < MIN_LESIONS:
        return []
    most = max(far, key=lambda number: found[number].novelty)
    return [
        f"{len(far)} of {len(found)} found lesions look unlike every exemplar; accept or reject lesion {most} "
        "or another of them."
    ]


@dataclass(frozen=True)
class JudgedLesion:
    """A lesion that the reader judged, on one tile.

    Attributes:
        key: Key of its exemplar.
        row: Row of the tile in the encoded scan.
        mask: Mask on the tile, (P, P) float, 0 or 1.
        negative: Whether the reader rejected the lesion.
    """

    key: str
    row: int
    mask: Tensor
    negative: bool


def lesions_on_tiles(encoded: EncodedVolume, masks: Mapping[str, tuple[BoxMask, bool]]) -> list[JudgedLesion]:
    """Return each judged lesion on the best tile of the slice on which it is largest.

    Args:
        encoded: The scan.
        masks: Exemplar key -> (mask, whether the lesion was rejected).
    """
    judged = []
    for key, (mask, negative) in masks.items():
        index = mask.largest_slice()
        if index < 0:
            continue
        outlined = outline(encoded, mask, index)
        rows, columns = torch.nonzero(outlined).float().mean(0).tolist()
        tile = encoded.tiles.best_tile(rows, columns)
        judged.append(JudgedLesion(key, encoded.row(index, tile), encoded.crop(outlined, tile), negative))
    return judged


def each_left_out(keys: Sequence[str], exemplars: Exemplars) -> dict[str, Exemplars]:
    """Return sets of exemplars: all of them under the key "", and all except one under the key of this exemplar."""
    sets = {"": exemplars}
    for left_out, key in enumerate(keys):
        rest = [n for n in range(len(keys)) if n != left_out]
        sets[key] = exemplars.pick(torch.tensor(rest, dtype=torch.long, device=exemplars.valid.device))
    return sets


@torch.inference_mode()
def influences(
    segmenter: VolumeSegmenter,
    encoded: EncodedVolume,
    judged: Sequence[JudgedLesion],
    exemplars: Mapping[str, Exemplars],
    bank: Mapping[str, Exemplar],
) -> list[Influence]:
    """Leave out one exemplar after the other, and measure how well the judged lesions are found.

    With `inference.rejections: vetoes`, the positive exemplars alone look for a lesion. It is not found at all if it is
    more like the rejected ones.

    Args:
        segmenter: The model.
        encoded: The scan.
        judged: Lesions of this scan that the reader judged.
        exemplars: Sets of exemplars (B = 1) as `each_left_out` returns them.
        bank: The exemplars by key.

    Returns:
        The influence of each exemplar, the most helpful first.
    """
    scores: dict[str, dict[str, float]] = {}
    sets = list(exemplars.values())
    vetoes = segmenter.settings.rejections == "vetoes"
    vetoed = [n for n, each in enumerate(sets) if vetoes and bool(each.positive.any() & each.present_negative.any())]
    compared = [sets[n].pick(_compared(sets[n])) for n in vetoed]
    changed = [each.sides_changed() for each in compared]
    asked = [each.pick(each.positive[0].nonzero()[:, 0]) if n in vetoed else each for n, each in enumerate(sets)]
    parts, counts = _in_parts(segmenter, [*asked, *compared, *changed]), [len(asked), len(compared), len(changed)]
    for lesion in judged:
        answers = [segmenter.ask(encoded, np.array([lesion.row]), part)[0] for part in parts]  # each (<= most, P, P)
        found, here, there = torch.split(torch.cat(answers), counts)
        if vetoed:
            margins = ((log_odds(here) - log_odds(there)) * lesion.mask).sum((1, 2))
            found[vetoed] *= (margins >= 0).float()[:, None, None]
        scores[lesion.key] = {
            key: _agreement(probability, lesion) for key, probability in zip(exemplars, found, strict=True)
        }
    measured = []
    for key in exemplars:
        if not key:
            continue
        effects = [score[""] - score[key] for other, score in scores.items() if other != key]
        mean = float(np.mean(effects)) if effects else None
        measured.append(Influence(key, bank[key].negative, mean))
    return sorted(measured, key=lambda each: -(each.effect if each.effect is not None else 0.0))


def first_vetoes(rejected: Rejected, positive: int) -> Rejected:
    """Return the rejected lesions that veto: the first ones, at most `MOST_VETOES` for each positive exemplar.

    Args:
        rejected: Their keys or their places, in the order in which they were rejected.
        positive: Number of positive exemplars.
    """
    return rejected[: MOST_VETOES * positive]


def _compared(exemplars: Exemplars) -> Tensor:
    """Return the places of the exemplars (B = 1) that are compared for a veto, the positive ones first."""
    positive, rejected = (sign[0].nonzero()[:, 0] for sign in (exemplars.positive, exemplars.present_negative))
    return torch.cat([positive, first_vetoes(rejected, len(positive))])


def _in_parts(segmenter: VolumeSegmenter, questions: Sequence[Exemplars]) -> list[Exemplars]:
    """Return prepared questions, so many at once as fit into memory. Merged, they could not be told apart."""
    prepared, most = segmenter.prepare(questions, merge=False), segmenter.settings.batch_size
    return [prepared.each(itemgetter(slice(start, start + most))) for start in range(0, len(questions), most)]


def _agreement(probability: Tensor, lesion: JudgedLesion) -> float:
    """Return the soft Dice in and around a lesion; for a rejected lesion, the share that is not found."""
    if lesion.negative:
        return 1 - float((probability * lesion.mask).sum() / lesion.mask.sum().clamp(min=1))
    near = torch.nn.functional.max_pool2d(lesion.mask[None, None], 9, stride=1, padding=4)[0, 0]
    found = probability * near
    return float(2 * (found * lesion.mask).sum() / (found.sum() + lesion.mask.sum()).clamp(min=1e-6))
