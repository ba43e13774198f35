"""Lesions of two time points of a patient: which are the same, new or gone, and how their volumes change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mois.errors import DataError
from mois.files.atomic import write_text
from mois.files.csv_tables import csv_text
from mois.intensities import normalise
from mois.records import Volume
from mois.scans.labels import whole_numbers
from mois.scans.registration import moved_mm, register, same_place, voxel_places
from mois.scans.volumes import read_on_grid
from mois.session.header import read_scan
from mois.session.journal import NAME, find_journal, read_journal

Status = Literal["same", "new", "gone", "merged", "split"]
LEAST_OVERLAP = 0.1
"""Overlap (Dice) from which two lesions are the same."""
SWALLOWED = 0.5
"""Share of a lesion within another lesion from which both are one."""
NEAR_MM = 15.0
"""Largest distance of the centres of lesions that do not overlap, for a match by appearance."""
ALIKE = 1.0
"""Largest difference in appearance of lesions that do not overlap; see `_difference`."""
_INTENSITY, _VOLUME = 0.3, 4.0
"""Difference in normalised intensity, and ratio of volumes, that count as a difference of 1."""


class TimePoint(NamedTuple):
    """A scan with its lesions.

    Attributes:
        volume: The scan.
        labels: Lesion ids on its grid, (I, J, K) int32.
    """

    volume: Volume
    labels: Tensor


class HasLesions(Protocol):
    """A session, or anything else with a scan and its lesions."""

    @property
    def volume(self) -> Volume:
        """The scan."""

    def label_map(self) -> Tensor:
        """Return the lesion ids on the grid of the scan, (I, J, K) int32."""


@dataclass(frozen=True)
class Change:
    """What became of a lesion.

    Attributes:
        status: `same`, `new`, `gone`; `merged` (several became one) or `split` (one became several).
        lesions: Ids in the scan of now.
        earlier: Ids in the earlier scan.
        ml_before: Volume in the earlier scan, in millilitres; 0 for a new lesion.
        ml_now: Volume now, in millilitres; 0 if the lesion is gone.
        change_percent: Change of the volume in percent; None for a new lesion.
        centre_lps_mm: Centre in the scan of now, LPS mm. Of a lesion that is gone, the place where it was.
        matched_by: `overlap`, `appearance`, or empty.
    """

    status: Status
    lesions: tuple[int, ...]
    earlier: tuple[int, ...]
    ml_before: float
    ml_now: float
    change_percent: float | None
    centre_lps_mm: tuple[float, float, float]
    matched_by: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two time points of a patient.

    Attributes:
        changes: One entry for each lesion or group of lesions: in the order of the ids now, then those that are gone.
        ml_before: Volume of all lesions in the earlier scan, in millilitres.
        ml_now: Volume of all lesions now, in millilitres.
        registered: Whether the scans lie on different grids and were registered.
        moved_mm: How far the registration moved the middle of the scan, in mm.
    """

    changes: tuple[Change, ...]
    ml_before: float
    ml_now: float
    registered: bool
    moved_mm: float

    @property
    def change_percent(self) -> float | None:
        """Change of the volume of all lesions in percent; None if there were none before."""
        return _percent(self.ml_before, self.ml_now)

    def count(self, status: Status) -> int:
        """Return the number of entries with this status."""
        return sum(change.status == status for change in self.changes)


class _Lesions(NamedTuple):
    """The lesions of a time point, with N lesions.

    Attributes:
        ids: (N,), ascending.
        ml: (N,) volumes in millilitres.
        centres: (N, 3), RAS mm in the scan of now.
        intensity: (N,) mean normalised intensity.
    """

    ids: NDArray[np.int64]
    ml: NDArray[np.float64]
    centres: NDArray[np.float64]
    intensity: NDArray[np.float64]


def compare_time_points(earlier: TimePoint, now: TimePoint) -> Comparison:
    """Match the lesions of two scans of a patient.

    Scans on different grids are registered first: rigid, so a body that bends is matched less well. Lesions that
    overlap are the same; a lesion that lies within another by half belongs to it. Lesions that are left are the same if
    they lie near each other and look alike. Volumes are those of each scan's own voxels.

    Raises:
        ValueError: If the scans are of two patients, or show no common part of the body.
    """
    if earlier.volume.patient != now.volume.patient:
        raise ValueError(
            f"the scans are of two patients, {earlier.volume.patient} and {now.volume.patient}; give two scans of one "
            "patient, or name the patient alike."
        )
    on_one_grid = same_place(earlier.volume, now.volume)
    motion = np.eye(4) if on_one_grid else register(earlier.volume, now.volume)
    ids, places = voxel_places(earlier.labels, earlier.volume.affine)
    places = places @ motion[:3, :3].T + motion[:3, 3]
    then = _lesions(ids, places, earlier)
    here = _lesions(*voxel_places(now.labels, now.volume.affine), now)
    overlap_ml = _overlap_ml(ids, places, now, then, here) * earlier.volume.grid.voxel_ml
    changes = _changes(then, here, overlap_ml)
    moved = 0.0 if on_one_grid else moved_mm(motion, earlier.volume)
    return Comparison(tuple(changes), float(then.ml.sum()), float(here.ml.sum()), not on_one_grid, moved)


