"""The level of a scan: the probability from which a voxel is rather a lesion than not, for some exemplars."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.records import Exemplars

if TYPE_CHECKING:
    from mois.inference.encoded_volume import EncodedVolume
    from mois.inference.segmenter import VolumeSegmenter

EVEN = 0.5
"""The level if nothing is known of the scan. No level is higher."""

LEVELS = tuple(step / 20 for step in range(2, 11))
"""Levels that are tried: 0.1, 0.15, ... 0.5."""

LONE_LEVEL = 0.35
"""The level with a single exemplar: no other one can find it."""

MOST_LESIONS = 16
"""Lesions that are left out in turn."""


class Outlined(NamedTuple):
    """N lesions of a scan that the reader outlined, and that are exemplars.

    Attributes:
        own: (N,) place of each lesion's exemplar among the exemplars.
        rows: (N,) row of the tile on which it was outlined.
        masks: (N, P, P) its mask there, 0 to 1.
    """

    own: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    masks: Tensor


def level_of(
    segmenter: VolumeSegmenter, encoded: EncodedVolume, exemplars: Exemplars, lesions: Outlined, probability: Tensor
) -> float:
    """Return the level of a scan for some exemplars.

    Each lesion is left out in turn, and the other exemplars look for it. At each level they find a share of the lesion
    (the recall) and a share of the scan. The level is the one with the largest recall x recall / share of the scan,
    which rises and falls with F1. So a body with few lesions gets a high level, and a dish full of nuclei a low one.

    Args:
        segmenter: The model. With `inference.level=fixed` the level is 0.5.
        encoded: The scan.
        exemplars: The exemplars of the question, B = 1.
        lesions: Positive exemplars of this scan.
        probability: (S, H, W), the answer to all exemplars.

    Source: Lee and Liu, Learning with positive and unlabeled examples using weighted logistic regression, ICML 2003.
    """
    if segmenter.settings.level == "fixed" or not len(lesions.own):
        return EVEN
    positive = int((exemplars.present & ~exemplars.negative).sum())
    if positive < 2:
        return LONE_LEVEL if positive else EVEN  # without any, it is the answer to no exemplars
    levels = torch.tensor(LEVELS)
    recall = _recall_without_own(segmenter, encoded, exemplars, lesions, levels)
    shown = probability[probability > 0]
    if not len(shown):
        return EVEN
    worth = recall.square() / _share_above(shown, levels).clamp(min=1 / len(shown))
    return LEVELS[int(worth.argmax())] if bool((worth > 0).any()) else EVEN


def shifted(probability: Tensor, level: float) -> Tensor:
    """Shift the log-odds of probabilities, so that `level` becomes 0.5.

    Examples:
        >>> shifted(torch.tensor([0.0, 0.25, 0.5, 1.0]), 0.25).tolist()
        [0.0, 0.5, 0.75, 1.0]
    """
    there = probability.float() * (1 - level)
    return (there / (there + (1 - probability.float()) * level)).to(probability.dtype)


@torch.inference_mode()
def _recall_without_own(
    segmenter: VolumeSegmenter, encoded: EncodedVolume, exemplars: Exemplars, lesions: Outlined, levels: Tensor
) -> Tensor:
    """Return the share of each lesion that the other exemplars find at each level, as the mean over lesions."""
    prepared = segmenter.prepare([exemplars], merge=False)
    found = []
    for own, row, mask in list(zip(*lesions, strict=True))[:MOST_LESIONS]:
        inside = mask.cpu() > 0.5
        if bool(inside.any()):
            others = prepared.valid.clone()
            others[0, own] = False
            answer = segmenter.ask(encoded, np.array([row]), prepared.map(valid=others))[0, 0]
            found.append(_share_above(answer[inside], levels))
    return torch.stack(found).mean(0) if found else torch.zeros(len(levels))


def _share_above(values: Tensor, levels: Tensor) -> Tensor:
    """Return the share of values (n,) that reach each level."""
    return torch.stack([(values >= level).float().mean() for level in levels])
