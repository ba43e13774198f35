"""What an evaluation says about a scan: figures, one row per lesion, and curves over the number of exemplars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from math import isnan
from typing import Any, Literal

from mois.metrics import mean_of

Role = Literal["prompted", "promptable", "never"]


def measured(value: float) -> float | None:
    """Return None for NaN: what could not be measured is null in every file, never zero."""
    return None if isnan(value) else float(value)


@dataclass(frozen=True)
class Figures:
    """The figures of one class of one scan; None where there is nothing to measure them on.

    `right`, `wrong`, `swapped` and `no_exemplars` are voxel Dice on lesions that are never prompted, however many are.
    The lesions that may be prompted, of every class, are taken out of truth and prediction alike, with a margin around
    each: the same voxels for all four, so that an answer that ignores its exemplars scores right = wrong exactly, and
    as large a share of the other classes' lesions as of the scored class's, so that neither is favoured.

    Attributes:
        right: With exemplars of this class.
        wrong: On the same lesions, with exemplars of another class (mean over the other classes).
        swapped: On the never-prompted lesions of the other classes, with their own exemplars (mean over them): an empty
            answer to the wrong exemplars is no way out.
        no_exemplars: On the lesions of `right`, with K = 0.
        unprompted_dice: Voxel Dice of what is propagated on every lesion of this class that was not prompted this time,
            the prompted ones being taken out; lesions of other classes that were found count against it.
        lesion_f1: Of the same lesions and answer as `unprompted_dice`, one to one, IoU >= 0.1.
        lesion_precision: Likewise.
        lesion_recall: Likewise.
        false_lesions: How many of the lesions found there are none.
        prompted_dice: Mean over the prompted lesions of each one's own Dice in 3-D, clicked on one slice and tracked.
        scan_dice: Voxel Dice of all that the reader ends up with (prompted and tracked, and propagated) on all lesions
            of the class.
        scan_lesion_f1: Of the same, one to one, IoU >= 0.1.
        scan_lesion_precision: Likewise.
        scan_lesion_recall: Likewise.
    """

    right: float | None = None
    wrong: float | None = None
    swapped: float | None = None
    no_exemplars: float | None = None
    unprompted_dice: float | None = None
    lesion_f1: float | None = None
    lesion_precision: float | None = None
    lesion_recall: float | None = None
    false_lesions: float | None = None
    prompted_dice: float | None = None
    scan_dice: float | None = None
    scan_lesion_f1: float | None = None
    scan_lesion_precision: float | None = None
    scan_lesion_recall: float | None = None

    @classmethod
    def mean(cls, parts: Sequence[Figures]) -> Figures:
        """Return the mean of each figure over the parts in which it was measured."""
        return cls(**{field.name: mean_of([getattr(part, field.name) for part in parts]) for field in fields(cls)})


FIGURES: tuple[str, ...] = tuple(field.name for field in fields(Figures))


@dataclass(frozen=True)
class CountPoint:
    """One point of the curves over the number of exemplars, on the never-prompted lesions of `Figures.right`.

    Attributes:
        count: Exemplars asked for.
        used: Exemplars there were: fewer where the class has too few lesions that may be prompted.
        right: As in `Figures`.
        wrong: As in `Figures`.
        swapped: As in `Figures`.
        lesion_f1: Lesion F1 on the never-prompted lesions, with exemplars of this class.
    """

    count: int
    used: float
    right: float | None
    wrong: float | None
    swapped: float | None
    lesion_f1: float | None


@dataclass(frozen=True)
class LesionRow:
    """What became of one true lesion in the reader's final result.

    Attributes:
        lesion: Its id in the instance map.
        volume_ml: Its true volume.
        role: `prompted`; `promptable` but not prompted this time; `never` prompted.
        found: Whether a found lesion matches it, one to one, IoU >= 0.1.
        iou: With that lesion; 0 where there is none.
        dice: With that lesion; of a prompted lesion: with what its own click gave.
    """

    lesion: int
    volume_ml: float
    role: Role
    found: bool
    iou: float
    dice: float


@dataclass(frozen=True)
class ClassReport:
    """One class of one scan."""

    target_class: int
    figures: Figures
    curve: tuple[CountPoint, ...]
    lesions: tuple[LesionRow, ...]


@dataclass(frozen=True)
class SubjectReport:
    """One scan.

    Attributes:
        subject: Name of the scan.
        patient: Whom it was taken of.
        classes: Of the target class, or of every class that the scan has lesions of; empty where it has none.
        false_without_exemplars: Lesions found with K = 0 that touch no true lesion of any class.
        seconds: Wall seconds by step.
    """

    subject: str
    patient: str
    classes: tuple[ClassReport, ...]
    false_without_exemplars: int
    seconds: dict[str, float]

    @property
    def figures(self) -> Figures:
        """Mean over the classes."""
        return Figures.mean([report.figures for report in self.classes])

    def curve(self) -> tuple[CountPoint, ...]:
        """Return the points of the curve, each the mean over the classes."""
        counts = dict.fromkeys(point.count for report in self.classes for point in report.curve)
        return tuple(_mean_point([p for r in self.classes for p in r.curve if p.count == count]) for count in counts)

    def row(self) -> dict[str, Any]:
        """Return the scan as one flat row of a table."""
        return {
            "subject": self.subject,
            "patient": self.patient,
            "classes": " ".join(str(report.target_class) for report in self.classes),
            "lesions": sum(len(report.lesions) for report in self.classes),
            **asdict(self.figures),
            "false_without_exemplars": self.false_without_exemplars,
            **{f"seconds_{step}": round(spent, 3) for step, spent in self.seconds.items()},
        }


def _mean_point(points: Sequence[CountPoint]) -> CountPoint:
    return CountPoint(
        count=points[0].count,
        used=mean_of([point.used for point in points]) or 0.0,
        right=mean_of([point.right for point in points]),
        wrong=mean_of([point.wrong for point in points]),
        swapped=mean_of([point.swapped for point in points]),
        lesion_f1=mean_of([point.lesion_f1 for point in points]),
    )