def _lesions(ids: NDArray[np.int64], places: NDArray[np.float64], of: TimePoint) -> _Lesions:
    known, at, counts = np.unique(ids, return_inverse=True, return_counts=True)
    centres = np.stack([np.bincount(at, places[:, axis], len(known)) for axis in range(3)], axis=1)
    shown = normalise(of.volume.image, channel=of.volume.channel, known=of.volume.levels)
    values = shown[of.labels != 0].double().cpu().numpy()
    intensity = np.bincount(at, values, len(known))
    return _Lesions(
        known, (counts * of.volume.grid.voxel_ml).astype(np.float64), centres / counts[:, None], intensity / counts
    )


def _overlap_ml(
    ids: NDArray[np.int64], places: NDArray[np.float64], now: TimePoint, then: _Lesions, here: _Lesions
) -> NDArray[np.float64]:
    """Return how many voxels of each earlier lesion lie in each lesion of now, (M, N)."""
    matrix = np.linalg.inv(now.volume.affine.double().cpu().numpy())
    index = np.rint(places @ matrix[:3, :3].T + matrix[:3, 3]).astype(np.int64)
    inside = ((index >= 0) & (index < np.array(now.volume.shape))).all(1)
    met = now.labels.numpy()[tuple(index[inside].T)]
    rows, columns = np.searchsorted(then.ids, ids[inside][met > 0]), np.searchsorted(here.ids, met[met > 0])
    counts = np.zeros((len(then.ids), len(here.ids)))
    np.add.at(counts, (rows, columns), 1.0)
    return counts


def _changes(then: _Lesions, here: _Lesions, overlap_ml: NDArray[np.float64]) -> list[Change]:
    """Return the entries of all lesions."""
    dice = 2 * overlap_ml / (then.ml[:, None] + here.ml[None, :])
    pairs = {int(i): int(j) for i, j in zip(*linear_sum_assignment(-dice), strict=True) if dice[i, j] >= LEAST_OVERLAP}
    by_overlap = set(pairs)
    before = {j: [i] for i, j in pairs.items()}  # lesion of now -> earlier lesions
    after = {i: [j] for i, j in pairs.items()}
    for i in [i for i in range(len(then.ids)) if i not in after]:
        j = int(overlap_ml[i].argmax()) if len(here.ids) else -1
        if j in before and len(after[before[j][0]]) == 1 and overlap_ml[i, j] >= SWALLOWED * then.ml[i]:
            before[j].append(i)
            after[i] = [j]
    for j in [j for j in range(len(here.ids)) if j not in before]:
        i = int(overlap_ml[:, j].argmax()) if len(then.ids) else -1
        if i in by_overlap and len(before[after[i][0]]) == 1 and overlap_ml[i, j] >= SWALLOWED * here.ml[j]:
            after[i].append(j)
            before[j] = [i]
    for i, j in _alike(then, here, set(after), set(before)):
        before[j], after[i] = [i], [j]
    found = []
    for j in range(len(here.ids)):
        olds = before.get(j, [])
        news = after[olds[0]] if olds else [j]
        if news[0] == j:
            found.append(_change(then, here, olds, news, "overlap" if set(olds) & by_overlap else "appearance"))
    return [*found, *(_change(then, here, [i], [], "") for i in range(len(then.ids)) if i not in after)]


def _alike(then: _Lesions, here: _Lesions, old: set[int], new: set[int]) -> list[tuple[int, int]]:
    """Return pairs of lesions that are left, lie near each other and look alike."""
    rows = [i for i in range(len(then.ids)) if i not in old]
    columns = [j for j in range(len(here.ids)) if j not in new]
    if not rows or not columns:
        return []
    cost = np.array([[_difference(then, here, i, j) for j in columns] for i in rows])
    chosen = zip(*linear_sum_assignment(np.minimum(cost, 1e3)), strict=True)
    return [(rows[a], columns[b]) for a, b in chosen if cost[a, b] <= ALIKE]


