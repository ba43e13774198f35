"""What a session can tell the reader: what to click next, what the exemplars do not cover, which of them help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from mois.geometry import SliceGrid
from mois.inference.encoded_volume import EncodedVolume
from mois.inference.segmenter import VolumeSegmenter
from mois.records import Exemplars
from mois.session.found_lesions import outline
from mois.session.masks import BoxMask
from mois.session.state import Lesion, State
from mois.sharing.bank import Exemplar

FEW = 5
"""From how many lesions on a share of them says something."""
SIZE_FACTOR = 3.0
INTENSITY_MARGIN = 0.1
FAR = 2.0


@dataclass(frozen=True)
class Suggestion:
    """A place to look at.

    Attributes:
        point_lps_mm: Where to click.
        lesion: Id of the found lesion, or None where it was not sure enough to be one.
        benefit: 0 to 1, higher first.
        reason: For the reader.
    """

    point_lps_mm: tuple[float, float, float]
    lesion: int | None
    benefit: float
    reason: str


@dataclass(frozen=True)
class Influence:
    """What an exemplar does.

    Attributes:
        key: Of the exemplar.
        negative: Whether it shows what is not to be found.
        effect: By how much the known lesions other than its own are segmented better with it than without it: mean
            difference of the soft Dice (of what was rejected: of the share left alone). Above 0 it helps, below 0 it
            harms. None where there is no other known lesion.
    """

    key: str
    negative: bool
    effect: float | None


def suggestions(state: State, grid: SliceGrid, voxel_ml: float, count: int) -> list[Suggestion]:
    """Return the lesions whose click would teach most: unsure, unlike the exemplars, and large.

    The benefit is the product of doubt (1 at a confidence of 1/2, 0 at 0 and at 1; at least 0.05) and of novelty (1 at
    the mean distance between exemplars), times a size that saturates at 1 ml.
    """
    found: list[Suggestion] = []
    for number, lesion in state.lesions.items():
        if lesion.origin == "prompted" or lesion.locked or not lesion.mask.voxels:
            continue
        doubt = max(0.05, 1 - abs(2 * lesion.confidence - 1))
        novelty = min(2.0, 0.5 + lesion.novelty) / 2
        reason = (
            f"found with confidence {lesion.confidence:.2f}; {lesion.novelty:.1f} times as far from its nearest "
            f"exemplar ({lesion.explained_by or 'there is none'}) as exemplars are from each other; "
            f"{lesion.mask.voxels * voxel_ml:.2f} ml"
        )
        benefit = doubt * novelty * _weight(lesion.mask.voxels * voxel_ml)
        found.append(Suggestion(_lps(grid, inner_voxel(lesion.mask)), number, benefit, reason))
    for maybe in state.maybes:
        reason = f"missed by little: the probability is {maybe.peak:.2f} at most; {maybe.voxels * voxel_ml:.2f} ml"
        benefit = maybe.peak * 0.75 * _weight(maybe.voxels * voxel_ml)
        found.append(Suggestion(_lps(grid, maybe.point), None, benefit, reason))
    found.sort(key=lambda each: -each.benefit)
    return found[:count]


def _weight(volume_ml: float) -> float:
    return 0.25 + 0.75 * min(1.0, volume_ml)


def inner_voxel(mask: BoxMask) -> tuple[int, int, int]:
    """Return a voxel deep inside a lesion on its largest slice, as slice, row and column."""
    from scipy import ndimage

    index = mask.largest_slice()
    depth = ndimage.distance_transform_edt(np.pad(mask.inside[index - mask.corner[0]], 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return index, int(row) + mask.corner[1], int(column) + mask.corner[2]


def _lps(grid: SliceGrid, index: tuple[int, int, int]) -> tuple[float, float, float]:
    x, y, z = grid.to_lps_mm(torch.tensor([index], dtype=torch.float64))[0].tolist()
    return x, y, z


def coverage_warnings(state: State, grid: SliceGrid) -> list[str]:
    """Say where the exemplars do not represent what was found: in size, place and looks."""
    shown = [exemplar for exemplar in state.exemplars.values() if not exemplar.negative and exemplar.weight > 0]
    found = {number: lesion for number, lesion in state.lesions.items() if lesion.origin == "found"}
    if not found:
        return []
    if not shown:
        return [f"{len(found)} lesions were found without any exemplar; click a few that are typical."]
    areas = {number: each.area_mm2 for number, each in found.items()}
    means = {number: each.mean_intensity for number, each in found.items()}
    return [
        *_unlike_in(found, areas, [exemplar.area_mm2 for exemplar in shown], "mm2"),
        *_unlike_in(found, means, [exemplar.mean_intensity for exemplar in shown], ""),
        *_elsewhere(found, shown, grid),
        *_strange(found),
    ]


def _unlike_in(
    found: Mapping[int, Lesion], values: Mapping[int, float], shown: Sequence[float], unit: str
) -> list[str]:
    """Warn where a fifth or more of the lesions lies outside the exemplars' range."""
    low, high = min(shown), max(shown)
    if unit:
        low, high = low / SIZE_FACTOR, high * SIZE_FACTOR
    else:
        low, high = low - INTENSITY_MARGIN, high + INTENSITY_MARGIN
    warnings = []
    words = ("smaller", "larger") if unit else ("darker", "brighter")
    sides = ([n for n, value in values.items() if value < low], [n for n, value in values.items() if value > high])
    for word, outside in zip(words, sides, strict=True):
        if len(outside) >= max(1, 0.2 * len(found)) and (len(found) >= FEW or len(outside) == len(found)):
            extreme = (min if word in ("smaller", "darker") else max)(outside, key=lambda n: values[n])
            measured = f"{min(shown):.0f} to {max(shown):.0f} mm2" if unit else f"{min(shown):.2f} to {max(shown):.2f}"
            warnings.append(
                f"{len(outside)} of {len(found)} found lesions are much {word} than every exemplar ({measured}); "
                f"click lesion {extreme} or another like it."
            )
    return warnings


