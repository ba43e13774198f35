"""Masks of a clicked lesion that are matched to the picture: to its look inside, close by and further away.

    candidates of the model -> each is matched to itself -> the one with the clearest border = the clicked slice

From there, `mois.inference.followed_lesions` follows the lesion.

A cell is 2 x 2 pixels. Axes: h, w cells of a tile; C channels; F answers of the filter bank.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from mois.clicks import NEGATIVE, POSITIVE
from mois.filters import FILTERS, filter_bank
from mois.inference.encoded_volume import EncodedVolume
from mois.lesions import Mask
from mois.records import MaskPrediction, Prompts

CELL_PX = 2
"""Pixels per cell, along each edge."""

TEMPERATURE = 0.2
"""Width of the kernel, as a mean squared difference of standardised filter answers."""

NEAR_CELLS, FAR_CELLS = 6, 18
"""How far the surroundings and the further tissue reach from a lesion, in cells."""

ZONE_WEIGHTS = (1.0, 0.7, 0.3)
"""Weight of the lesion, of its surroundings and of the further tissue."""

MOST_TOKENS = 200
"""Largest number of cells that describe a zone."""

SHARE = 0.5
"""Weight of the model's log-odds beside those of the look."""

LIMIT = 4.0
"""Largest log-odds of the model that count."""

BORDER_CELLS = 2
"""Width of the border inside and outside, where contrast is measured."""

FALL_WEIGHT = 0.3
"""Weight of how steeply the candidates fall at a border, beside the contrast there."""

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)
"""A cell touches its eight neighbours."""


class MaskRules(NamedTuple):
    """How far matched masks may leave what the model says.

    Attributes:
        rounds: How often a clicked mask is matched to itself.
        reach_cells: How far outside of its candidate a clicked mask may lie, in cells.
        asks_all: Whether all candidates together say which mask is taken: its contrast counts as much as the mask
            agrees with its candidate (Dice), and so does the fall of all candidates' log-odds at its border. Otherwise
            the contrast decides alone.
        most_growth: A lesion has ended if its area grows by a larger factor from slice to slice.
        follows_form: Whether a followed lesion may fade, and ends at a waist (`mois.inference.followed_lesions`).
        stays_near: Whether a followed lesion that may fade ends a few radii from its clicked slice, and whether a voxel
            that two followed lesions claim belongs to the one that was clicked nearer.
    """

    rounds: int
    reach_cells: float
    asks_all: bool
    most_growth: float
    follows_form: bool = False
    stays_near: bool = False


MATCHED = MaskRules(rounds=3, reach_cells=inf, asks_all=False, most_growth=1.5)
BOUNDED = MaskRules(rounds=2, reach_cells=2, asks_all=True, most_growth=2.0)
FOLLOWED = BOUNDED._replace(follows_form=True)
NEAR = FOLLOWED._replace(stays_near=True)
MASK_RULES = {"matched": MATCHED, "bounded": BOUNDED, "followed": FOLLOWED, "near": NEAR}
"""The rules of each `inference.clicks` that matches masks to the picture."""

_CLIPPED_AT = 5.0  # standard deviations
_OUTSIDE = -9.0  # log-odds of cells that are not asked
_SMALLEST = 1e-4  # probability
_DEVIATION = 1e-4
_VARIANCE = 1e-5
_SURE = 0.05  # log-odds that a cell has at least, with the sign of the mask
_Cells = Sequence[tuple[int, int]]  # rows and columns


class Picture(NamedTuple):
    """A tile as cells.

    Attributes:
        filters: (F, h, w) float32, F = 20 C; see `mois.filters`.
        shown: (h, w) bool, cells that lie in the picture of the slice. The others are padding.
    """

    filters: Tensor
    shown: Mask

    @classmethod
    def of(cls, encoded: EncodedVolume, row: int) -> Picture:
        """Filter a tile of a scan."""
        image = encoded.images(np.array([row]))[0]  # (P, P) or (C, P, P)
        filters = filter_bank(image.reshape(-1, 1, *image.shape[-2:])).flatten(0, 1)
        corner = encoded.corner(int(encoded.places[row][1]))
        height, width = (length - start for length, start in zip(encoded.pictures.shape[1:], corner, strict=True))
        shown = np.zeros(tuple(filters.shape[1:]), dtype=bool)
        shown[: ceil(height / CELL_PX), : ceil(width / CELL_PX)] = True
        return cls(filters, shown)