def _difference(then: _Lesions, here: _Lesions, i: int, j: int) -> float:
    """Return how much two lesions differ: the largest of the differences in place, intensity and volume, 1 is much."""
    place = float(np.linalg.norm(then.centres[i] - here.centres[j])) / NEAR_MM
    intensity = abs(float(then.intensity[i] - here.intensity[j])) / _INTENSITY
    volume = abs(float(np.log(then.ml[i] / here.ml[j]))) / float(np.log(_VOLUME))
    return max(place, intensity, volume)


def _change(then: _Lesions, here: _Lesions, olds: Sequence[int], news: Sequence[int], how: str) -> Change:
    status: Status = "same"
    if not olds or not news:
        status, how = ("gone" if olds else "new"), ""
    elif len(olds) > 1 or len(news) > 1:
        status = "merged" if len(olds) > 1 else "split"
    lesions, chosen = (here, news) if news else (then, olds)
    x, y, z = np.average(lesions.centres[list(chosen)], axis=0, weights=lesions.ml[list(chosen)]).tolist()
    before, now = float(then.ml[list(olds)].sum()), float(here.ml[list(news)].sum())
    ids = tuple(int(here.ids[j]) for j in news), tuple(int(then.ids[i]) for i in olds)
    return Change(status, *ids, before, now, _percent(before, now), (-x, -y, z), how)


def _percent(before: float, now: float) -> float | None:
    return None if before == 0 else 100 * (now - before) / before


def comparison_rows(comparison: Comparison) -> list[dict[str, str]]:
    """Return the table of a comparison as text: a row for each entry, then the row `total`."""
    rows = []
    for change in comparison.changes:
        plain = asdict(change)
        x, y, z = plain.pop("centre_lps_mm")
        numbers = {"ml_before": change.ml_before, "ml_now": change.ml_now, "change_percent": change.change_percent}
        plain |= {name: "" if value is None else f"{value:.4f}" for name, value in numbers.items()}
        plain |= {name: " ".join(map(str, plain[name])) for name in ("lesions", "earlier")}
        rows.append(plain | {"x_lps_mm": f"{x:.4f}", "y_lps_mm": f"{y:.4f}", "z_lps_mm": f"{z:.4f}"})
    total = dict.fromkeys(columns(), "") | {"status": "total"}
    percent = comparison.change_percent
    total |= {"ml_before": f"{comparison.ml_before:.4f}", "ml_now": f"{comparison.ml_now:.4f}"}
    return [*rows, total | {"change_percent": "" if percent is None else f"{percent:.4f}"}]


def columns() -> list[str]:
    """Return the columns of the table of a comparison."""
    names = [field.name for field in fields(Change) if field.name != "centre_lps_mm"]
    return [*names, "x_lps_mm", "y_lps_mm", "z_lps_mm"]


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the table of a comparison as CSV, whole or not at all."""
    write_text(path, csv_text(columns(), comparison_rows(comparison)))


def time_point_of(source: HasLesions | TimePoint | Path) -> TimePoint:
    """Return a time point, given it, a session, or the folder of a saved session."""
    if isinstance(source, TimePoint):
        return source
    return read_time_point(source) if isinstance(source, Path) else TimePoint(source.volume, source.label_map())


def read_time_point(lesions: Path, image: Path | None = None, patient: str | None = None) -> TimePoint:
    """Read a time point from files.

    Args:
        lesions: Folder of a saved session, or a label map.
        image: Image of the scan. None takes the image that the session was made on; a label map needs it.
        patient: Name of the patient. None takes that of the session, or the name of the label map.

    Raises:
        DataError: If a file is missing, or the label map is not on the grid of its scan.
    """
    if lesions.is_dir():
        header: Mapping[str, str] = read_journal(find_journal(lesions)).header
        labels, name = lesions / "lesions.nii.gz", str(header["patient"])
        if not labels.is_file():
            raise DataError(f"{lesions}: the session has no lesions.nii.gz; save it first.")
    else:
        header, labels, name = {}, lesions, lesions.name.partition(".")[0]
        if image is None:
            raise DataError(f"{lesions}: a label map does not say its scan ({NAME} does); give the image of the scan.")
    about = {"subject": name, **header, "patient": patient or name}
    volume = read_scan(dict(about) if image is None else {**about, "path": str(image), "channel_files": {}})
    values = whole_numbers(read_on_grid(labels, volume.grid, "its scan", "the label map"), labels)
    return TimePoint(volume, torch.from_numpy(np.ascontiguousarray(values, np.int32)))
