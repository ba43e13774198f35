"""A clicked lesion that is followed from slice to slice by its look, until it ends.

    clicked slice -> look of the lesion -> next slice: look + candidates of the model -> ... until the lesion ends

With `MaskRules.follows_form`, a lesion may fade, as in blurred slices above and below it, and it ends at a waist, where
another lesion touches it from above or below. With `MaskRules.stays_near`, such a lesion ends a few radii from its
clicked slice. A cell is 2 x 2 pixels. Axes: h, w cells of a tile; C channels.
"""

from __future__ import annotations

from math import ceil, pi
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from mois.filters import FILTERS, SIGMAS_PX
from mois.inference.matched_masks import (
    EIGHT_NEIGHBOURS,
    LIMIT,
    MATCHED,
    SHARE,
    Look,
    MaskRules,
    MatchedMask,
    Picture,
    border_contrast,
    distance_of,
    priors_of,
)
from mois.inference.parting import waist_of
from mois.lesions import Mask

LEAST_CONTRAST = 0.5
"""A lesion has ended if its border has less than this share of the contrast on the clicked slice."""

LEAST_OVERLAP = 0.3
"""A lesion has ended if less of the smaller of two neighbouring masks lies in the larger one."""

FREE_CELLS = 4
"""Cells that do not count where an area grows from slice to slice."""

WAIST = 0.7
"""A waist may lie where the area is at most this share of the largest area before."""

RISE = 1.25
"""Behind a waist the area grows by more than this factor."""

FADING_GAP = 0.5
"""A lesion may fade where slices are thinner than this share of its radius."""

LEAST_STEP = 0.5
"""A lesion that fades keeps this share of its contrast from slice to slice; else it ends there."""

CLEAR = 0.8
"""A lesion that fades has this share of the border's contrast on the clicked slice, in standard deviations."""

MOST_GAIN = 3.0
"""Largest factor by which a faded slice is brightened."""

MOST_RADII = 3.0
"""A lesion that may fade ends so many radii from its clicked slice; the radius of a disc with its largest area."""

AROUND_CELLS = (1, 4)
"""Where intensities around a lesion are measured: further away than the first, up to the second, in cells."""

_SMALLEST = 1e-6
_SMALLEST_CONTRAST = 1e-4


class FollowedLesion:
    """A lesion that is followed from its clicked slice, in one direction.

    Args:
        picture: The tile on the clicked slice.
        logits: (h, w), the lesion there.
        gap_cells: Distance of two slices in cells. The lesion's border may move as far, rounded up.
        rules: How fast it may grow, whether it may fade and ends at a waist, and whether it stays near.
    """

    def __init__(self, picture: Picture, logits: Tensor, gap_cells: float, rules: MaskRules = MATCHED) -> None:
        self._latest: Mask = (logits > 0).numpy() & picture.shown
        self._latest_picture = picture
        self._look = Look(picture, self._latest)
        self._contrast = border_contrast(picture, self._latest)
        self._reach_cells, self._most_growth = max(1, ceil(gap_cells)), rules.most_growth
        self._levels = _Levels.of(picture, self._latest)
        radius_cells = float(distance_of(np.pad(self._latest, 1)).max())
        self._may_fade = rules.follows_form and gap_cells <= FADING_GAP * radius_cells
        self._has_waist = rules.follows_form and waist_of(self._latest[None], 1.0, (gap_cells, 1.0, 1.0)) > 0
        self._largest = self._smallest_since = int(self._latest.sum())
        self._stays_near = rules.stays_near and self._may_fade
        self._gap_cells, self._away_cells = gap_cells, 0.0

    def follow(self, picture: Picture, candidates: Tensor) -> Tensor | None:
        """Return the lesion on the next slice, (h, w) logits; None if it has ended.

        Args:
            picture: The tile on the next slice.
            candidates: (M, any, any), masks of the model as logits. The one that gives the clearest border is taken.
        """
        close = ndimage.binary_dilation(self._latest, EIGHT_NEIGHBOURS, iterations=self._reach_cells) & picture.shown
        priors = priors_of(candidates, picture)
        best = self._faded(picture, priors, close) or self._matched(picture, picture, priors, close)
        area = int(best.inside.sum())
        self._away_cells += self._gap_cells
        if area > self._largest:
            self._largest = self._smallest_since = area
        if self._has_ended(best) or (self._has_waist and self._is_behind_waist(area)) or self._is_far():
            return None
        self._latest, self._latest_picture = best.inside, picture
        return torch.where(torch.from_numpy(close), best.logits, torch.tensor(-LIMIT))

    def _matched(self, picture: Picture, seen: Picture, priors: Tensor, close: Mask) -> MatchedMask:
        """Match candidates (M, h, w) to the look of the lesion on a slice as it is seen. Return the clearest."""
        look = self._look.log_odds(seen, close)
        matched = []
        for prior in priors:
            logits = look + SHARE * prior
            matched.append(MatchedMask.of(picture, logits, _touching((logits > 0).numpy() & close, self._latest)))
        return max(matched, key=lambda mask: self._contrast_share(mask.contrast))

    def _faded(self, picture: Picture, priors: Tensor, close: Mask) -> MatchedMask | None:
        """Return the lesion on the next slice if it fades there; None if it does not. It does not grow meanwhile."""
        if not self._may_fade or self._contrast_share(border_contrast(picture, self._latest)) < CLEAR:
            return None
        before, now = _Levels.of(self._latest_picture, self._latest), _Levels.of(picture, self._latest)
        if _share(now.contrast, before.contrast, _SMALLEST) < LEAST_STEP:
            return None
        gain = _gain(now, self._levels)
        if gain.max() <= 1:
            return None
        mask = self._matched(picture, _brightened(picture, gain, now, self._levels), priors, close)
        grows = mask.inside.sum() > self._latest.sum() + FREE_CELLS
        return None if grows or self._has_ended(mask) else mask

    def _contrast_share(self, contrast: Tensor) -> float:
        """Return a contrast (C,) as a share of that on the clicked slice."""
        return _share(contrast, self._contrast, _SMALLEST_CONTRAST)

    def _has_ended(self, mask: MatchedMask) -> bool:
        area, before = int(mask.inside.sum()), int(self._latest.sum())
        if not area or area > self._most_growth * before + FREE_CELLS:
            return True
        if self._contrast_share(mask.contrast) < LEAST_CONTRAST:
            return True
        return int((mask.inside & self._latest).sum()) < LEAST_OVERLAP * min(area, before)

    def _is_far(self) -> bool:
        """Return whether the slice lies further from the clicked slice than such a lesion reaches."""
        return self._stays_near and self._away_cells > MOST_RADII * (self._largest / pi) ** 0.5

    def _is_behind_waist(self, area: int) -> bool:
        """Return whether the area grows again after it had become small: another lesion begins there."""
        self._smallest_since = min(self._smallest_since, area)
        grows = area > RISE * self._smallest_since + FREE_CELLS
        return grows and self._smallest_since <= WAIST * self._largest


