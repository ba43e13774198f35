"""Scribbles in sessions on phantoms: what one gives beside a click, and what three on false lesions take away.

False lesions are those found on lesions of the scan's second type, after clicks on the first type.

`python -m tests.bench.drawings [--lesions 50] [--scans 8] [--rejections vetoes]` prints a table. The model is the
bundled nano with LearnedMatching, as in configs/zero_shot.yaml: its lesion types were held back from pretraining.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from scipy import ndimage

from datamodules.phantoms.lesion_types import draw_lesion_types
from datamodules.phantoms.phantom import make_phantom
from datamodules.pretraining import as_volume
from mois.backbones import SAM2
from mois.evaluation.true_lesions import TrueLesions
from mois.geometry import SliceGrid
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.lesions import Mask
from mois.propagation import LearnedMatching
from mois.records import Volume
from mois.session import InteractiveSession
from mois.sharing.lesion_model import LesionModel

SEED = 11
CLICKED = 5  # lesions of the first type that are clicked before a propagation
SCRIBBLED = 3  # false lesions that are scribbled over
LEAST_LESIONS = 8  # of either type, in a scan with false lesions
LEAST_VOXELS = 12  # on its largest slice: a line through a smaller lesion is a click
REACH = 0.3  # a scribble spans so much of a lesion, to each side of its middle
Place = tuple[int, int, int]  # slice, row, column


def model(clicks: str, rejections: str = "vetoes") -> LesionModel:
    """Return the bundled model; `clicks` and `rejections` are those of `inference`."""
    backbone, propagation = SAM2(weights="bundled-2").eval(), LearnedMatching(weights="bundled-2")
    propagation.build(backbone)
    settings = InferenceSettings(
        overlap=0.25,
        threshold=0.5,
        peak_threshold=0.6,
        clicks=clicks,
        level="moderate",
        rejections=rejections,
        split_prominence_mm=None,
    )
    return LesionModel.of(VolumeSegmenter(backbone, propagation.eval(), settings))


def phantoms() -> Iterator[Volume]:
    """Return phantoms with lesions of two types that were held back."""
    for number in range(1000):
        rng = np.random.default_rng([SEED, number])
        yield as_volume(make_phantom(rng, draw_lesion_types(rng, 2, held_back=True)), f"phantom {number}")


def middle(plane: Mask) -> tuple[int, int]:
    """Return row and column of the deepest pixel."""
    depth = ndimage.distance_transform_edt(np.pad(plane, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(row), int(column)


def stroke(plane: Mask) -> list[tuple[int, int]]:
    """Return a line along the longer axis of a lesion, through the deepest pixel of each piece of it."""
    pixels = np.argwhere(plane).astype(float)
    centred = pixels - pixels.mean(0)
    along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    depth = ndimage.distance_transform_edt(np.pad(plane, 1))[1:-1, 1:-1]
    at = [np.quantile(along, 0.5 + share) for share in (-REACH, -REACH / 2, 0.0, REACH / 2, REACH)]
    count = max(1, len(pixels) // 5)
    line = []
    for place in at:
        near = pixels[np.argsort(np.abs(along - place), kind="stable")[:count]].astype(int)
        row, column = max(near.tolist(), key=lambda pixel: depth[pixel[0], pixel[1]])
        line.append((row, column))
    return line


def in_mm(session: InteractiveSession, places: list[Place]) -> list[tuple[float, float, float]]:
    """Return places of the stack in LPS mm."""
    points = session._bench.grid.to_lps_mm(torch.tensor(places, dtype=torch.float64)).tolist()
    return [(x, y, z) for x, y, z in points]


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Dice of two masks."""
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def single_lesions(of: LesionModel, lesions: int) -> dict[str, list[float]]:
    """Return the Dice in 3-D and on the slice, of one click and of one scribble on each lesion."""
    found: dict[str, list[float]] = {name: [] for name in ("click", "scribble", "click, slice", "scribble, slice")}
    for volume in phantoms():
        session = InteractiveSession(of, volume)
        grid = session._bench.grid
        truth = TrueLesions.of(volume, grid)
        for lesion in sorted(truth.classes):
            index = truth.largest_slice(lesion)
            plane = truth.index[index] == lesion
            if plane.sum() < LEAST_VOXELS:
                continue
            for name in ("click", "scribble"):
                if name == "click":
                    number = session.click(in_mm(session, [(index, *middle(plane))])[0])
                else:
                    number = session.scribble(in_mm(session, [(index, *place) for place in stroke(plane)]))
                mask = grid.to_stack(session.label_map()).numpy() == number
                session.undo()
                found[name].append(dice(mask, truth.index == lesion))
                found[f"{name}, slice"].append(dice(mask[index], plane))
            if len(found["click"]) == lesions:
                return found
    return found


