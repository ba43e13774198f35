"""Measures the scans and lesions of a dataset, and proposes sizes of pixels and patches for them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import cc3d
import numpy as np
import numpy.typing as npt

from mois.errors import counted
from mois.geometry import SliceGrid
from mois.records import Volume
from mois.scans.dataset_description import DatasetDescription

LESION_PX = 12.0
"""Proposed diameter of the median lesion in pixels. The bundled nano was trained with this diameter."""

MIN_LESION_PX = 10.0
"""Smallest diameter of the median lesion in pixels."""

CROWDED_LESION_PX = 24.0
"""Proposed diameter of the median lesion where many lesions touch, because the gaps are thinner than the lesions."""

VOXEL_PX = 2.0
"""Pixels across a voxel that show all its content: masks have half the resolution of a picture."""

CROWDED_SHARE = 0.25
"""Share of touching lesions from which a dataset is crowded."""

STEPS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
PATCHES_PX = (128, 192, 256, 384, 512)
OVERLAP = 0.25
TOLERANCE_MM = 2.0
BINS_ML = (0.5, 2.0, 10.0)


class ScanFacts(NamedTuple):
    """Measures of one scan.

    Attributes:
        spacing_mm: Distance between slices, rows and columns.
        slice_mm: Height and width of a slice.
        classes: (L,) int64, the class of each lesion.
        diameters_mm: (L,) float64, diameter of the circle with the area of the lesion on its largest slice.
        volumes_ml: (L,) float64.
        touching: Number of lesions that touch another lesion.
        instances: Whether the lesions come from a map of lesion ids.
        subject: Name of the scan.
        patient: Name of the patient.
        slices: Number of slices of the scan.
        lesion_slices: (L,) int64, number of slices that show the lesion.
        voxel_ml: Volume of a voxel.
    """

    spacing_mm: tuple[float, float, float]
    slice_mm: tuple[float, float]
    classes: npt.NDArray[np.int64]
    diameters_mm: npt.NDArray[np.float64]
    volumes_ml: npt.NDArray[np.float64]
    touching: int
    instances: bool
    subject: str
    patient: str
    slices: int
    lesion_slices: npt.NDArray[np.int64]
    voxel_ml: float

    @classmethod
    def of(cls, volume: Volume, instances: bool) -> ScanFacts:
        """Measure a scan.

        Args:
            volume: The scan with its lesions.
            instances: Whether the lesions come from a map of lesion ids.
        """
        grid = SliceGrid.of(volume.shape, volume.affine)
        lesions = np.ascontiguousarray(grid.to_stack(volume.lesions).numpy())
        ids = np.array(sorted(volume.classes), dtype=np.int64)
        pixels = np.zeros((len(lesions), len(ids)), dtype=np.int64)  # (S, L)
        for row, slice_lesions in zip(pixels, lesions, strict=True):
            row[:] = np.bincount(np.searchsorted(ids, slice_lesions[slice_lesions > 0]), minlength=len(ids))
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
            volume.subject,
            volume.patient,
            len(lesions),
            (pixels > 0).sum(0),
            volume.voxel_ml,
        )


class Proposal(NamedTuple):
    """Proposed sizes for the lesions of a dataset.

    Attributes:
        pixel_mm: Edge of a pixel in mm.
        patch_px: Edge of a patch and of a tile in pixels.
    """

    pixel_mm: float
    patch_px: int


def propose(diameters_mm: npt.NDArray[np.float64], crowded: bool, voxel_mm: float = 0.0) -> Proposal:
    """Return a pixel size that shows the median lesion large enough, and a patch size that holds the large lesions.

    Args:
        diameters_mm: (L,) diameters of all lesions, L >= 1.
        crowded: Whether many lesions touch. Then pixels are smaller, down to half the edge of a voxel.
        voxel_mm: Edge of a voxel in a slice, in mm.
    """
    middle_mm = float(np.median(diameters_mm))
    wanted_mm = middle_mm / LESION_PX
    if crowded:
        wanted_mm = min(wanted_mm, max(middle_mm / CROWDED_LESION_PX, voxel_mm / VOXEL_PX))
    tens = math.floor(math.log10(wanted_mm))
    sizes = [step * 10.0**power for power in (tens - 1, tens, tens + 1) for step in STEPS]
    allowed = [size for size in sizes if size * MIN_LESION_PX <= middle_mm]
    pixel_mm = float(f"{min(allowed, key=lambda size: abs(math.log(size / wanted_mm))):.2g}")
    large_px = 2 * float(np.quantile(diameters_mm, 0.9)) / pixel_mm
    return Proposal(pixel_mm, next((edge for edge in PATCHES_PX if edge >= large_px), PATCHES_PX[-1]))


def proposal_for(scans: Sequence[ScanFacts]) -> Proposal:
    """Return the proposed sizes for scans with one lesion or more between them."""
    diameters = np.concatenate([scan.diameters_mm for scan in scans])
    voxel_mm = float(np.median([min(scan.spacing_mm[1:]) for scan in scans]))
    return propose(diameters, is_crowded(scans), voxel_mm)


def is_crowded(scans: Sequence[ScanFacts]) -> bool:
    """Return whether many lesions touch another lesion."""
    return sum(scan.touching for scan in scans) >= CROWDED_SHARE * sum(len(scan.classes) for scan in scans)


def describe(scans: Sequence[ScanFacts], description: DatasetDescription) -> Iterator[tuple[str, str]]:
    """Yield lines about a dataset, each with its topic.

    Args:
        scans: One or more scans. A scan may have no lesion.
        description: The content of dataset.json.
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
    proposal = proposal_for(scans)
    yield "proposal", _proposal(proposal, diameters, scans)
    if further := _measures(diameters, volumes, max(scan.spacing_mm[1] for scan in scans)):
        yield "measures", further