class _Levels(NamedTuple):
    """Mean intensity inside a mask and around it, (C,) each."""

    inside: Tensor
    around: Tensor

    @classmethod
    def of(cls, picture: Picture, inside: Mask) -> _Levels:
        """Measure a mask; 0 where it has no cells."""
        away = distance_of(~inside)
        ring = (away > AROUND_CELLS[0]) & (away <= AROUND_CELLS[1]) & picture.shown
        intensity = picture.filters[::FILTERS]  # the finest smoothed intensity of each channel
        return cls(*(intensity[:, torch.from_numpy(part)].mean(1).nan_to_num() for part in (inside, ring)))

    @property
    def contrast(self) -> Tensor:
        """Inside less around, (C,); 0 in all channels if one of them has no cells."""
        return self.inside - self.around


def _gain(now: _Levels, wanted: _Levels) -> Tensor:
    """Return by which factor each channel is stretched to a wanted contrast, (C,), at least 1."""
    same_sign = wanted.contrast * now.contrast > 0
    return torch.where(same_sign, wanted.contrast / now.contrast, 1.0).clamp(1.0, MOST_GAIN)


def _brightened(picture: Picture, gain: Tensor, now: _Levels, wanted: _Levels) -> Picture:
    """Return a picture with stretched intensities, so that the surroundings of the lesion have the wanted level.

    All filters are linear in the intensity, so their answers are stretched too; a shift counts for smoothed ones alone.
    """
    shift = torch.where(gain > 1, wanted.around - gain * now.around, 0.0)  # (C,)
    by_channel = picture.filters.reshape(len(gain), FILTERS, *picture.filters.shape[1:])  # (C, F / C, h, w)
    filters = by_channel * gain[:, None, None, None]
    filters[:, :: FILTERS // len(SIGMAS_PX)] += shift[:, None, None, None]
    return picture._replace(filters=filters.flatten(0, 1))


def _share(contrast: Tensor, of: Tensor, smallest: float) -> float:
    """Return how much of a contrast (C,) another one has, all channels together."""
    return float(contrast @ of / (of @ of).clamp(min=smallest))


def _touching(mask: Mask, before: Mask) -> Mask:
    """Return the parts of a mask that share cells with the mask before."""
    parts, count = ndimage.label(mask, EIGHT_NEIGHBOURS)
    kept = np.zeros(count + 1, dtype=bool)
    kept[parts[before & mask]] = True
    touching: Mask = kept[parts]
    return touching
