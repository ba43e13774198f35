"""Pictures with objects of one to six types. The same generator draws the same voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.phantoms.painting import Bool, Float, Triple
from datamodules.pictures.annotation import annotate, finished
from datamodules.pictures.degradations import acquire, draw_acquisition, resize
from datamodules.pictures.grids import Grid, log_uniform
from datamodules.pictures.label_maps import borders
from datamodules.pictures.looks import Look, is_refused
from datamodules.pictures.objects import Canvas
from datamodules.pictures.packing import Place, draw_crowding, pack
from datamodules.pictures.plans import Plan, appearances, draw_plan
from datamodules.pictures.rendering import Ground, Inside, paint_ground, paint_objects
from mois.intensities import Levels, Normalisation, levels, normalise

LEAST_LESIONS = 4
"""Smallest number of annotated objects in a picture."""
FAINTEST = 0.09
"""Smallest difference between an annotated object and the ground without noise, in normalised units."""
ALIKE = 0.06
"""Two grounds whose signals differ by less look the same."""
BODY = Normalisation("body")
GAINS = (0.75, 1.2)
"""Smallest and largest gain after the normalisation of a picture."""
_TRIES = 20


class Scene(NamedTuple):
    """A picture whose objects are known.

    Attributes:
        image: (S, H, W) float32, raw intensities, 0 or more.
        instances: (S, H, W) int32, ids of objects, 0 is background.
        classes: Class of each id, 1 for the first type.
        spacing_mm: Distance between slices, rows and columns.
        looks: Looks of the types, class 1 first.
        style: Kind of picture, in a word or two.
        levels: Levels that the picture is normalised by.
    """

    image: Float
    instances: NDArray[np.int32]
    classes: dict[int, int]
    spacing_mm: Triple
    looks: list[Look]
    style: str
    levels: Levels


def draw_scene(
    rng: np.random.Generator,
    shape: tuple[int, int, int] = (7, 224, 224),
    pixel_mm: float = 1.5,
    *,
    least_types: int = 1,
    least_gap_px: float = 0.6,
) -> Scene:
    """Draw a picture.

    Args:
        rng: Generator of the picture.
        shape: Number of slices, rows and columns.
        pixel_mm: Edge of a pixel in millimetres.
        least_types: Smallest number of types; the largest is six.
        least_gap_px: Smallest distance between slices in pixels; the largest is 9.

    Raises:
        RuntimeError: If twenty tries gave no picture.
    """
    for _ in range(_TRIES):
        scene = _try_scene(rng, shape, pixel_mm, least_gap_px)
        if scene is not None and len(scene.looks) >= least_types:
            return scene
    raise RuntimeError(f"{_TRIES} pictures of shape {shape} had no room for objects that show")


def _try_scene(
    rng: np.random.Generator, shape: tuple[int, int, int], pixel_mm: float, least_gap_px: float
) -> Scene | None:
    """Draw a picture; None if too few of its objects show, or if one of its looks is held back."""
    crowded = rng.random() < 0.35
    sizes = ((7, 30), (3, 7), (30, 40)) if crowded else ((5, 24), (2.3, 5), (24, 48))
    radius_px = log_uniform(rng, *sizes[rng.choice(3, p=[0.7, 0.15, 0.15])])
    grid = _draw_grid(rng, shape, radius_px, least_gap_px)
    plan = draw_plan(rng, grid, radius_px, crowded)
    if plan is None:
        return None
    canvas, places, anchors = _put_objects(rng, grid, plan)
    gap_px = float(rng.uniform(0.5, 3)) if rng.random() < 0.3 else 0.0
    inside = _inside(rng, plan, places, anchors, canvas, gap_px)
    if not len(inside.at):
        return None
    weakest = min(abs(look.contrast) for look in plan.looks[: plan.types])
    ground = paint_ground(rng, grid, plan.tissue, plan.levels, weakest)
    signal = paint_objects(rng, grid, ground, inside, plan.looks)
    shown = _shown(signal, ground, inside, len(places))
    weakest = float(np.quantile(shown[shown > 0], 0.1)) if shown.any() else 0.0
    gain = log_uniform(rng, 20, 2000)
    image = np.float32(gain) * _taken(rng, grid, signal, plan, weakest)
    image = resize(np.ascontiguousarray(image, np.float32), *shape[1:])
    scale = levels(torch.from_numpy(image), BODY)
    stretch = gain / max(scale.high - scale.low, 1e-6)
    if _would_be_held_back(appearances(plan), stretch):
        return None
    kinds = np.array([0] + [place.kind + 1 if place.kind < plan.types else 0 for place in places])
    kinds[stretch * shown < FAINTEST] = 0
    seen = normalise(torch.from_numpy(image), BODY, known=scale).numpy()
    home = np.abs(ground.flat - np.concatenate([[np.float32(0)], anchors])[canvas.owner]) < ALIKE
    instances, classes = annotate(finished(canvas.owner, canvas.depth(gap_px), home, shape), kinds, seen)
    if len(classes) < LEAST_LESIONS:
        return None
    spacing_mm = (grid.spacing_px[0] * pixel_mm, pixel_mm, pixel_mm)
    return _scene(Scene(image, instances, classes, spacing_mm, plan.looks, plan.style, scale))


def _draw_grid(rng: np.random.Generator, shape: tuple[int, int, int], radius_px: float, least_gap_px: float) -> Grid:
    """Draw the grid that a picture is taken on: its pixels are those of the finished picture, or coarser."""
    gap_px = float(np.clip(radius_px / log_uniform(rng, 0.8, 14), least_gap_px, 9))
    row_px = 1.0 if rng.random() < 0.25 else log_uniform(rng, 1.2, max(1.3, min(4.0, 0.6 * radius_px)))
    column_px = max(1.0, row_px * float(rng.uniform(0.4, 1))) if rng.random() < 0.2 else row_px
    rows, columns = round(shape[1] / row_px), round(shape[2] / column_px)
    return Grid((shape[0], rows, columns), (gap_px, shape[1] / rows, shape[2] / columns))


def _taken(rng: np.random.Generator, grid: Grid, signal: Float, plan: Plan, weakest: float) -> Float:
    """Return a signal as a device takes it, (S, h, w)."""
    outline = plan.outline
    smallest = min(look.build.radius_px for look in plan.looks[: plan.types])
    level = float(np.quantile(signal[:, ::4, ::4], 0.95))
    how = draw_acquisition(rng, weakest * (1 if plan.types == 1 else 0.7), level, smallest, grid.spacing_px[1])
    image = acquire(rng, grid, signal if outline is None else np.where(outline, signal, 0), how)
    offset = float(rng.uniform(0, 0.3)) if rng.random() < 0.3 else 0.0
    if outline is not None and rng.random() < 0.6:  # cut out, as brains are
        image = np.where(outline, image + np.float32(offset), 0 if rng.random() < 0.8 else image[outline].mean())
    else:
        image = image + np.float32(offset)
    return np.asarray(image, np.float32)


def _put_objects(rng: np.random.Generator, grid: Grid, plan: Plan) -> tuple[Canvas, list[Place], Float]:
    """Pack the objects of a plan and put them onto a canvas.

    Returns:
        The canvas, the places of objects 1 to N, and the level of the ground (N,) that each object stands out from.
    """
    builds, labels = [look.build for look in plan.looks], plan.tissue.labels
    hosts = [_host(plan, home) for home in plan.homes]
    centres = hosts
    if plan.tissue.size > 1 and not plan.crowded and rng.random() < 0.2:  # along the borders of tissues
        smallest = min(build.radius_px for build in builds)
        edge = borders(labels, max(1, round(0.8 * smallest / grid.spacing_px[1])))
        centres = [edge if host is None else edge & host for host in hosts]
    crowding = draw_crowding(rng, grid, builds, plan.types, plan.crowded)
    places = pack(rng, grid, builds, [look.spread for look in plan.looks], crowding, centres)
    canvas = Canvas(rng, grid, 0.7 * float(np.mean([build.radius_px for build in builds])))
    anchors = np.zeros(len(places), np.float32)
    own: dict[int, Bool | None] = {}
    for number, place in enumerate(places, 1):
        look, anchor = plan.looks[place.kind], plan.anchors[place.kind]
        allowed = hosts[place.kind] if plan.confined else plan.outline
        if np.isnan(anchor):
            label = int(labels[grid.voxel(place.centre_px)])
            if label not in own:
                own[label] = _host(plan, np.arange(plan.tissue.size) == label)
            allowed, anchor = own[label], plan.levels[label]
        anchors[number - 1] = anchor
        margin = max(0.5 * look.border_px, grid.spacing_px[1])
        canvas.put(rng, number, look.build, place.centre_px, place.radius_px, margin, allowed)
    return canvas, places, anchors


def _host(plan: Plan, home: NDArray[np.bool_]) -> Bool | None:
    """Return the voxels (S, H, W) of some labels (L,) within the body; None for all voxels."""
    if home.all():
        return plan.outline
    host = home[plan.tissue.labels]
    return host if plan.outline is None else host & plan.outline


def _inside(
    rng: np.random.Generator,
    plan: Plan,
    places: Sequence[Place],
    anchors: Float,
    canvas: Canvas,
    gap_px: float,
) -> Inside:
    """Return the voxels of objects, and the voxels around them that a blurred border reaches."""
    kinds = np.array([0] + [place.kind for place in places])
    radii = np.array([1.0] + [place.radius_px for place in places], np.float32)
    widest = max(look.border_px for look in plan.looks)
    at = np.flatnonzero((canvas.owner.ravel() > 0) & (canvas.first.ravel() > -0.5 * max(widest, 2)))
    owners, between = canvas.owner.ravel()[at], canvas.between(gap_px).ravel()[at]
    depth = np.minimum(canvas.first.ravel()[at], between)
    variation = np.array([look.variation for look in plan.looks])[kinds]
    strength = np.exp(np.clip(rng.standard_normal(len(kinds)), -1.5, 1.5) * variation).astype(np.float32)
    level = np.concatenate([np.zeros(1, np.float32), anchors])
    return Inside(at, depth, between, owners, kinds[owners], radii[owners], strength[owners], level[owners])


def _shown(signal: Float, ground: Ground, inside: Inside, objects: int) -> Float:
    """Return how much objects 0 (none) to N differ from the ground: root mean square over voxels, (N + 1,)."""
    within = inside.depth > 0
    at, owner = inside.at[within], inside.owner[within]
    before = ground.flat.ravel()[at]
    if isinstance(ground.texture, np.ndarray):
        before = before + ground.texture.ravel()[at]
    voxels = np.bincount(owner, minlength=objects + 1)
    squares = np.bincount(owner, (signal.ravel()[at] - before) ** 2, objects + 1)
    return np.asarray(np.sqrt(squares / np.maximum(voxels, 1)), np.float32)


def _would_be_held_back(looks: Sequence[Look], stretch: float) -> bool:
    """Tell whether a look is held back after normalisation and gain."""
    return any(is_refused(look, (GAINS[0] * stretch, GAINS[1] * stretch)) for look in looks)


def _scene(scene: Scene) -> Scene:
    """Return a scene whose classes are numbered 1, 2, ... without gaps."""
    left = sorted(set(scene.classes.values()))
    number = {kind: at for at, kind in enumerate(left, 1)}
    classes = {lesion: number[kind] for lesion, kind in scene.classes.items()}
    return scene._replace(classes=classes, looks=[scene.looks[kind - 1] for kind in left])
