"""How touching lesions come apart: F1 on crowded phantoms, and plexiform lesions that are split falsely.

python -m tests.bench.touching [--bundle DIR | shipped] [--crowded 4] [--plexiform 8] [--out touching.json]

Without a bundle, true masks are parted by true cores: what the parting alone can reach. With a bundle, five lesions of
each class are clicked once in their middle, which decides the levels of the scan as in a session. The lesions found are
compared: whole components, components parted by their shape (`inference.split_prominence_mm`), and parted by the cores,
if the model answers with cores.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from datamodules.cores import lesion_cores
from datamodules.phantoms.lesion_types import LesionType, draw_lesion_type, draw_lesion_types
from datamodules.phantoms.phantom import make_phantom
from datamodules.pretraining import as_volume
from mois.evaluation.true_lesions import TrueLesions
from mois.files.atomic import write_text
from mois.geometry import SliceGrid, resample_stack, restore_stack
from mois.inference.lesion_maps import LesionMaps
from mois.inference.parting import part_by_cores
from mois.lesions import Candidates, InstanceMap, components, find_candidates, split_touching
from mois.metrics.overlap import Overlap
from mois.records import Volume
from mois.serve.shipped_model import served_model
from mois.session import InteractiveSession
from mois.sharing.lesion_model import LesionModel

CROWDED = (120, 160)  # lesions in a body, of two types
USUAL = (20, 60)
SEED = 7
PROMINENCES_MM = (1.0, 2.0, 3.0)
PROMPTED = 5  # lesions of a class, one click each
LARGE_ML = 10.0
PIXEL_MM = 1.5
MIN_VOXELS = 4


class Counts(NamedTuple):
    """What one way of parting gave for one class of a scan."""

    f1: float
    large: int  # true lesions above LARGE_ML
    split: int  # of these, lesions with several found lesions that lie in them by more than half
    merged: int  # found lesions that hold more than half of several true lesions


Arms = dict[str, Callable[[int], InstanceMap]]
"""Name of a way of parting -> the lesions (S, H, W) that it gives for a class."""


def crowded(count: int) -> Iterator[Volume]:
    """Return phantoms with many lesions of two types."""
    for number in range(count):
        rng = np.random.default_rng([SEED, number])
        types = draw_lesion_types(rng, 2, held_back=True)
        yield as_volume(make_phantom(rng, types, lesions=CROWDED), f"crowded {number}")


def plexiform(count: int) -> Iterator[Volume]:
    """Return phantoms with plexiform lesions of two types alone."""
    for number in range(count):
        rng = np.random.default_rng([SEED, 1, number])
        types: list[LesionType] = []
        while len(types) < 2:
            drawn = draw_lesion_type(rng)
            types += [drawn] if drawn.shape == "plexiform" else []
        yield as_volume(make_phantom(rng, types, lesions=USUAL), f"plexiform {number}")


def score(found: InstanceMap, true: InstanceMap, voxel_ml: float) -> Counts:
    """Compare found lesions with the true lesions of a class; lesions without a true voxel count in F1 alone."""
    overlap = Overlap.of(found, true)
    within = (overlap.shared > 0.5 * overlap.found_voxels[:, None]).sum(0)
    holds = (overlap.shared > 0.5 * overlap.true_voxels[None]).sum(1)
    large = overlap.true_voxels * voxel_ml > LARGE_ML
    return Counts(overlap.match().f1, int(large.sum()), int((large & (within > 1)).sum()), int((holds > 1).sum()))


def with_truth(volume: Volume, truth: TrueLesions, grid: SliceGrid) -> Arms:
    """Return true masks as components, parted by their shape, and parted by the cores that a training would show."""

    def cores(mask: InstanceMap) -> np.ndarray:
        pictures = resample_stack(torch.from_numpy(mask), grid, PIXEL_MM, nearest=True).numpy()
        drawn = np.stack([lesion_cores(picture) for picture in pictures]).astype(np.float32)
        return restore_stack(torch.from_numpy(drawn), grid).numpy()

    def of(kind: int) -> InstanceMap:
        return truth.only(truth.volumes_of_class(kind))

    def whole(kind: int) -> InstanceMap:
        return components(of(kind) > 0, MIN_VOXELS)

    del volume
    arms: Arms = {"whole": whole}
    for mm in PROMINENCES_MM:
        arms[f"shape {mm:g} mm"] = lambda kind, mm=mm: split_touching(whole(kind), grid.edges_mm, mm, MIN_VOXELS)
    arms["cores"] = lambda kind: part_by_cores(whole(kind), cores(of(kind)), grid.edges_mm, MIN_VOXELS)
    return arms


def middle_of(truth: TrueLesions, lesion: int) -> tuple[int, int, int]:
    """Return slice, row and column of the deepest pixel of a lesion on its largest slice."""
    slice_index = truth.largest_slice(lesion)
    depth = ndimage.distance_transform_edt(np.pad(truth.index[slice_index] == lesion, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return slice_index, int(row), int(column)


def with_model(model: LesionModel, volume: Volume, truth: TrueLesions, grid: SliceGrid) -> Arms:
    """Return what a model finds after five clicks, as components, parted by their shape, and parted by its cores."""
    answers: dict[int, LesionMaps] = {}
    session = InteractiveSession(model, volume)

    def answer(kind: int) -> LesionMaps:
        if kind not in answers:
            while session.undo():  # the clicks on the class before
                pass
            rng, clicked = np.random.default_rng([SEED, kind]), 0  # session.actions also counts what was undone
            for lesion in rng.permutation(sorted(truth.volumes_of_class(kind))).tolist():
                middle = middle_of(truth, lesion)
                taken = bool(grid.to_stack(session.label_map())[middle])  # by the mask of a lesion beside it
                if not taken and clicked < PROMPTED:
                    place = torch.tensor([middle], dtype=torch.float64)
                    session.click(tuple(grid.to_lps_mm(place)[0].tolist()))
                    clicked += 1
            answers[kind] = session._bench.on_scan.answer(session.state)
        return answers[kind]

    settings, least = model.segmenter.settings, model.segmenter.min_voxels(volume.voxel_ml)

    def whole(kind: int) -> InstanceMap:
        maps = answer(kind)
        found = find_candidates(maps.probability.numpy(), settings.threshold, least)
        return Candidates(found.lesions, maps.at_peak_level(found.peaks)).sure(settings.peak_threshold).lesions

    def parted(kind: int, waist_mm: float) -> InstanceMap:
        return model.segmenter.lesions(answer(kind)._replace(waist_mm=waist_mm), volume.voxel_ml, grid.edges_mm)

    arms: Arms = {"whole": whole}
    for mm in PROMINENCES_MM:
        arms[f"shape {mm:g} mm"] = lambda kind, mm=mm: parted(kind, mm)
    arms["cores"] = lambda kind: parted(kind, 0.0)
    return arms


def measure(volumes: Iterator[Volume], model: LesionModel | None) -> dict[str, list[Counts]]:
    """Return the counts of every scan and class by the way of parting."""
    counts: dict[str, list[Counts]] = defaultdict(list)
    for volume in volumes:
        grid = SliceGrid.of(volume.shape, volume.affine)
        truth = TrueLesions.of(volume, grid)
        arms = with_truth(volume, truth, grid) if model is None else with_model(model, volume, truth, grid)
        for kind in sorted(set(truth.classes.values())):
            true = truth.only(truth.volumes_of_class(kind))
            for name, arm in arms.items():
                counts[name].append(score(arm(kind), true, volume.voxel_ml))
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", help="the model, or the word shipped; without it, true masks and true cores")
    parser.add_argument("--crowded", type=int, default=4, help="number of crowded phantoms")
    parser.add_argument("--plexiform", type=int, default=8, help="number of phantoms with plexiform lesions")
    parser.add_argument("--out", type=Path, help="a file for the figures")
    given = parser.parse_args(arguments)
    model = served_model(given.bundle, None, "cpu") if given.bundle else None
    figures: dict[str, dict[str, float]] = {}
    table = Table("phantoms", "parted by", "F1", f"lesions above {LARGE_ML:g} ml", "of these split", "merged")
    for name, volumes in (("crowded", crowded(given.crowded)), ("plexiform", plexiform(given.plexiform))):
        for way, counts in measure(volumes, model).items():
            f1 = float(np.nanmean([each.f1 for each in counts]))
            large, split, merged = (sum(column) for column in list(zip(*counts, strict=True))[1:])
            figures[f"{name}, {way}"] = {"f1": f1, "large": large, "split": split, "merged": merged}
            table.add_row(name, way, f"{f1:.3f}", str(large), str(split), str(merged))
    Console().print(table)
    if given.out:
        write_text(given.out, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
