"""Plans of pictures: the ground, the types of objects, distractors, and where each may lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.phantoms.painting import Bool, Float
from datamodules.pictures.grids import Grid, log_uniform
from datamodules.pictures.label_maps import LabelMap, draw_label_map, draw_outline, plain
from datamodules.pictures.looks import Look, draw_look, draw_looks, is_refused, tellable

TYPES = (0.15, 0.4, 0.2, 0.12, 0.08, 0.05)
"""Share of pictures with one, two, ... six types."""
_LEVELS = {"dish": (0.0, 0.12), "inverted": (0.8, 0.95), "tissue": (0.08, 0.9), "flat": (0.3, 0.6)}
_SIGNS = {"dish": (1,), "inverted": (-1,), "tissue": (1, 1, -1, -1), "flat": (1, -1)}
_ALIKE = 0.15  # share of a contrast: grounds that differ by less are the same to an object


class Plan(NamedTuple):
    """Plan of a picture.

    Attributes:
        looks: K looks: those of types first, then those of distractors, which nobody annotates.
        types: Number of looks that are types.
        homes: (K, L) bool, the labels of the ground that the centre of an object may lie in.
        confined: Whether whole objects lie there.
        anchors: (K,) float32, level of the ground that a look stands out from. NaN: the label at the centre of each
            object decides, and the object stays within this label.
        levels: (L,) float32, signal of each label of the ground.
        tissue: Labels of the ground.
        outline: (S, H, W) bool, inside of the body; None if the body fills the picture.
        crowded: Whether objects fill much of the picture.
        style: Kind of picture, in a word or two.
    """

    looks: list[Look]
    types: int
    homes: NDArray[np.bool_]
    confined: bool
    anchors: Float
    levels: Float
    tissue: LabelMap
    outline: Bool | None
    crowded: bool
    style: str


def draw_plan(rng: np.random.Generator, grid: Grid, radius_px: float, crowded: bool) -> Plan | None:
    """Draw a ground, and types that show on it, with about this radius; None if no type was found."""
    shares = [0.55, 0.15, 0.2, 0.1] if crowded else [0.24, 0.06, 0.6, 0.1]
    style = str(rng.choice(list(_LEVELS), p=shares))
    bare = style == "flat" or (style != "tissue" and rng.random() < 0.6)
    tissue = plain(grid) if bare else draw_label_map(rng, grid)
    levels = rng.uniform(*_LEVELS[style], tissue.size).astype(np.float32)
    signs = _SIGNS[style] if rng.random() < 0.5 else (int(rng.choice(_SIGNS[style])),)
    outline = tissue.outline
    if outline is None and style in ("tissue", "flat") and rng.random() < 0.4:
        outline = draw_outline(rng, grid)
    inside = tissue.labels if outline is None else tissue.labels[outline]
    areas = np.bincount(inside.ravel(), minlength=tissue.size) / max(1, inside.size)

    def suits(look: Look) -> bool:
        return float(areas[_shows(look, levels, tissue.blob_px)].sum()) > 0.05

    looks = draw_looks(rng, int(rng.choice(np.arange(1, 7), p=TYPES)), signs, radius_px, suits)
    if not looks:
        return None
    types = len(looks)
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.3, 0.3, 0.25, 0.15]))):
        other = _unlike(rng, looks[:types], (1,) if style == "dish" else (1, -1), radius_px)
        if other is not None and suits(other):
            looks.append(other)
    rule = "any" if style in ("dish", "inverted") else str(rng.choice(["one", "own"], p=[0.7, 0.3]))
    confined = rule == "own" or (rule == "one" and rng.random() < 0.6)
    found = [_home(rng, look, levels, areas, tissue.blob_px, rule) for look in looks]
    homes, anchors = np.stack([home for home, _ in found]), np.array([anchor for _, anchor in found], np.float32)
    style = f"crowded {style}" if crowded else style
    plan = Plan(looks, types, homes, confined, anchors, levels, tissue, outline, crowded, style)
    if not confined and any(is_refused(look) for look in appearances(plan)):
        return plan._replace(confined=True) if rule == "one" else None
    return plan


def appearances(plan: Plan) -> list[Look]:
    """Return the looks of a plan as they appear on every ground that they may cover."""
    if plan.confined:
        return plan.looks
    seen = []
    for look, anchor in zip(plan.looks, plan.anchors.tolist(), strict=True):
        for level in np.unique(plan.levels).tolist():
            more = anchor - level
            seen.append(replace(look, contrast=look.contrast + more, core_contrast=look.core_contrast + more))
    return seen


def _unlike(rng: np.random.Generator, types: Sequence[Look], signs: Sequence[int], radius_px: float) -> Look | None:
    """Draw a distractor that is unlike all types, often a vessel; None if it came out like one of them."""
    other = draw_look(rng, int(rng.choice(signs)), radius_px * log_uniform(rng, 0.4, 2))
    if rng.random() < 0.4:
        vessel = other.build._replace(shape="tube", radius_px=float(rng.uniform(20, 60)), roughness=0.0)
        other = replace(other, build=vessel, core="solid", core_contrast=other.contrast, border_px=1.0)
    return other if not is_refused(other) and all(tellable(other, look) for look in types) else None


def _shows(look: Look, levels: Float, blob_px: float) -> NDArray[np.bool_]:
    """Return the labels of the ground (L,) on which a look shows, and no other label looks like it."""
    signal = levels + np.float32(look.contrast)
    nearest = np.abs(signal[:, None] - levels[None, :]).min(1)
    apart = nearest > (0.12 if blob_px < 4 * look.build.radius_px else 0.05)
    return np.asarray((signal > 0.02) & (signal < 1.4) & apart)


def _home(
    rng: np.random.Generator, look: Look, levels: Float, areas: NDArray[np.float64], blob_px: float, rule: str
) -> tuple[NDArray[np.bool_], float]:
    """Return the labels that a look may lie in, (L,) bool, and the level that it stands out from.

    Args:
        rng: Generator of the choice.
        look: Look of the objects.
        levels: (L,) signal of the labels.
        areas: (L,) share of the picture that each label covers.
        blob_px: Width of the pieces of the label map.
        rule: `any`: everywhere, as stained cells. `one`: in one tissue, and in tissues of about its signal. `own`: in
            all tissues, with the same contrast to each.
    """
    shows = _shows(look, levels, blob_px)
    if rule == "any":
        return np.ones(len(levels), bool), float(np.median(levels))
    if rule == "own":
        return shows, float("nan")
    weights = areas * shows
    main = levels[rng.choice(len(levels), p=weights / weights.sum())]
    return np.asarray(np.abs(levels - main) <= _ALIKE * abs(look.contrast)), float(main)
