"""Changes scans so that they look like scans of another scanner: other field strengths, coils and protocols.

Only the image changes. Grid, true lesions, prompted lesions and clicks stay. So every difference in the figures comes
from the image. The background (`mois.intensities.find_background`) does not change.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchio as tio
from torch import Tensor

from mois.evaluation.figures import SubjectReport
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.statistics import estimate, paired_gain
from mois.geometry import SliceGrid
from mois.intensities import find_background
from mois.records import Channel, Volume

COARSER_PIXELS = 1.5
"""Factor of the pixel size in the change `coarser_pixels`."""
WHITE_QUANTILE = 0.995
FIGURES = {"dice": "unprompted_dice", "f1": "lesion_f1"}
"""Name in robustness.json to name in `Figures`."""

Change = Callable[[Tensor, Volume], Tensor]
"""Returns the changed image (I, J, K). The given image is 1 at its 99.5th percentile. Uses the global torch seed."""


def _change_by(transform: tio.Transform) -> Change:
    def change(image: Tensor, volume: Volume) -> Tensor:
        scan = tio.ScalarImage(tensor=image.unsqueeze(0), affine=volume.affine.numpy())
        return torch.as_tensor(transform(scan).data)[0]

    return change


def _coarser(image: Tensor, volume: Volume) -> Tensor:
    """Resample to pixels 1.5 times as large in plane, and back to the grid of the scan."""
    grid = SliceGrid.of(volume.shape, volume.affine)
    wider = [mm * (1 if axis == grid.order[0] else COARSER_PIXELS) for axis, mm in enumerate(volume.grid.spacing_mm)]
    target = (wider[0], wider[1], wider[2])
    scan = tio.ScalarImage(tensor=image.unsqueeze(0), affine=volume.affine.numpy())
    coarse = tio.Resample(target, image_interpolation="linear", antialias=True)(scan)
    back = tio.Resample(scan, image_interpolation="linear")(coarse)
    return torch.as_tensor(back.data)[0]


CHANGES: dict[str, Change] = {
    "bias_field": _change_by(tio.RandomBiasField(coefficients=0.3, order=3)),
    "noise": _change_by(tio.RandomNoise(mean=0, std=(0.06, 0.06))),
    "motion": _change_by(tio.RandomMotion(degrees=0.5, translation=3, num_transforms=3)),
    "gamma": _change_by(tio.RandomGamma(log_gamma=(-0.4, 0.4))),
    "ghosting": _change_by(tio.RandomGhosting(num_ghosts=(4, 7), intensity=(1.0, 1.5))),
    "coarser_pixels": _coarser,
}
"""Name to change. Noise: standard deviation as a share of the white level. Motion: degrees and millimetres. Rotation is
at most half a degree. With more rotation, the body would no longer fit its true lesions."""


def change_scan(volume: Volume, name: str, seed: int = 0) -> Volume:
    """Return a scan with a changed image. The same seed and scan give the same voxels. Each channel changes on its own.

    Args:
        volume: The scan.
        name: One of `CHANGES`.
        seed: Seed of the random draws.

    Raises:
        ValueError: If the change is unknown.
    """
    if name not in CHANGES:
        raise ValueError(f"robustness change {name!r} is unknown; choose from {', '.join(CHANGES)}.")
    if volume.further:
        each = (
            (one, volume._replace(image=one.image, further=(), subject=_draw_of(volume, one))) for one in volume.further
        )
        further = tuple(one._replace(image=change_scan(alone, name, seed).image) for one, alone in each)
        return change_scan(volume._replace(further=()), name, seed)._replace(further=further)
    image = volume.image.float().cpu()
    background = find_background(image.numpy())
    outside = torch.zeros_like(image, dtype=torch.bool) if background is None else torch.from_numpy(background)
    if bool(outside.all()):
        return volume
    # the changes expect a signal that starts at 0; here it starts at the level of the background, such as -1024 in CT
    dark = (
        min(0.0, float(image.min()))
        if background is None
        else float(image[outside].median())
        if background.any()
        else 0.0
    )
    sorted_signal = (image[~outside] - dark).sort().values
    white = float(sorted_signal[int(WHITE_QUANTILE * (len(sorted_signal) - 1))]) or 1.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{seed} {name} {volume.subject}".encode()))
        new = CHANGES[name]((image - dark) / white, volume).to(torch.float32) * white + dark
    return volume._replace(image=torch.where(outside, image, new))


def _draw_of(volume: Volume, channel: Channel) -> str:
    """Return the name that the random draws of a further channel depend on. Each sequence is acquired on its own."""
    return f"{volume.subject} {channel.name}"


def protocol_of_changes(settings: ProtocolSettings) -> ProtocolSettings:
    """Return the settings for changed scans: the same reader, without curves, and without the rules of the paper."""
    return replace(settings, counts=(), curve_clicks=(), actions=(), rules="ours")


@dataclass(frozen=True)
class ChangedScan:
    """The figures of one scan under each change.

    Attributes:
        subject: Name of the scan.
        patient: Name of the patient.
        figures: Change to figure (`dice`, `f1`) to value; None if it could not be measured.
    """

    subject: str
    patient: str
    figures: dict[str, dict[str, float | None]]


def robustness_figures(report: SubjectReport) -> dict[str, float | None]:
    """Return the figures of a scan that measure robustness."""
    return {name: getattr(report.figures, field) for name, field in FIGURES.items()}


def summarise_changes(
    unchanged: Sequence[SubjectReport], scans: Sequence[ChangedScan], *, seed: int = 0
) -> dict[str, Any]:
    """Return the content of robustness.json.

    Args:
        unchanged: Reports on the scans as they are.
        scans: The same scans, changed.
        seed: Seed of the bootstrap.

    Returns:
        `unchanged`: figures as estimates. `changes`: for each change the figures, and `change_dice` and `change_f1`,
        the paired differences to the unchanged scans (below 0: worse).
    """
    before = {report.subject: (report.patient, robustness_figures(report)) for report in unchanged}
    names = dict.fromkeys(change for scan in scans for change in scan.figures)

    def summary_of(change: str) -> Mapping[str, Any]:
        rows = [(before[scan.subject], scan.figures.get(change, {})) for scan in scans]
        figures = {
            name: estimate([(patient, new.get(name)) for (patient, _), new in rows], seed=seed) for name in FIGURES
        }
        gains = {
            f"change_{name}": paired_gain(
                [(patient, old[name], new.get(name)) for (patient, old), new in rows], seed=seed
            )
            for name in FIGURES
        }
        return {**figures, **gains}

    return {
        "unchanged": {
            name: estimate([(patient, figures[name]) for patient, figures in before.values()], seed=seed)
            for name in FIGURES
        },
        "changes": {change: summary_of(change) for change in names},
    }
