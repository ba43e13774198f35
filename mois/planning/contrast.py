"""How much the lesions of a scan stand out in a channel."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from mois.records import Volume

RING_VOXELS = 3
"""Width of the tissue around lesions that they are compared with, in voxels."""


def lesion_contrast(volume: Volume) -> float:
    """Return the contrast of the lesions of a scan: the mean over its classes, 0 without lesions.

    Of each class, the mean intensity of its voxels is compared with that of the tissue around, in units of the
    standard deviation of both: 0 for lesions that cannot be seen, about 2 and more for lesions that stand out.

    Args:
        volume: The scan, with the channel in `image` and the lesions.
    """
    image, lesions = volume.image.numpy(), volume.lesions.numpy()
    lesion_free = lesions == 0
    contrasts = []
    for number in sorted(set(volume.classes.values())):
        ids = [lesion for lesion, kind in volume.classes.items() if kind == number]
        mask = np.isin(lesions, ids)
        ring = ndimage.binary_dilation(mask, iterations=RING_VOXELS) & lesion_free
        if not mask.any() or not ring.any():
            continue
        inside, around = image[mask], image[ring]
        deviation = np.sqrt((inside.var(dtype=np.float64) + around.var(dtype=np.float64)) / 2)
        difference = abs(inside.mean(dtype=np.float64) - around.mean(dtype=np.float64))
        contrasts.append(float(difference / max(deviation, 1e-9)))
    return float(np.mean(contrasts)) if contrasts else 0.0