class Look:
    """How a lesion and its surroundings look on one slice: cells of three zones, with their filter answers.

    Args:
        picture: The tile.
        inside: (h, w) bool, the lesion.
    """

    def __init__(self, picture: Picture, inside: Mask) -> None:
        away = distance_of(~inside)
        zones = (inside, (away > 0) & (away <= NEAR_CELLS), (away > NEAR_CELLS) & (away <= FAR_CELLS))
        cells, weights, values = [], [], []
        for zone, weight in zip(zones, ZONE_WEIGHTS, strict=True):
            every = np.flatnonzero(zone & picture.shown)
            chosen = every[np.linspace(0, len(every) - 1, min(len(every), MOST_TOKENS)).astype(np.int64)]
            cells.append(chosen)
            weights.append(np.full(len(chosen), weight / max(len(chosen), 1), dtype=np.float32))
            values.append(np.full(len(chosen), float(zone is inside), dtype=np.float32))
        tokens = picture.filters.flatten(1)[:, torch.from_numpy(np.concatenate(cells))].T  # (L, F)
        share = torch.from_numpy(np.concatenate(weights))
        share = share / share.sum()
        self._mean = (share.unsqueeze(1) * tokens).sum(0)
        variance = (share.unsqueeze(1) * (tokens - self._mean).square()).sum(0)
        self._scale = (TEMPERATURE * len(self._mean)) ** 0.5 * (variance + _DEVIATION**2).sqrt()
        self._keys, self._log_share = self._standardise(tokens), share.log()
        self._values = torch.from_numpy(np.concatenate(values))

    def log_odds(self, picture: Picture, where: Mask) -> Tensor:
        """Return the log-odds (h, w) that a cell looks like the lesion; very low where it is not asked."""
        at = torch.from_numpy(np.flatnonzero(where & picture.shown))
        asked = self._standardise(picture.filters.flatten(1)[:, at].T)
        distance = torch.cdist(asked, self._keys).square()  # (n, L)
        share: Tensor = (self._log_share - distance).softmax(1) @ self._values
        out = torch.full((where.size,), _OUTSIDE)
        out[at] = torch.logit(share.clamp(_SMALLEST, 1 - _SMALLEST))
        return out.view(where.shape)

    def _standardise(self, features: Tensor) -> Tensor:
        reach = _CLIPPED_AT / (TEMPERATURE * len(self._mean)) ** 0.5
        standard: Tensor = (features - self._mean) / self._scale
        return standard.clamp(-reach, reach)


class MatchedMask(NamedTuple):
    """A mask that is matched to the picture.

    Attributes:
        logits: (h, w) float32, above 0 inside and below 0 outside.
        inside: (h, w) bool.
        contrast: (C,) contrast of the border in each channel, above 0 for a bright lesion.
    """

    logits: Tensor
    inside: Mask
    contrast: Tensor

    @classmethod
    def of(cls, picture: Picture, logits: Tensor, inside: Mask) -> MatchedMask:
        """Measure a mask, and give all its cells logits of the right sign."""
        mask = torch.from_numpy(inside)
        signed = torch.where(mask, logits.clamp(min=_SURE), logits.clamp(max=-_SURE))
        return cls(signed, inside, border_contrast(picture, inside))


