"""Lesion types of phantoms: a parametric family, from which any number of types can be drawn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np

INTENSITIES = ("very_dark", "dark", "bright", "very_bright")
CORES = ("solid", "ring", "bright_core")
TEXTURES = ("smooth", "striped", "speckled")
SHAPES = ("round", "lobulated", "plexiform")
BORDERS = ("sharp", "blurred")

# Looks (intensity, core, texture), in every shape and border, that no training ever draws. Each level of each attribute
# still occurs in training, in other company. Committed: changing it makes earlier held-back figures incomparable.
HELD_BACK: frozenset[tuple[str, str, str]] = frozenset(
    {
        ("very_dark", "ring", "smooth"),
        ("dark", "bright_core", "striped"),
        ("dark", "solid", "speckled"),
        ("bright", "ring", "striped"),
        ("bright", "bright_core", "speckled"),
        ("very_bright", "ring", "speckled"),
        ("very_bright", "bright_core", "smooth"),
        ("very_dark", "solid", "striped"),
    }
)


def is_held_back(intensities: Iterable[str], cores: Iterable[str], textures: Iterable[str]) -> bool:
    """Tell whether a look could be called one that is held back: every generator of training data asks this.

    Args:
        intensities: The levels of INTENSITIES that it could be called; more than one where it lies between them.
        cores: The same of CORES.
        textures: The same of TEXTURES.
    """
    return any(look in HELD_BACK for look in product(intensities, cores, textures))


_CONTRAST = {"very_dark": (-0.33, -0.27), "dark": (-0.2, -0.16), "bright": (0.2, 0.29), "very_bright": (0.5, 0.7)}


@dataclass(frozen=True)
class LesionType:
    """A lesion type: a level of every attribute, and numbers drawn within these levels.

    Attributes:
        name: Name for readers and for dataset.json.
        intensity: One of INTENSITIES, relative to the tissue around the lesion.
        core: One of CORES. A ring is hollow, with tissue in its centre.
        texture: One of TEXTURES.
        shape: One of SHAPES.
        border: One of BORDERS.
        contrast: Signal minus that of the surrounding tissue, in units of the image.
        core_contrast: Contrast of the core; equal to `contrast` for a solid core.
        wall_fraction: Thickness of the wall around a core, as a share of the largest depth of the lesion.
        texture_depth: How far stripes and speckles lower the contrast, 0 (smooth) to 1 (down to 0).
        texture_mm: Period of stripes, or grain of speckles, in millimetres.
        elongation: Longest axis over shortest axis of the lesion, 1 or more.
        border_mm: Width of the change from lesion to tissue, in millimetres; 0 is one pixel.
    """

    name: str
    intensity: str
    core: str
    texture: str
    shape: str
    border: str
    contrast: float
    core_contrast: float
    wall_fraction: float
    texture_depth: float
    texture_mm: float
    elongation: float
    border_mm: float

    @property
    def look(self) -> tuple[str, str, str]:
        """Levels of the type in the form of HELD_BACK."""
        return (self.intensity, self.core, self.texture)


def make_lesion_type(
    rng: np.random.Generator, intensity: str, core: str, texture: str, shape: str, border: str, name: str = ""
) -> LesionType:
    """Draw the numbers of a type with given levels.

    Raises:
        ValueError: If a level does not exist.
    """
    given = (intensity, core, texture, shape, border)
    for level, allowed in zip(given, (INTENSITIES, CORES, TEXTURES, SHAPES, BORDERS), strict=True):
        if level not in allowed:
            raise ValueError(f"lesion type level {level!r} does not exist; choose one of {', '.join(allowed)}.")
    contrast = float(rng.uniform(*_CONTRAST[intensity]))
    core_contrast = contrast
    if core == "ring":
        core_contrast = float(rng.uniform(-0.25, 0.1)) * contrast
    elif core == "bright_core":
        core_contrast = max(contrast, 0.0) + float(rng.uniform(0.32, 0.45))
    return LesionType(
        name=name or "-".join(given),
        intensity=intensity,
        core=core,
        texture=texture,
        shape=shape,
        border=border,
        contrast=contrast,
        core_contrast=core_contrast,
        wall_fraction=float(rng.uniform(0.38, 0.48) if core == "ring" else rng.uniform(0.48, 0.58)),
        texture_depth=0.0 if texture == "smooth" else float(rng.uniform(0.8, 1.0)),
        texture_mm=float(rng.uniform(7.0, 11.0)) if texture == "striped" else float(rng.uniform(2.0, 3.5)),
        elongation=float(rng.uniform(1.0, 1.5)),
        border_mm=0.0 if border == "sharp" else float(rng.uniform(6.0, 10.0)),
    )


def draw_lesion_type(rng: np.random.Generator, *, held_back: bool = False) -> LesionType:
    """Draw a type. With `held_back`, its levels are among HELD_BACK; otherwise they are not."""
    while True:
        levels = tuple(str(rng.choice(axis)) for axis in (INTENSITIES, CORES, TEXTURES, SHAPES, BORDERS))
        if is_held_back(*((level,) for level in levels[:3])) == held_back:
            return make_lesion_type(rng, *levels)


def clearly_different(first: LesionType, second: LesionType) -> bool:
    """Return whether a reader can distinguish two types in one scan: by brightness, core or texture.

    Stripes against speckles do not count: on a small lesion they look the same.
    """
    textured = (first.texture == "smooth") != (second.texture == "smooth")
    return first.core != second.core or textured or abs(first.contrast - second.contrast) >= 0.25


def draw_lesion_types(rng: np.random.Generator, count: int, *, held_back: bool = False) -> list[LesionType]:
    """Draw the types of one body. All types are clearly different (`clearly_different`).

    Raises:
        ValueError: If `count` is below 1, or if one body cannot have so many clearly different types.
    """
    if not 1 <= count <= 6:
        raise ValueError(f"count={count} lesion types in one body; choose 1 to 6.")
    types: list[LesionType] = []
    while len(types) < count:
        drawn = draw_lesion_type(rng, held_back=held_back)
        if all(clearly_different(drawn, other) for other in types):
            types.append(drawn)
    return types


NAMED_TYPES: dict[str, LesionType] = {
    name: make_lesion_type(np.random.default_rng(7), *levels, name=name)
    for name, levels in {
        "solid_bright": ("very_bright", "solid", "smooth", "round", "sharp"),
        "ring": ("very_bright", "ring", "smooth", "round", "sharp"),
        "striped": ("very_bright", "solid", "striped", "lobulated", "sharp"),
        "dark": ("very_dark", "solid", "smooth", "round", "sharp"),
    }.items()
}
