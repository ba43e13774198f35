"""What a dataset's scans and lesions are like, and which sizes of pixels and patches follow from that."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import cc3d
import numpy as np
import numpy.typing as npt

from mois.geometry import SliceGrid
from mois.records import Volume
from mois.scans.dataset_description import DatasetDescription

ACROSS_PX = 12.0
"""How many pixels across a median lesion shall be: what the bundled nano was trained on, and above the least of ten."""

LEAST_PX = 10.0

CROWDED_PX = 24.0
"""Likewise where many lesions touch: what keeps them apart is thinner than they are."""

VOXEL_PX = 2.0
"""Pixels across a voxel that show all it holds (masks have half of a picture's resolution): a crowd needs no more."""

CROWDED = 0.25
"""Share of touching lesions from which a dataset is crowded."""

STEPS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
PATCHES_PX = (128, 192, 256, 384, 512)
OVERLAP = 0.25
TOLERANCE_MM = 2.0
BINS_ML = (0.5, 2.0, 10.0)


class ScanFacts(NamedTuple):
    """What one scan is like.

    Attributes:
        spacing_mm: Between slices, rows, columns.
        slice_mm: Height and width of a slice.
        classes: (L,) int64, the class of each lesion.
        diameters_mm: (L,) float64, of the circle as large as each lesion on the slice that shows most of it.
        volumes_ml: (L,) float64.
        touching: How many of the lesions touch another one.
        instances: Whether a map of lesion ids says where one lesion ends and the next begins.
    """

    spacing_mm: tuple[float, float, float]
    slice_mm: tuple[float, float]
    classes: npt.NDArray[np.int64]
    diameters_mm: npt.NDArray[np.float64]
    volumes_ml: npt.NDArray[np.float64]
    touching: int
    instances: bool

    @classmethod
    def of(cls, volume: Volume, instances: bool) -> ScanFacts:
        """Measure a scan.

        Args:
            volume: The scan with its lesions.
            instances: Whether these come from a map of lesion ids.
        """
        grid = SliceGrid.of(volume.shape, volume.affine)
        lesions = np.ascontiguousarray(grid.to_stack(volume.lesions).numpy())
        ids = np.array(sorted(volume.classes), dtype=np.int64)
        pixels = np.zeros((len(lesions), len(ids)), dtype=np.int64)  # (S, L)
        for row, of_slice in zip(pixels, lesions, strict=True):
            row[:] = np.bincount(np.searchsorted(ids, of_slice[of_slice > 0]), minlength=len(ids))
        largest_mm2 = pixels.max(0, initial=0) * grid.row_mm * grid.column_mm
        pairs = cc3d.contacts(lesions, connectivity=26) if len(ids) > 1 else {}
        return cls(
            grid.spacing_mm,
            (grid.stack_shape[1] * grid.row_mm, grid.stack_shape[2] * grid.column_mm),
            np.array([volume.classes[int(lesion)] for lesion in ids], dtype=np.int64),
            2 * np.sqrt(largest_mm2 / math.pi),
            pixels.sum(0) * volume.voxel_ml,
            len({int(lesion) for pair in pairs for lesion in pair}),
            instances,
        )


class Proposal(NamedTuple):
    """Sizes that go with a dataset's lesions.

    Attributes:
        pixel_mm: Edge of a pixel.
        patch_px: Edge of a patch and of a tile.
    """

    pixel_mm: float
    patch_px: int


def propose(diameters_mm: npt.NDArray[np.float64], crowded: bool, voxel_mm: float = 0.0) -> Proposal:
    """Return the size of a pixel at which the median lesion is large enough, and a patch that holds the large ones.

    Args:
        diameters_mm: (L,) of all lesions, one or more.
        crowded: Whether many of them touch. Pixels are smaller then, but not below half a voxel's edge for that.
        voxel_mm: Edge of a voxel in a slice.
    """
    middle_mm = float(np.median(diameters_mm))
    wanted_mm = middle_mm / ACROSS_PX
    if crowded:
        wanted_mm = min(wanted_mm, max(middle_mm / CROWDED_PX, voxel_mm / VOXEL_PX))
    tens = math.floor(math.log10(wanted_mm))
    sizes = [step * 10.0**power for power in (tens - 1, tens, tens + 1) for step in STEPS]
    allowed = [size for size in sizes if size * LEAST_PX <= middle_mm]
    pixel_mm = float(f"{min(allowed, key=lambda size: abs(math.log(size / wanted_mm))):.2g}")
    large_px = 2 * float(np.quantile(diameters_mm, 0.9)) / pixel_mm
    return Proposal(pixel_mm, next((edge for edge in PATCHES_PX if edge >= large_px), PATCHES_PX[-1]))


def describe(scans: Sequence[ScanFacts], description: DatasetDescription) -> Iterator[tuple[str, str]]:
    """Yield a topic and a line on it, one after the other.

    Args:
        scans: One or more, of which some may have no lesion.
        description: The dataset's own.
    """
    yield "channels", _channels(description.channels)
    yield "spacing", _spacing(scans)
    diameters = np.concatenate([scan.diameters_mm for scan in scans])
    if not len(diameters):
        return
    volumes = np.concatenate([scan.volumes_ml for scan in scans])
    yield "lesions", _lesions(scans, diameters, volumes, description.classes)
    touching = sum(scan.touching for scan in scans)
    yield "touching", _touching(touching, len(diameters), all(scan.instances for scan in scans if len(scan.classes)))
    voxel_mm = float(np.median([min(scan.spacing_mm[1:]) for scan in scans]))
    made = propose(diameters, touching >= CROWDED * len(diameters), voxel_mm)
    yield "proposal", _proposal(made, diameters, scans)
    if further := _measures(diameters, volumes, max(scan.spacing_mm[1] for scan in scans)):
        yield "measures", further


def _channels(channels: Mapping[int, str]) -> str:
    told = ", ".join(f"{number} {name}" for number, name in channels.items()) or "dataset.json names none"
    return told + ("; data.init_args.channel says which is used" if len(channels) > 1 else "")


def _spacing(scans: Sequence[ScanFacts]) -> str:
    sides = zip(*(scan.spacing_mm for scan in scans), strict=True)
    gap, row, column = (_span(side) for side in sides)
    plane = row if row == column else f"{row} by {column}"
    return f"{plane} mm in a slice, {gap} mm between slices"


def _lesions(
    scans: Sequence[ScanFacts],
    diameters: npt.NDArray[np.float64],
    volumes: npt.NDArray[np.float64],
    names: Mapping[int, str],
) -> str:
    counts = Counter(int(one) for scan in scans for one in scan.classes)
    by_class = ", ".join(f"{counts[one]} of class {one} {names.get(one, '')}".rstrip() for one in sorted(counts))
    low, middle, high = np.quantile(diameters, (0.1, 0.5, 0.9))
    return (
        f"{by_class}; {_digits(middle)} mm across in the median, most {_digits(low)} to {_digits(high)} mm; "
        f"{_digits(float(np.median(volumes)))} ml in the median"
    )


def _touching(touching: int, lesions: int, instances: bool) -> str:
    share = f"{touching} of {lesions} lesions touch another one ({touching / lesions:.0%})"
    if instances:
        return share
    return f"{share}; those of one class that touch count as one, since labels hold no ids (instancesTr, docs/data.md)"


def _proposal(made: Proposal, diameters: npt.NDArray[np.float64], scans: Sequence[ScanFacts]) -> str:
    low, middle = np.quantile(diameters, (0.1, 0.5)) / made.pixel_mm
    tiles = max(_tiles(scan.slice_mm, made) for scan in scans)
    small = f", the smallest tenth {low:.0f} or fewer" if low < middle / 2 else ""
    return (
        f"pixel_mm {made.pixel_mm:g}, patch_px {made.patch_px}, tile_px {made.patch_px}: the median lesion is "
        f"{middle:.0f} pixels across{small}; {tiles} {'tile' if tiles == 1 else 'tiles'} a slice"
    )


def _tiles(slice_mm: tuple[float, float], made: Proposal) -> int:
    """Return how many tiles a slice is cut into."""
    step = made.patch_px * (1 - OVERLAP)
    rest = (side / made.pixel_mm - made.patch_px for side in slice_mm)
    return math.prod(1 + max(0, math.ceil(pixels / step)) for pixels in rest)


def _measures(diameters: npt.NDArray[np.float64], volumes: npt.NDArray[np.float64], voxel_mm: float) -> str:
    """Return settings of the evaluation where the usual ones do not tell these lesions apart."""
    said = []
    middle = float(np.median(diameters))
    if not middle / 16 <= TOLERANCE_MM <= middle / 2:
        tolerance = float(f"{max(middle / 8, voxel_mm):.1g}")
        said.append(
            f"surface_mm {tolerance:g} (the usual {TOLERANCE_MM:g} mm is {TOLERANCE_MM / middle:.0%} of a "
            "median lesion)"
        )
    bins = np.digitize(volumes, BINS_ML)
    if np.bincount(bins).max() > 0.9 * len(volumes):
        edges = sorted({float(f"{edge:.2g}") for edge in np.quantile(volumes, (0.25, 0.5, 0.75))})
        told = ",".join(f"{edge:g}" for edge in edges)
        said.append(f"bins_ml [{told}] (of the usual ones, one holds nearly all lesions)")
    return f"for model.protocol and mois evaluate: {'; '.join(said)}" if said else ""


def _span(values: Sequence[float]) -> str:
    low, high = _digits(min(values)), _digits(max(values))
    return low if low == high else f"{low} to {high}"


def _digits(value: float) -> str:
    return f"{value:.3g}"