def _elsewhere(found: Mapping[int, Lesion], shown: Sequence[Exemplar], grid: SliceGrid) -> list[str]:
    """Warn where a third of the body's height holds a fifth of the lesions and no exemplar."""
    corners = torch.tensor([[0.0, 0.0, 0.0], [n - 1.0 for n in grid.stack_shape]], dtype=torch.float64)
    ends = grid.to_lps_mm(corners)[:, 2]
    low, high = float(ends.min()), float(ends.max())
    centres = grid.to_lps_mm(torch.tensor([each.mask.centre() for each in found.values()], dtype=torch.float64))[:, 2]

    def third(z: float) -> int:
        return min(2, max(0, int(3 * (z - low) / max(high - low, 1e-6))))

    there = np.bincount([third(z) for z in centres.tolist()], minlength=3)
    covered = {third(exemplar.position_lps_mm[2]) for exemplar in shown}
    return [
        f"{there[part]} of {len(found)} found lesions lie in the {name} third of the scan, where there is no exemplar; "
        "click one there."
        for part, name in enumerate(("lower", "middle", "upper"))
        if part not in covered and len(found) >= FEW and there[part] >= 0.2 * len(found)
    ]


def _strange(found: Mapping[int, Lesion]) -> list[str]:
    far = [number for number, lesion in found.items() if lesion.novelty > FAR]
    if len(far) < max(1, 0.2 * len(found)) or len(found) < FEW:
        return []
    most = max(far, key=lambda number: found[number].novelty)
    return [
        f"{len(far)} of {len(found)} found lesions look unlike every exemplar; accept or reject lesion {most} "
        "or another of them."
    ]


@dataclass(frozen=True)
class Known:
    """A lesion whose verdict is known, on one tile.

    Attributes:
        key: Of its exemplar.
        row: Of the tile.
        mask: (P, P) float 0 or 1.
        negative: Whether it was rejected.
    """

    key: str
    row: int
    mask: Tensor
    negative: bool


def lesions_on_tiles(encoded: EncodedVolume, masks: Mapping[str, tuple[BoxMask, bool]]) -> list[Known]:
    """Return each lesion on the tile around its largest slice; `masks` tells whether a lesion was rejected."""
    known = []
    for key, (mask, negative) in masks.items():
        index = mask.largest_slice()
        if index < 0:
            continue
        shown = outline(encoded, mask, index)
        rows, columns = torch.nonzero(shown).float().mean(0).tolist()
        tile = encoded.tiles.best_tile(rows, columns)
        known.append(Known(key, encoded.row(index, tile), encoded.crop(shown, tile), negative))
    return known


def each_left_out(keys: Sequence[str], exemplars: Exemplars) -> dict[str, Exemplars]:
    """Return all exemplars under the key "", and all but one under the key of that one."""
    sets = {"": exemplars}
    for place, key in enumerate(keys):
        rest = [n for n in range(len(keys)) if n != place]
        sets[key] = exemplars.pick(torch.tensor(rest, dtype=torch.long, device=exemplars.valid.device))
    return sets


@torch.inference_mode()
def influences(
    segmenter: VolumeSegmenter,
    encoded: EncodedVolume,
    known: Sequence[Known],
    exemplars: Mapping[str, Exemplars],
    bank: Mapping[str, Exemplar],
) -> list[Influence]:
    """Leave out one exemplar after the other, and see what becomes of the known lesions.

    Args:
        segmenter: The model.
        encoded: The scan.
        known: Lesions of this scan with their verdict.
        exemplars: "" to all exemplars that are in use, and each of their keys to all but that one; B = 1.
        bank: The exemplars by key.
    """
    scores: dict[str, dict[str, float]] = {}
    asked = segmenter.prepare(list(exemplars.values()), merge=False)  # what one of them does is asked for
    most = segmenter.settings.batch_size  # at once: hundreds would not fit into memory
    parts = [asked.each(itemgetter(slice(start, start + most))) for start in range(0, len(exemplars), most)]
    for lesion in known:
        answers = [segmenter.ask(encoded, np.array([lesion.row]), part)[0] for part in parts]  # each (<= most, P, P)
        scores[lesion.key] = {
            key: _agreement(probability, lesion) for key, probability in zip(exemplars, torch.cat(answers), strict=True)
        }
    found = []
    for key in exemplars:
        if not key:
            continue
        effects = [score[""] - score[key] for other, score in scores.items() if other != key]
        mean = float(np.mean(effects)) if effects else None
        found.append(Influence(key, bank[key].negative, mean))
    return sorted(found, key=lambda each: -(each.effect if each.effect is not None else 0.0))


def _agreement(probability: Tensor, lesion: Known) -> float:
    """Return the soft Dice in and around a lesion, or the share of a rejected one that is left alone."""
    if lesion.negative:
        return 1 - float((probability * lesion.mask).sum() / lesion.mask.sum().clamp(min=1))
    near = torch.nn.functional.max_pool2d(lesion.mask[None, None], 9, stride=1, padding=4)[0, 0]
    shown = probability * near
    return float(2 * (shown * lesion.mask).sum() / (shown.sum() + lesion.mask.sum()).clamp(min=1e-6))
