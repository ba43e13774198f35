"""How well lesions of two time points are matched: `python -m tests.bench.time_points [--patients 10]`.

Each phantom patient is scanned twice, as `mois phantom --sessions 2` draws it. In the second scan lesions have grown,
shrunk, gone and come. The lesions are the true ones. Then the same with the second scan on other grids, and the patient
turned by up to 5 degrees about each axis and moved by up to 15 mm along it, so the scans must be registered.

The true change of volume is that of the lesion in the voxels of both scans, each on its own grid. On another grid the
lesions of the second scan are resampled to the nearest voxel, which alone changes their volumes. How much is measured
as well: the change against the lesion before it was resampled.
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


@dataclass(frozen=True)
class SecondScan:
    """Where the second scan lies.

    Attributes:
        edges_mm: Its voxel, towards left, back and head.
        mirrored: Whether the voxels run towards right, front and feet.
        part: Share of the body that it shows, from the feet.
    """

    edges_mm: tuple[float, float, float]
    mirrored: bool = False
    part: float = 1.0


SECOND_SCANS = {
    "as made": None,
    "moved": SecondScan((2.6, 2.8, 6.5)),
    "moved, fine voxels": SecondScan((1.5, 1.5, 3.0)),
    "moved, thick slices, mirrored": SecondScan((1.5, 1.5, 12.0), mirrored=True),
    "moved, half of the body": SecondScan((2.6, 2.8, 6.5), part=0.5),
}


@dataclass
class Tally:
    """Counts over patients.

    Attributes:
        right: Lesions whose partner is right; or, without partner, whether they are new, gone or outside.
        lesions: All lesions.
        changes: Found change of volume by the true one, for matched lesions of 1 ml or more that no scan cuts off.
        resampled: The same against the lesions before they were resampled.
    """

    right: int = 0
    lesions: int = 0
    changes: list[float] = field(default_factory=list)
    resampled: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.right / self.lesions


def within(changes: list[float]) -> float:
    """Share of the changes that are right within 10 %."""
    return float((np.abs(np.array(changes) - 1) <= 0.1).mean())


def median_off(changes: list[float]) -> float:
    return float(np.median(np.abs(np.array(changes) - 1)))


def first_scan(phantom: Phantom, patient: str) -> TimePoint:
    image, ids = (torch.from_numpy(np.ascontiguousarray(each.T)) for each in (phantom.image, phantom.instances))
    slices, rows, columns = phantom.spacing_mm
    affine = torch.diag(torch.tensor([-columns, -rows, slices, 1.0], dtype=torch.float64))
    return TimePoint(Volume("first", patient, image, affine, ids, {}), ids)


def moved_scan(phantom: Phantom, patient: str, rng: np.random.Generator, where: SecondScan) -> TimePoint:
    """The scan on another grid, with the patient in another place."""
    straight = first_scan(phantom, patient)
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", rng.uniform(-5, 5, 3), degrees=True).as_matrix()
    middle = straight.volume.grid.corners_mm().mean(0)
    motion[:3, 3] = middle - motion[:3, :3] @ middle + rng.uniform(-15, 15, 3)
    reach = np.array(straight.volume.shape) * np.array(straight.volume.grid.spacing_mm)
    shape = np.ceil(reach / where.edges_mm).astype(int)
    affine = np.diag([*(np.array([1, -1, 1]) * where.edges_mm), 1.0])
    affine[:3, 3] = middle - affine[:3, :3] @ (shape / 2)
    height = int(np.argmax(reach))
    shape[height] = math.ceil(shape[height] * where.part)
    if where.mirrored:
        affine[:3, 3] += affine[:3, :3] @ (shape - 1)
        affine[:3, :3] *= -1
    into = np.linalg.inv(motion @ straight.volume.affine.numpy()) @ affine  # voxels of new scan to straight one
    taken = [
        ndimage.affine_transform(each.numpy(), into[:3, :3], into[:3, 3], output_shape=tuple(shape), order=order)
        for each, order in ((straight.volume.image, 1), (straight.labels, 0))
    ]
    image, ids = (torch.from_numpy(each) for each in taken)
    return TimePoint(Volume("second", patient, image, torch.from_numpy(affine), ids, {}), ids)


def measure(patients: int, where: SecondScan | None) -> Tally:
    """Compare the scans of patients. A lesion keeps its id, so partners, new and gone lesions are known."""
    tally = Tally()
    for seed in range(patients):
        rng = np.random.default_rng(seed)
        first, second = make_patient(rng, list(NAMED_TYPES.values()), sessions=2)
        earlier, whole = first_scan(first, "p"), first_scan(second, "p")
        now = moved_scan(second, "p", rng, where) if where else whole
        then_ml, whole_ml, now_ml = (_volumes_ml(each) for each in (earlier, whole, now))
        tally.lesions += len({*then_ml, *now_ml})
        for change in compare_time_points(earlier, now).changes:
            lesion = (change.lesions or change.earlier)[0]
            true = tuple((lesion,) if lesion in each else () for each in (now_ml, then_ml))
            not_shown = where is not None and where.part < 1 and lesion in whole_ml and lesion not in now_ml
            if (change.lesions, change.earlier) != true or (not_shown and change.status != "outside"):
                continue
            tally.right += 1
            if change.status == "same" and change.change_percent is not None and then_ml[lesion] >= LARGE_ML:
                found = (1 + change.change_percent / 100) * then_ml[lesion]
                tally.changes.append(found / now_ml[lesion])
                tally.resampled.append(found / whole_ml[lesion])
    return tally


def _volumes_ml(scan: TimePoint) -> dict[int, float]:
    """Volume of each lesion in the voxels of its scan."""
    ids, counts = torch.unique(scan.labels[scan.labels != 0], return_counts=True)
    return dict(zip(ids.tolist(), (counts.double() * scan.volume.grid.voxel_ml).tolist(), strict=True))


def report(patients: int, name: str) -> str:
    tally = measure(patients, SECOND_SCANS[name])
    return (
        f"{name}: {patients} patients, {tally.lesions} lesions: {tally.share:.3f} matched right; "
        f"{within(tally.changes):.3f} of {len(tally.changes)} lesions of {LARGE_ML:g} ml or more with their change "
        f"within 10 %; against the lesions before they were resampled {within(tally.resampled):.3f}, median off by "
        f"{median_off(tally.resampled):.1%}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, default=10)
    given = parser.parse_args()
    for name in SECOND_SCANS:
        print(report(given.patients, name), flush=True)
