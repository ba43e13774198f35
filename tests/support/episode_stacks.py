"""A hand-made stack in which every pixel says where it comes from, and episodes of it.

Tissue of slice s is 0.5 + s / 100; lesion i of class 1 is 1 + i / 100, of class 2 it is 1.5 + i / 100.
"""

from __future__ import annotations

import numpy as np
import torch

from datamodules.episodes import EpisodeDataset, EpisodeMix, EpisodeSettings
from datamodules.subjects import prepare_stack
from datamodules.transforms import Augmentation

PATCH = 32


def stack(places, shape=(8, 64, 80), name="s"):
    """places: (lesion, class, slice, row, column, edge)."""
    image = (0.5 + torch.arange(shape[0]) / 100).view(-1, 1, 1).expand(shape).clone()
    lesions = torch.zeros(shape, dtype=torch.int32)
    classes = {}
    for lesion, kind, slice_, row, column, edge in places:
        area = (slice_, slice(row, row + edge), slice(column, column + edge))
        lesions[area], image[area], classes[lesion] = lesion, 0.5 + kind / 2 + lesion / 100, kind
    return prepare_stack(image, lesions, classes, None, (name, name), (1.0, 5.0), PATCH)


# three lesions on every slice, 16 rows apart, of both classes
TWO_CLASSES = [(i + 1, 1 + (i + i // 8) % 2, i % 8, 8 + 16 * (i // 8), 8 + 24 * (i % 8 % 3), 5) for i in range(24)]
ONE_CLASS = [(i, 1, s, r, c, e) for i, _, s, r, c, e in TWO_CLASSES]


def painter(rng):
    """Foreign lesions are squares of 0.9."""

    def paint(image, centre, volume_ml, spacing_mm, rng):
        mask = np.zeros(image.shape, bool)
        row, column = int(centre[1]), int(centre[2])
        mask[:, row : row + 3, column : column + 3] = True
        mask &= image > 0
        image[mask] = 0.9
        return mask

    return paint


def episodes(places, mix=None, count=40, settings=None, shape=(8, 64, 80), paint=painter):
    settings = settings or EpisodeSettings(PATCH, 3, 3, mix or EpisodeMix(), Augmentation.none())
    dataset = EpisodeDataset([stack(places, shape)], settings, 1, paint)
    return [dataset[(0, index)] for index in range(count)]