def found_lesions(session: InteractiveSession, truth: TrueLesions) -> tuple[list[np.ndarray], int]:
    """Return the found lesions on lesions of type 2 alone, and how many found lesions lie on some of type 1."""
    labels = session._bench.grid.to_stack(session.label_map()).numpy()
    wanted, other = (truth.only(truth.volumes_of_class(kind)) > 0 for kind in (1, 2))
    found = [labels == row.id for row in session.lesions() if row.origin == "found"]
    true = sum(bool((wanted & mask).any()) for mask in found)
    return [mask for mask in found if (other & mask).any() and not (wanted & mask).any()], true


def clicked(of: LesionModel, volume: Volume, truth: TrueLesions) -> InteractiveSession:
    """Return a session after clicks on the first lesions of type 1 and a propagation."""
    session = InteractiveSession(of, volume)
    for lesion in sorted(truth.volumes_of_class(1))[:CLICKED]:
        index = truth.largest_slice(lesion)
        place = in_mm(session, [(index, *middle(truth.index[index] == lesion))])[0]
        try:
            session.click(place)
        except ValueError:  # taken by the lesion beside it
            continue
    session.propagate()
    return session


def taken_away(of: LesionModel, scans: int) -> np.ndarray:
    """Return for each scan, (N, 5): false lesions before, of these left, false after, true before, true after."""
    rows: list[tuple[int, ...]] = []
    for volume in phantoms():
        truth = TrueLesions.of(volume, SliceGrid.of(volume.shape, volume.affine))
        if min(len(truth.volumes_of_class(kind)) for kind in (1, 2)) < LEAST_LESIONS:
            continue
        session = clicked(of, volume, truth)
        false, true = found_lesions(session, truth)
        if len(false) < 2 * SCRIBBLED:
            continue
        for mask in sorted(false, key=lambda each: -int(each.sum()))[:SCRIBBLED]:
            index = int(mask.sum((1, 2)).argmax())
            session.scribble(in_mm(session, [(index, *at) for at in stroke(mask[index])]), positive=False)
        session.propagate()
        after = session._bench.grid.to_stack(session.label_map()).numpy() > 0
        left = sum(bool(2 * (mask & after).sum() >= mask.sum()) for mask in false)
        new, true_after = found_lesions(session, truth)
        rows.append((len(false), left, len(new), true, true_after))
        print(volume.subject, rows[-1], flush=True)
        if len(rows) == scans:
            break
    return np.array(rows)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lesions", type=int, default=50)
    parser.add_argument("--scans", type=int, default=8)
    parser.add_argument("--rejections", choices=("exemplars", "vetoes"), default="vetoes")
    given = parser.parse_args()
    for clicks in ("model", "matched"):
        if given.lesions:
            for name, values in single_lesions(model(clicks), given.lesions).items():
                print(f"clicks: {clicks}, {name}: Dice {np.mean(values):.3f} (median {np.median(values):.3f}), "
                      f"{len(values)} lesions", flush=True)  # fmt: skip
    if given.scans:
        rows = taken_away(model("followed", given.rejections), given.scans)
        before, left, new, true, true_after = rows.sum(0)
        print(
            f"{SCRIBBLED} scribbles: {1 - left / before:.2f} of {before} false lesions gone, {new} false afterwards; "
            f"true lesions found: {true}, {true_after} afterwards"
        )


if __name__ == "__main__":
    main()
