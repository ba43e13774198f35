"""Draw examples of the pictures that pretraining learns from, and of its episodes, to look at.

python docs/site/draw_pictures.py runs/pictures    # writes scenes.png and episodes.png; --seed draws others
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from datamodules.pictures.scene import BODY, draw_scene
from datamodules.pretraining import NewTypeEpisodes, PretrainDataModule
from mois.intensities import normalise

COLOURS = ("#ff3030", "#30ff30", "#3090ff", "#ffd000", "#ff30ff", "#30ffff")
SCENES, EPISODES, COLUMNS = 12, 6, 6


def show(axes: Any, image: NDArray[np.float32], masks: dict[int, list[NDArray[np.bool_]]]) -> None:
    """Show a slice (H, W) and outlines of masks by class, 0 is the first."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=1.2)
    for kind, of_kind in masks.items():
        for mask in of_kind:
            if mask.any():
                axes.contour(mask, [0.5], colors=COLOURS[kind], linewidths=0.8)
    axes.axis("off")


def draw_scenes(path: Path, seed: int) -> None:
    """Write the middle slice of some pictures: as it is, and below with outlines, a colour a type."""
    figure = Figure(figsize=(3 * COLUMNS, 3.1 * 2 * SCENES / COLUMNS), layout="tight")
    axes = figure.subplots(2 * SCENES // COLUMNS, COLUMNS)
    for number in range(SCENES):
        scene = draw_scene(np.random.default_rng([seed, number]))
        image = normalise(torch.from_numpy(scene.image), BODY, known=scene.levels).numpy()
        middle = len(image) // 2
        masks: dict[int, list[NDArray[np.bool_]]] = {}
        for lesion, kind in scene.classes.items():
            masks.setdefault(kind - 1, []).append(scene.instances[middle] == lesion)
        row, column = divmod(number, COLUMNS)
        show(axes[2 * row, column], image[middle], {})
        axes[2 * row, column].set_title(f"{scene.style}, {len(scene.classes)} of {len(scene.looks)} types", fontsize=8)
        show(axes[2 * row + 1, column], image[middle], masks)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=60)


def draw_episodes(path: Path, seed: int) -> None:
    """Write some episodes, a row each: exemplars of both groups, then the query and its targets."""
    settings = PretrainDataModule().settings
    episodes = NewTypeEpisodes(settings, seed, pictures=1.0)
    columns = 2 * settings.exemplars + 2
    figure = Figure(figsize=(2.6 * columns, 2.6 * EPISODES), layout="tight")
    axes = figure.subplots(EPISODES, columns)
    for number in range(EPISODES):
        episode = episodes[0, number]
        for place in range(2 * settings.exemplars):
            group, k = divmod(place, settings.exemplars)
            mask = episode.support_masks[group, k].numpy()
            show(axes[number, place], episode.support_images[group, k].numpy(), {group: [mask]})
        targets = {group: [episode.query_targets[group].numpy()] for group in range(2)}
        show(axes[number, -2], episode.query_images.numpy(), {})
        show(axes[number, -1], episode.query_images.numpy(), targets)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=60)


def main() -> None:
    """Write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    draw_scenes(given.out / "scenes.png", given.seed)
    draw_episodes(given.out / "episodes.png", given.seed)


if __name__ == "__main__":
    main()
