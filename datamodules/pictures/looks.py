"""What the objects of a type look like, and whether a reader could tell two types apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from datamodules.phantoms.lesion_types import is_held_back
from datamodules.pictures.grids import log_uniform
from datamodules.pictures.objects import SHAPES, THIN, Build

CORES = ("solid", "rim", "ring", "core")
TEXTURES = ("smooth", "striped", "speckled", "mottled")
SMALL_PX = 6.0
"""Radius below which core and texture hardly show."""
STRETCH = (0.85, 1.8)
"""Smallest and largest factor of normalisation, guessed before the picture exists."""
_TRIES = 200


@dataclass(frozen=True)
class Look:
    """A type of object.

    Attributes:
        build: Shape and size of its objects.
        spread: Standard deviation of the logarithm of the radius.
        contrast: Signal of its wall minus the ground; 1 is about the range of a picture.
        variation: Standard deviation of the logarithm of the contrast, from object to object.
        core: One of CORES: solid, a thin rim that stands out, a hollow ring, a core that stands out.
        core_contrast: Signal of its inside minus the ground; equals `contrast` where the core is solid.
        wall: Thickness of rim or ring, as a share of the radius.
        texture: One of TEXTURES.
        texture_depth: How far the texture takes the contrast back to 0; 0 is not at all, 1 is all the way.
        grain_px: Period of stripes, or size of speckles and mottles.
        border_px: Width over which the signal falls to that of the ground.
    """

    build: Build
    spread: float
    contrast: float
    variation: float
    core: str
    core_contrast: float
    wall: float
    texture: str
    texture_depth: float
    grain_px: float
    border_px: float

    @property
    def fine(self) -> bool:
        """Whether parts of it are too thin for core and texture to show."""
        return self.build.radius_px < SMALL_PX or self.build.shape in THIN


def is_refused(look: Look, stretch: tuple[float, float] = STRETCH) -> bool:
    """Tell whether a look could be called one that pretraining must not see (HELD_BACK).

    Args:
        look: The look.
        stretch: Smallest and largest factor by which normalisation may multiply contrasts.
    """
    return is_held_back(*called(look, stretch))


def called(look: Look, stretch: tuple[float, float] = STRETCH) -> tuple[set[str], set[str], set[str]]:
    """Return all levels of INTENSITIES, CORES and TEXTURES of the lesion types that a look could be called.

    After normalisation, lesion types of phantoms have these contrasts: bright 0.32 to 0.47, very bright 0.8 to 1.13,
    dark -0.26 to -0.32, very dark -0.44 to -0.53 (`make_lesion_type`, divided by `pretraining.BRIGHT`). A look gets
    every level that one of its objects could come near to, also after blur. Many looks get two levels.

    Args:
        look: The look.
        stretch: Smallest and largest factor by which normalisation may multiply contrasts.
    """
    size = abs(look.contrast)
    weakest = 0.8 * size * math.exp(-1.5 * look.variation) * stretch[0]
    strongest = size * math.exp(1.5 * look.variation) * stretch[1]
    cores = {"solid": {"solid"}, "rim": {"solid", "ring"}, "ring": {"ring"}, "core": {"bright_core"}}[look.core]
    if look.core != "solid":
        if look.core_contrast > look.contrast:
            cores = cores | {"bright_core"}
        if abs(look.core_contrast) < abs(look.contrast) or look.core_contrast < look.contrast > 0:
            cores = cores | {"ring"}
        if look.core_contrast < look.contrast < 0:  # dark, and darker inside
            cores = cores | {"solid"}
            strongest = max(strongest, abs(look.core_contrast) * stretch[1])
        if look.fine:
            cores = cores | {"solid"}
    textures = {"striped": {"striped"}, "smooth": {"smooth"}}.get(look.texture, {"speckled"})
    if look.texture != "smooth" and (look.fine or look.texture_depth < 0.6):
        textures = textures | {"smooth"}
    if look.texture == "striped" and look.build.radius_px < 2 * SMALL_PX:
        textures = textures | {"speckled"}
    if look.contrast > 0:
        intensities = {"bright"} if weakest < 0.75 else set()
        intensities |= {"very_bright"} if strongest > 0.5 else set()
    else:
        intensities = {"dark"} if weakest < 0.43 else set()
        intensities |= {"very_dark"} if strongest > 0.34 else set()
    return intensities, cores, textures


def tellable(first: Look, second: Look) -> bool:
    """Tell whether a reader could tell two types apart, by at least one strong difference."""
    a, b = first.build, second.build
    steady = first.variation < 0.15 and second.variation < 0.15
    apart = abs(first.contrast - second.contrast)
    if first.contrast * second.contrast < 0 and apart > 0.25:
        return True
    if steady and apart >= max(0.2, 0.4 * max(abs(first.contrast), abs(second.contrast))):
        return True
    ratio = max(a.radius_px, b.radius_px) / min(a.radius_px, b.radius_px)
    if ratio >= 2.2 and first.spread <= 0.2 and second.spread <= 0.2:
        return True
    if min(a.radius_px, b.radius_px) < SMALL_PX:
        return False
    if (a.shape in THIN) != (b.shape in THIN) or (a.shape != b.shape and a.shape in THIN):
        return True
    if first.fine or second.fine:
        return False
    if (first.texture == "smooth") != (second.texture == "smooth") and max(
        first.texture_depth, second.texture_depth
    ) > 0.7:
        return True
    gap = abs(first.core_contrast / first.contrast - second.core_contrast / second.contrast)
    if gap > 0.6:
        return True
    blur = abs(first.border_px / a.radius_px - second.border_px / b.radius_px)
    return blur > 0.55


def draw_look(rng: np.random.Generator, sign: int, radius_px: float) -> Look:
    """Draw a type that is not refused, of this sign of contrast and about this size."""
    for _ in range(_TRIES):
        look = _draw(rng, sign, radius_px)
        if not is_refused(look):
            return look
    raise RuntimeError("no look was drawn that is not held back")


def draw_looks(
    rng: np.random.Generator, count: int, signs: Sequence[int], radius_px: float, suits: Callable[[Look], bool]
) -> list[Look]:
    """Draw up to `count` types, each to be told apart from the others; half of them differ in one thing only.

    Args:
        rng: Generator of the types.
        count: Number of types that are wanted. There may be fewer, or none.
        signs: Signs that contrasts may have.
        radius_px: About their radius.
        suits: Whether a type would show in the picture.
    """
    looks: list[Look] = []
    for _ in range(_TRIES):
        if len(looks) == count:
            break
        sign = int(rng.choice(signs))
        if looks and rng.random() < 0.5:
            look = _sibling(rng, looks[rng.integers(len(looks))], signs)
        else:
            look = _draw(rng, sign, radius_px * (log_uniform(rng, 0.5, 2.0) if looks else 1.0))
        if suits(look) and not is_refused(look) and all(tellable(look, other) for other in looks):
            looks.append(look)
    return looks


def _draw(rng: np.random.Generator, sign: int, radius_px: float) -> Look:
    radius_px = float(np.clip(radius_px * log_uniform(rng, 0.8, 1.25), 2.0, 48.0))
    shape = str(rng.choice(SHAPES, p=[0.38, 0.2, 0.22, 0.06, 0.08, 0.06]))
    if radius_px < 5 and shape in THIN:
        shape = "round"
    elongation = float(rng.uniform(1, 1.25) if rng.random() < 0.5 else rng.uniform(1.25, 2.4))
    build = Build(shape, radius_px, elongation, float(rng.choice([0.0, 0.04, 0.1])))
    look = Look(
        build=build,
        spread=float(rng.choice([0.05, 0.15, 0.3, 0.45])),
        contrast=sign * log_uniform(rng, 0.17, 0.9),
        variation=float(rng.choice([0.0, 0.08, 0.2, 0.35, 0.5], p=[0.4, 0.25, 0.15, 0.12, 0.08])),
        core="solid",
        core_contrast=0.0,
        wall=0.3,
        texture="smooth",
        texture_depth=0.0,
        grain_px=2.0,
        border_px=_border(rng, build, str(rng.choice(["sharp", "soft", "blurred"], p=[0.55, 0.3, 0.15]))),
    )
    core = str(rng.choice(CORES, p=[0.35, 0.2, 0.22, 0.23]))
    look = _with_core(rng, look, core if look.border_px < 0.6 * radius_px else "solid")
    if look.core != "solid":  # of one intensity more surely, or most would be refused
        look = replace(look, variation=min(look.variation, 0.08))
    return _with_texture(rng, look, str(rng.choice(TEXTURES, p=[0.4, 0.16, 0.22, 0.22])), rng.random() < 0.5)


def _border(rng: np.random.Generator, build: Build, border: str) -> float:
    """Draw the width of a border; that of thin shapes is sharp, or they would fade out."""
    low, high = {"sharp": (0.0, 0.15), "soft": (0.25, 0.5), "blurred": (0.7, 1.1)}[border]
    share = float(rng.uniform(low, high)) if build.shape not in THIN else 0.1
    return max(1.0, share * build.radius_px * (0.6 if build.shape == "lobulated" else 1.0))


def _with_core(rng: np.random.Generator, look: Look, core: str) -> Look:
    share = {"solid": (1, 1), "rim": (0.4, 0.75), "ring": (-0.25, 0.15), "core": (1.7, 2.4)}[core]
    wall = {"solid": 0.3, "rim": float(rng.uniform(0.12, 0.25)), "ring": float(rng.uniform(0.3, 0.45))}
    inner = look.contrast * float(rng.uniform(*share))
    if core == "core":  # the inside stands out further, or, in what is dark, to the other side
        limit = 1.2 if look.contrast > 0 else -0.95
        inner = min(inner, limit) if look.contrast > 0 else max(inner, limit)
        if look.contrast < 0 and rng.random() < 0.6:
            inner = float(rng.uniform(0.25, 0.5))
    return replace(look, core=core, core_contrast=inner, wall=wall.get(core, float(rng.uniform(0.4, 0.6))))


def _with_texture(rng: np.random.Generator, look: Look, texture: str, deep: bool) -> Look:
    radius = look.build.radius_px
    grain = {
        "smooth": 2.0,
        "striped": max(4.0, float(rng.uniform(0.3, 0.7)) * radius),
        "speckled": float(rng.uniform(1.5, 3.0)),
        "mottled": max(2.5, float(rng.uniform(0.25, 0.5)) * radius),
    }[texture]
    depth = 0.0 if texture == "smooth" else float(rng.uniform(0.75, 1.0) if deep else rng.uniform(0.2, 0.6))
    return replace(look, texture=texture, texture_depth=depth, grain_px=grain)


def _sibling(rng: np.random.Generator, look: Look, signs: Sequence[int]) -> Look:
    """Draw a type that differs from another one in one thing, strongly."""
    what = str(rng.choice(["contrast", "core", "texture", "size", "shape", "border"]))
    build = look.build
    if what == "contrast":
        factor = float(rng.choice([0.4, 0.55, 1.8, 2.4]))
        contrast = float(np.clip(look.contrast * factor, -0.9, 1.2)) * (1 if rng.random() < 0.7 else rng.choice(signs))
        inner = look.core_contrast / look.contrast * contrast
        return replace(look, contrast=contrast, core_contrast=inner, variation=min(look.variation, 0.08))
    if what == "size":
        radius = build.radius_px * (log_uniform(rng, 2.4, 4) if rng.random() < 0.5 else log_uniform(rng, 0.25, 0.42))
        return replace(look, build=build._replace(radius_px=float(np.clip(radius, 2.0, 48.0))), spread=0.1)
    if what == "shape":
        build = build._replace(shape=str(rng.choice(SHAPES)))
        return replace(look, build=build, border_px=_border(rng, build, "sharp"))
    if what == "core":
        return _with_core(rng, look, str(rng.choice(CORES)))
    if what == "texture":
        return _with_texture(rng, look, str(rng.choice(TEXTURES)), deep=True)
    return replace(look, border_px=_border(rng, build, str(rng.choice(["sharp", "blurred"]))))