def _channels(channels: Mapping[int, str]) -> str:
    text = ", ".join(f"{number} {name}" for number, name in channels.items()) or "dataset.json names none"
    return text + (
        "; data.init_args.channel says which is used, data.init_args.channels which are used together"
        if len(channels) > 1
        else ""
    )


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
    return f"{share}; touching lesions of a class count as one: labels hold no ids (instancesTr, docs/data.md)"


def _proposal(proposal: Proposal, diameters: npt.NDArray[np.float64], scans: Sequence[ScanFacts]) -> str:
    low, middle = np.quantile(diameters, (0.1, 0.5)) / proposal.pixel_mm
    tiles = max(_tiles(scan.slice_mm, proposal) for scan in scans)
    small = f", the smallest tenth {low:.0f} or fewer" if low < middle / 2 else ""
    return (
        f"pixel_mm {proposal.pixel_mm:g}, patch_px {proposal.patch_px}, tile_px {proposal.patch_px}: the median lesion "
        f"is {middle:.0f} pixels across{small}; {counted(tiles, 'tile')} a slice"
    )


def _tiles(slice_mm: tuple[float, float], proposal: Proposal) -> int:
    """Return the number of tiles of a slice."""
    step = proposal.patch_px * (1 - OVERLAP)
    rest = (side / proposal.pixel_mm - proposal.patch_px for side in slice_mm)
    return math.prod(1 + max(0, math.ceil(pixels / step)) for pixels in rest)


def _measures(diameters: npt.NDArray[np.float64], volumes: npt.NDArray[np.float64], voxel_mm: float) -> str:
    """Return settings of the evaluation that fit these lesions better than the defaults; "" if the defaults fit."""
    advice = []
    middle = float(np.median(diameters))
    if (tolerance := surface_tolerance(diameters, voxel_mm)) is not None:
        advice.append(
            f"surface_mm {tolerance:g} (the usual {TOLERANCE_MM:g} mm is {TOLERANCE_MM / middle:.0%} of a "
            "median lesion)"
        )
    if (edges := size_bins(volumes)) is not None:
        text = ",".join(f"{edge:g}" for edge in edges)
        advice.append(f"bins_ml [{text}] (of the usual ones, one holds nearly all lesions)")
    return f"for model.protocol and mois evaluate: {'; '.join(advice)}" if advice else ""


def surface_tolerance(diameters: npt.NDArray[np.float64], voxel_mm: float) -> float | None:
    """Return a tolerance of the surface Dice in mm that fits the lesions; None if the usual 2 mm fit.

    Args:
        diameters: (L,) diameters of all lesions in mm, L >= 1.
        voxel_mm: Edge of a voxel in a slice, in mm.
    """
    middle = float(np.median(diameters))
    if middle / 16 <= TOLERANCE_MM <= middle / 2:
        return None
    return float(f"{max(middle / 8, voxel_mm):.1g}")


def size_bins(volumes: npt.NDArray[np.float64]) -> list[float] | None:
    """Return volumes in ml between size bins of about as many lesions each; None if the usual bins fit.

    Args:
        volumes: (L,) volumes of all lesions in ml, L >= 1.
    """
    bins = np.digitize(volumes, BINS_ML)
    if np.bincount(bins).max() <= 0.9 * len(volumes):
        return None
    return sorted({float(f"{edge:.2g}") for edge in np.quantile(volumes, (0.25, 0.5, 0.75))})


def _span(values: Sequence[float]) -> str:
    low, high = _digits(min(values)), _digits(max(values))
    return low if low == high else f"{low} to {high}"


def _digits(value: float) -> str:
    return f"{value:.3g}"
