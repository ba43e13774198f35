"""How well lesions of two time points are matched: `python -m tests.bench.time_points [--patients 10]`.

Each phantom patient is scanned twice, as `mois phantom --sessions 2` draws it. In the second scan lesions have grown,
shrunk, gone and come. The lesions are the true ones. Then the same with a second scan on another grid, with the patient
turned by up to 5 degrees about each axis and moved by up to 15 mm along it, so the scans must be registered. Its
lesions are resampled to the nearest voxel, which alone changes their volumes.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from datamodules.phantoms.lesion_types import NAMED_TYPES
from datamodules.phantoms.phantom import Phantom, make_patient
from mois.records import Volume
from mois.session.follow_up import TimePoint, compare_time_points

LARGE_ML = 1.0
EDGES_MM = (2.6, 2.8, 6.5)
"""Voxel of the second scan."""


@dataclass
class Tally:
    """Counts over patients. `changes`: found change of volume by the true one, for matched lesions of 1 ml or more."""

    right: int = 0
    lesions: int = 0
    changes: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.right / self.lesions

    @property
    def within(self) -> float:
        return float((np.abs(np.array(self.changes) - 1) <= 0.1).mean())

    @property
    def median(self) -> float:
        return float(np.median(np.abs(np.array(self.changes) - 1)))


def first_scan(phantom: Phantom, patient: str) -> TimePoint:
    image, ids = (torch.from_numpy(np.ascontiguousarray(each.T)) for each in (phantom.image, phantom.instances))
    slices, rows, columns = phantom.spacing_mm
    affine = torch.diag(torch.tensor([-columns, -rows, slices, 1.0], dtype=torch.float64))
    return TimePoint(Volume("first", patient, image, affine, ids, {}), ids)


def moved_scan(phantom: Phantom, patient: str, rng: np.random.Generator) -> TimePoint:
    """The scan on another grid, with the patient in another place."""
    straight = first_scan(phantom, patient)
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", rng.uniform(-5, 5, 3), degrees=True).as_matrix()
    middle = straight.volume.grid.corners_mm().mean(0)
    motion[:3, 3] = middle - motion[:3, :3] @ middle + rng.uniform(-15, 15, 3)
    reach = np.array(straight.volume.shape) * np.array(straight.volume.grid.spacing_mm)
    affine = np.diag([EDGES_MM[0], -EDGES_MM[1], EDGES_MM[2], 1.0])
    shape = tuple(math.ceil(length / edge) for length, edge in zip(reach, EDGES_MM, strict=True))
    affine[:3, 3] = middle - affine[:3, :3] @ (np.array(shape) / 2)
    into = np.linalg.inv(motion @ straight.volume.affine.numpy()) @ affine  # voxels of new scan to straight one
    taken = [
        ndimage.affine_transform(each.numpy(), into[:3, :3], into[:3, 3], output_shape=shape, order=order)
        for each, order in ((straight.volume.image, 1), (straight.labels, 0))
    ]
    image, ids = (torch.from_numpy(each) for each in taken)
    return TimePoint(Volume("second", patient, image, torch.from_numpy(affine), ids, {}), ids)


def measure(patients: int, *, moved: bool) -> Tally:
    """Compare the scans of patients. A lesion keeps its id, so partners, new and gone lesions are known."""
    tally = Tally()
    for seed in range(patients):
        rng = np.random.default_rng(seed)
        first, second = make_patient(rng, list(NAMED_TYPES.values()), sessions=2)
        earlier = first_scan(first, "p")
        now = moved_scan(second, "p", rng) if moved else first_scan(second, "p")
        old, new = (set(np.unique(each.labels.numpy()).tolist()) - {0} for each in (earlier, now))
        then_ml, now_ml = (_volumes_ml(each) for each in (first, second))
        tally.lesions += len(old | new)
        for change in compare_time_points(earlier, now).changes:
            lesion = (change.lesions or change.earlier)[0]
            true = ((lesion,) if lesion in new else (), (lesion,) if lesion in old else ())
            right = (change.lesions, change.earlier) == true
            tally.right += right
            if right and change.status == "same" and then_ml[lesion] >= LARGE_ML:
                found = 1 + (change.change_percent or 0.0) / 100
                tally.changes.append(found / (now_ml[lesion] / then_ml[lesion]))
    return tally


def _volumes_ml(phantom: Phantom) -> np.ndarray:
    return np.bincount(phantom.instances.ravel()) * math.prod(phantom.spacing_mm) / 1000


def report(patients: int, *, moved: bool) -> str:
    tally = measure(patients, moved=moved)
    return (
        f"{'moved' if moved else 'as made'}: {patients} patients, {tally.lesions} lesions: {tally.share:.3f} matched "
        f"right; {tally.within:.3f} of {len(tally.changes)} lesions of {LARGE_ML:g} ml or more with their change "
        f"within 10 %, median off by {tally.median:.1%}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, default=10)
    given = parser.parse_args()
    for moved in (False, True):
        print(report(given.patients, moved=moved), flush=True)