def match_answer(
    encoded: EncodedVolume,
    rows: npt.NDArray[np.int64],
    prompts: Prompts,
    answer: MaskPrediction,
    rules: MaskRules | None = MATCHED,
) -> MaskPrediction:
    """Match the answers to clicks to the picture.

    Args:
        encoded: The scan.
        rows: (N,) rows of the clicked tiles.
        prompts: The clicks, in pixels of the tile. Where no click is positive or a box is given, the answer stays.
        answer: The answer of the model.
        rules: How far masks may leave what the model says; None returns the answer as it is.

    Returns:
        The answer with logits (N, P / 2, P / 2); all else is that of the model.
    """
    if rules is None:
        return answer
    logits = by_cell(answer.logits, encoded.tile_px)
    cells = (prompts.points // CELL_PX).long().clamp(0, encoded.tile_px // CELL_PX - 1)
    for n, (at, labels) in enumerate(zip(cells.tolist(), prompts.labels.tolist(), strict=True)):
        inside_at, outside_at = (
            [(row, column) for (column, row), label in zip(at, labels, strict=True) if label == sign]
            for sign in (POSITIVE, NEGATIVE)
        )
        if inside_at and max(labels) == POSITIVE:
            picture = Picture.of(encoded, int(rows[n]))
            matched = match_clicked(picture, answer.candidates[n], inside_at, outside_at, rules)
            logits[n] = matched.logits.to(logits)
    return answer._replace(logits=logits)


def model_masks(answer: MaskPrediction) -> Tensor:
    """Return the candidates that the model thinks best, (N, P / 4, P / 4) logits. They describe exemplars."""
    row = torch.arange(len(answer.iou), device=answer.iou.device)
    return answer.candidates[row, answer.iou.argmax(1)]


def by_cell(logits: Tensor, tile_px: int) -> Tensor:
    """Return masks (N, any, any) as logits by cell, (N, P / 2, P / 2) float32."""
    size = (tile_px // CELL_PX, tile_px // CELL_PX)
    if tuple(logits.shape[1:]) == size:
        return logits.float()
    return functional.interpolate(logits.float().unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)


def for_model(logits: Tensor, tile_px: int) -> Tensor:
    """Return masks (..., P / 2, P / 2) or (..., P / 4, P / 4) as the model takes them, (..., P / 4, P / 4)."""
    times = logits.shape[-1] // (tile_px // 4)
    return logits if times <= 1 else functional.avg_pool2d(logits, times)


def match_clicked(
    picture: Picture, candidates: Tensor, inside_at: _Cells, outside_at: _Cells, rules: MaskRules = MATCHED
) -> MatchedMask:
    """Match each candidate to itself, and return the one whose border is the clearest.

    What a candidate holds describes the lesion, what lies around it describes the rest; then all cells close by are
    asked again. After a few rounds, a mask that is roughly right ends where the picture changes.

    Args:
        picture: The tile.
        candidates: (M, any, any), masks of the model as logits.
        inside_at: Row and column of cells that the reader clicked as inside; at least one.
        outside_at: Row and column of cells that the reader clicked as outside.
        rules: How far a mask may leave its candidate, and what makes a border clear.
    """
    priors = priors_of(candidates, picture)

    def worth(start: Mask, mask: MatchedMask) -> float:
        contrast = float(mask.contrast.norm())
        if not rules.asks_all:
            return contrast
        agreement = 2 * int((start & mask.inside).sum()) / max(int(start.sum()) + int(mask.inside.sum()), 1)
        return contrast * agreement + FALL_WEIGHT * _fall(priors, picture, mask.inside)

    matched = [_match(picture, prior, inside_at, outside_at, rules) for prior in priors]
    return max(matched, key=lambda each: worth(*each))[1]


def _match(
    picture: Picture, prior: Tensor, inside_at: _Cells, outside_at: _Cells, rules: MaskRules
) -> tuple[Mask, MatchedMask]:
    """Match one candidate (h, w) to itself. Return its clicked parts before and after."""
    logits = prior
    start = inside = _clicked_parts(logits, picture, inside_at, outside_at)
    within_reach = distance_of(~start) <= rules.reach_cells
    for _ in range(rules.rounds):
        close = within_reach & (distance_of(~inside) <= NEAR_CELLS)
        logits = Look(picture, inside).log_odds(picture, close) + SHARE * prior
        inside = _clicked_parts(logits, picture, inside_at, outside_at)
    return start, MatchedMask.of(picture, logits, inside)


def border_contrast(picture: Picture, inside: Mask) -> Tensor:
    """Return how far intensities inside and outside of a border differ, (C,), in standard deviations.

    Source: Fisher, The use of multiple measurements in taxonomic problems, 1936 (distance of two groups).
    """
    within, around = _border(picture, inside)
    intensity = picture.filters[::FILTERS]  # the finest smoothed intensity of each channel
    if not within.any() or not around.any():
        return torch.zeros(len(intensity))
    first, second = (intensity[:, torch.from_numpy(part)] for part in (within, around))
    spread = first.var(1, unbiased=False) + second.var(1, unbiased=False) + _VARIANCE
    return (first.mean(1) - second.mean(1)) / spread.sqrt()


def _border(picture: Picture, inside: Mask) -> tuple[Mask, Mask]:
    """Return the cells at a border, inside and outside of it."""
    within = inside & (distance_of(inside) <= BORDER_CELLS)
    away = distance_of(~inside)
    return within, (away > 0) & (away <= BORDER_CELLS) & picture.shown


def _fall(priors: Tensor, picture: Picture, inside: Mask) -> float:
    """Return how far candidates (M, h, w) fall from inside to outside of a border, in log-odds, on average."""
    within, around = _border(picture, inside)
    if not within.any() or not around.any():
        return 0.0
    return float((priors[:, torch.from_numpy(within)].mean(1) - priors[:, torch.from_numpy(around)].mean(1)).mean())


def priors_of(candidates: Tensor, picture: Picture) -> Tensor:
    """Return the model's masks by cell, (M, h, w) logits within the limit."""
    return by_cell(candidates.cpu(), CELL_PX * len(picture.shown)).clamp(-LIMIT, LIMIT)


def _clicked_parts(logits: Tensor, picture: Picture, inside_at: _Cells, outside_at: _Cells) -> Mask:
    """Return the parts of a mask that were clicked; for a click beside the mask, the nearest part. Clicks win."""
    mask = (logits > 0).numpy() & picture.shown
    for cell in outside_at:
        mask[cell] = False
    parts, count = ndimage.label(mask, EIGHT_NEIGHBOURS)
    kept = np.zeros(count + 1, dtype=bool)
    if count:
        nearest = ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
        for cell in inside_at:
            kept[parts[tuple(nearest[(slice(None), *cell)])]] = True
    clicked: Mask = kept[parts]
    for cell in inside_at:
        clicked[cell] = True
    return clicked


def distance_of(where: Mask) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return the distance of each cell to the nearest cell outside of `where`, in cells."""
    return np.asarray(ndimage.distance_transform_edt(where))
