"""What became of the lesions of a patient between two scans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["same", "new", "gone", "merged", "split", "regrouped", "outside"]
CUT_OFF_PERCENT = 5.0
"""Share of a lesion outside the other scan from which its volumes are not compared."""


@dataclass(frozen=True)
class Change:
    """What became of a lesion.

    Attributes:
        status: `same`, `new`, `gone`; `merged` (several became one), `split` (one became several), `regrouped` (several
            became several others); `outside` (the other scan does not show this place).
        lesions: Ids in the scan of now.
        earlier: Ids in the earlier scan.
        ml_before: Volume in the earlier scan, in millilitres, by its own voxels; 0 if it has no such lesion.
        ml_now: Volume now, in millilitres, by the voxels of the scan of now; 0 if it has no such lesion.
        change_percent: Change of the volume in percent. None for a new lesion, and if one of the scans cuts the lesion
            off.
        centre_lps_mm: Centre in the scan of now, LPS mm. Of a lesion that is gone, the place where it was.
        matched_by: `overlap`, `appearance`, or empty.
        outside_percent: Share of the lesion that the other scan does not show, in percent; the larger one of both
            scans.
    """

    status: Status
    lesions: tuple[int, ...]
    earlier: tuple[int, ...]
    ml_before: float
    ml_now: float
    change_percent: float | None
    centre_lps_mm: tuple[float, float, float]
    matched_by: str = ""
    outside_percent: float = 0.0

    @property
    def in_both(self) -> bool:
        """Whether both scans show the place of the lesion, whole."""
        return self.status != "outside" and self.outside_percent < CUT_OFF_PERCENT


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
        return percent(self.ml_before, self.ml_now)

    @property
    def ml_in_both(self) -> tuple[float, float]:
        """Volume before and now of the lesions whose place both scans show, whole, in millilitres."""
        shown = [change for change in self.changes if change.in_both]
        return sum(change.ml_before for change in shown), sum(change.ml_now for change in shown)

    @property
    def shows_the_same(self) -> bool:
        """Whether both scans show the places of all lesions, whole."""
        return all(change.in_both for change in self.changes)

    def count(self, status: Status) -> int:
        """Return the number of entries with this status."""
        return sum(change.status == status for change in self.changes)


def percent(before: float, now: float) -> float | None:
    """Return a change in percent of what was before; None if nothing was before."""
    return None if before == 0 else 100 * (now - before) / before
