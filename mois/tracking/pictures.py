"""Pictures that loggers record: a slice with masks of each class, and a sheet of small pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""Picture (H, W, 3), RGB."""

COLOURS: tuple[tuple[int, int, int], ...] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
)
"""Colours of the classes, of the palette of Okabe and Ito; class 1 has the first."""
_OPACITY = 0.5
_COLUMNS = 8
_GAP_PX = 2


@dataclass(frozen=True)
class MaskedPicture:
    """A slice with one or more masks of classes.

    Attributes:
        pixels: The slice, (H, W, 3).
        masks: Name, such as "truth", to the class of each pixel, (H, W) uint8; 0 is background.
        classes: Class to its name.
    """

    pixels: Pixels
    masks: Mapping[str, npt.NDArray[np.uint8]]
    classes: Mapping[int, str] = field(default_factory=dict)

    def side_by_side(self) -> Pixels:
        """Return the slice, and the slice under each mask, in one row."""
        return np.concatenate([self.pixels, *(self._coloured(mask) for mask in self.masks.values())], axis=1)

    def _coloured(self, mask: npt.NDArray[np.uint8]) -> Pixels:
        pixels = self.pixels.astype(np.float32)
        for target_class in np.unique(mask[mask > 0]).tolist():
            colour = np.array(COLOURS[(target_class - 1) % len(COLOURS)], np.float32)
            where = mask == target_class
            pixels[where] = (1 - _OPACITY) * pixels[where] + _OPACITY * colour
        return pixels.round().astype(np.uint8)


def sheet(pictures: Sequence[Pixels]) -> Pixels:
    """Return small pictures in rows of eight on one sheet, in reading order, with a gap between them."""
    height, width = (max(picture.shape[axis] for picture in pictures) + _GAP_PX for axis in (0, 1))
    columns = min(_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    page = np.zeros((rows * height, columns * width, 3), np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * height, number % columns * width
        page[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return page
