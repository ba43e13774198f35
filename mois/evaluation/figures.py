"""Scores of a scan: figures, a row for each lesion, and curves over the number of exemplars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import isnan
from typing import Any, Literal

import numpy as np

from mois.evaluation.actions.points import ActionPoint, NegativePoint
from mois.evaluation.settings import surface_key
from mois.files.json_records import as_record
from mois.metrics.surface import SURFACE_MM

Role = Literal["prompted", "promptable", "never"]
BodyThird = Literal["lower", "middle", "upper"]


def measured(value: float) -> float | None:
    """Return None for NaN: a figure that could not be measured is null in every file, never zero."""
    return None if isnan(value) else float(value)


@dataclass(frozen=True)
class Figures:
    """The figures of one class of one scan. A figure is None if there is nothing to measure it on.

    `right`, `wrong`, `swapped` and `no_exemplars` are voxel Dice on lesions that are never prompted.

    - The promptable lesions of every class are taken out of truth and prediction, with a margin around each.
    - All four figures leave out the same voxels. So an answer that ignores its exemplars scores right = wrong exactly.
    - The same share of lesions is taken out of every class. So no class is favoured.

    The figures from `unprompted_dice` to `unprompted_volume_absolute_error_percent` score what was propagated, on the
    lesions of this class that were not prompted this time. The prompted lesions are taken out. Found lesions of other
    classes count as false. Lesions are matched one to one, IoU >= 0.1.

    The figures whose names begin with `scan` score the reader's final result on all lesions of the class. The final
    result is the prompted and tracked lesions, and the propagated ones.

    Attributes:
        right: Dice with exemplars of this class.
        wrong: Dice on the same lesions, with exemplars of another class; the mean over the other classes.
        swapped: Dice on the never-prompted lesions of the other classes, with their own exemplars; the mean over these
            classes. It shows a model that answers other exemplars with nothing.
        no_exemplars: Dice on the lesions of `right`, with K = 0.
        exemplar_gain: `right` minus `no_exemplars`; below 0 the exemplars do harm.
        unprompted_dice: Voxel Dice.
        lesion_f1: Lesion F1.
        lesion_precision: Share of the found lesions that are true.
        lesion_recall: Share of the true lesions that were found.
        false_lesions: Number of found lesions that match no true lesion: `false_apart` and `fragments` together.
        false_apart: Number of false lesions that touch no true voxel of any class.
        fragments: Number of false lesions that touch a true voxel: mostly further pieces of a lesion that was found.
        unprompted_panoptic_quality: Sum of IoU over pairs of IoU >= 0.5, over the mean count of true and found lesions.
        unprompted_surface_dice: Share of both surfaces within `ProtocolSettings.surface_mm` of the other surface.
        unprompted_volume_error_ml: Found minus true volume.
        unprompted_volume_error_percent: Found minus true volume, in percent of the true volume.
        unprompted_volume_absolute_error_percent: The volume error in percent, without its sign.
        prompted_dice: Mean Dice in 3-D of the prompted lesions, each clicked on one slice and tracked.
        prompted_lesions: Number of prompted lesions.
        prompted_clicks: Number of clicks. A correction is no click if nothing is wrong.
        scan_dice: Voxel Dice of the whole scan.
        scan_lesion_f1: Lesion F1 of the whole scan.
        scan_lesion_precision: Lesion precision of the whole scan.
        scan_lesion_recall: Lesion recall of the whole scan.
        scan_false_lesions: Number of false lesions in the whole scan.
        scan_false_apart: Number of false lesions in the whole scan that touch no true voxel.
        scan_fragments: Number of false lesions in the whole scan that touch a true voxel.
        scan_panoptic_quality: Panoptic quality of the whole scan.
        scan_surface_dice: Surface Dice of the whole scan.
        scan_volume_error_ml: Found minus true volume of the whole scan.
        scan_volume_error_percent: Volume error of the whole scan, in percent of the true volume.
        scan_volume_absolute_error_percent: Volume error of the whole scan in percent, without its sign.
    """

    right: float | None = None
    wrong: float | None = None
    swapped: float | None = None
    no_exemplars: float | None = None
    exemplar_gain: float | None = None
    unprompted_dice: float | None = None
    lesion_f1: float | None = None
    lesion_precision: float | None = None
    lesion_recall: float | None = None
    false_lesions: float | None = None
    unprompted_panoptic_quality: float | None = None
    unprompted_surface_dice: float | None = None
    unprompted_volume_error_ml: float | None = None
    unprompted_volume_error_percent: float | None = None
    unprompted_volume_absolute_error_percent: float | None = None
    prompted_dice: float | None = None
    prompted_lesions: float | None = None
    prompted_clicks: float | None = None
    scan_dice: float | None = None
    scan_lesion_f1: float | None = None
    scan_lesion_precision: float | None = None
    scan_lesion_recall: float | None = None
    scan_false_lesions: float | None = None
    scan_panoptic_quality: float | None = None
    scan_surface_dice: float | None = None
    scan_volume_error_ml: float | None = None
    scan_volume_error_percent: float | None = None
    scan_volume_absolute_error_percent: float | None = None
    false_apart: float | None = None
    fragments: float | None = None
    scan_false_apart: float | None = None
    scan_fragments: float | None = None

    @classmethod
    def of_exemplar_dice(
        cls, right: float | None, wrong: float | None, swapped: float | None, no_exemplars: float | None
    ) -> Figures:
        """Return the figures that compare exemplars, without the others."""
        gain = None if right is None or no_exemplars is None else right - no_exemplars
        return cls(right, wrong, swapped, no_exemplars, gain)

    @classmethod
    def mean(cls, parts: Sequence[Figures]) -> Figures:
        """Return the mean of each figure over the parts in which it was measured."""
        return cls(**{field.name: mean_of([getattr(part, field.name) for part in parts]) for field in fields(cls)})


FIGURES: tuple[str, ...] = tuple(field.name for field in fields(Figures))

_LESION_KEYS = {"precision": "lesion_precision", "recall": "lesion_recall", "f1": "lesion_f1"}
_QUALITY_AND_VOLUME = ("panoptic_quality", "volume_error_ml", "volume_error_percent", "volume_absolute_error_percent")
KEYS: dict[str, tuple[str, ...]] = {
    "scan_dice": ("scan_dice",),
    **{name: ("conditioning", name) for name in ("right", "wrong", "swapped", "no_exemplars", "exemplar_gain")},
    "unprompted_dice": ("unprompted", "dice"),
    **{name: ("unprompted", word) for word, name in _LESION_KEYS.items()},
    "false_lesions": ("unprompted", "fp_per_scan"),
    **{name: ("unprompted", name) for name in ("false_apart", "fragments")},
    "unprompted_surface_dice": ("unprompted", surface_key(SURFACE_MM)),
    **{f"unprompted_{word}": ("unprompted", word) for word in _QUALITY_AND_VOLUME},
    **{f"prompted_{word}": ("prompted", word) for word in ("dice", "lesions", "clicks")},
    **{f"scan_{name}": ("scan", word) for word, name in _LESION_KEYS.items()},
    "scan_false_lesions": ("scan", "fp_per_scan"),
    **{f"scan_{name}": ("scan", name) for name in ("false_apart", "fragments")},
    "scan_surface_dice": ("scan", surface_key(SURFACE_MM)),
    **{f"scan_{word}": ("scan", word) for word in _QUALITY_AND_VOLUME},
}
"""The keys that lead to each of `Figures` in metrics.json: below `summary`, and below each of `subjects`."""


def keys(surface_mm: float = SURFACE_MM) -> dict[str, tuple[str, ...]]:
    """Return `KEYS` for a tolerance of the surface Dice, which is part of its name."""
    usual, given = surface_key(SURFACE_MM), surface_key(surface_mm)
    return {name: tuple(given if part == usual else part for part in path) for name, path in KEYS.items()}


def nested(values: Mapping[str, Any], surface_mm: float = SURFACE_MM) -> dict[str, Any]:
    """Return figures by name as metrics.json has them; see `keys`."""
    tree: dict[str, Any] = {}
    for name, path in keys(surface_mm).items():
        branch = tree
        for part in path[:-1]:
            branch = branch.setdefault(part, {})
        branch[path[-1]] = values[name]
    return tree


@dataclass(frozen=True)
class PaperFigures:
    """The same class of the same scan by the rules of arXiv 2509.19277, for comparison with its table.

    The 20 largest lesions are prompted with 3 clicks each; components under 2 ml are dropped from truth and result;
    a lesion counts as found where any voxel is; two empty masks agree.

    Attributes:
        scan_dice: Voxel Dice of the remaining components.
        f1: Lesion F1 by any overlap.
        precision: Lesion precision by any overlap.
        recall: Lesion recall by any overlap.
        gated_scan_dice: As `scan_dice`, but nothing is propagated if the truth has fewer than 20 components. The
            paper's evaluation did this. It needs the truth.
        gated_f1: As `f1`, with the same gate.
    """

    scan_dice: float | None = None
    f1: float | None = None
    precision: float | None = None
    recall: float | None = None
    gated_scan_dice: float | None = None
    gated_f1: float | None = None

    @classmethod
    def mean(cls, parts: Sequence[PaperFigures]) -> PaperFigures:
        """Return the mean of each figure over the parts in which it was measured."""
        return cls(**{field.name: mean_of([getattr(part, field.name) for part in parts]) for field in fields(cls)})


@dataclass(frozen=True)
class CountPoint:
    """One point of the curves over the number of exemplars, on the never-prompted lesions of `Figures.right`.

    Attributes:
        count: Exemplars asked for; 0 is `Figures.no_exemplars`.
        used: Exemplars used: fewer if the class has too few lesions that may be prompted.
        right: As in `Figures`.
        wrong: As in `Figures`.
        swapped: As in `Figures`.
        lesion_f1: On the never-prompted lesions, with exemplars of this class.
        clicks: Clicks on each prompted lesion.
        lesion_precision: As `lesion_f1`.
        lesion_recall: As `lesion_f1`.
        false_lesions: As `lesion_f1`.
    """

    count: int
    used: float
    right: float | None
    wrong: float | None
    swapped: float | None
    lesion_f1: float | None
    clicks: int = 1
    lesion_precision: float | None = None
    lesion_recall: float | None = None
    false_lesions: float | None = None


@dataclass(frozen=True)
class TrueLesionRow:
    """One true lesion, and how well it was found.

    Attributes:
        lesion: Its id in the instance map.
        volume_ml: Its true volume.
        role: `prompted`; `promptable` but not prompted this time; `never` prompted.
        found: Whether a found lesion matches it, one to one, IoU >= 0.1. For a prompted lesion this is a lesion of the
            final result, for any other lesion a propagated one (as in `Figures.lesion_recall`).
        iou: IoU with the matching lesion; 0 without a match.
        dice: Dice with the matching lesion. For a prompted lesion: Dice with what its own click gave.
        x_mm: Centre of mass towards the left, LPS.
        y_mm: Centre of mass towards the back, LPS.
        z_mm: Centre of mass towards the head, LPS.
        third: Third of the scan, from feet to head, that holds its centre.
        contrast: Mean normalised intensity inside minus the mean in a ring around it; None if other lesions fill the
            ring.
        fragments: Number of false lesions that touch it; None in results of earlier versions.
    """

    lesion: int
    volume_ml: float
    role: Role
    found: bool
    iou: float
    dice: float
    x_mm: float = 0.0
    y_mm: float = 0.0
    z_mm: float = 0.0
    third: BodyThird = "middle"
    contrast: float | None = None
    fragments: int | None = None


@dataclass(frozen=True)
class CandidateRow:
    """A candidate before `InferenceSettings.peak_threshold` is applied. Calibrations are fitted on candidates.

    Attributes:
        peak: Highest probability in the candidate.
        hit: Whether the candidate matches a true lesion of the class, one to one among all candidates, IoU >= 0.1.
        volume_ml: Volume of the candidate.
    """

    peak: float
    hit: bool
    volume_ml: float


@dataclass(frozen=True)
class ClassReport:
    """One class of one scan.

    Attributes:
        target_class: The class.
        figures: Its figures.
        curve: Points over numbers of exemplars, for each number of clicks.
        lesions: One row per true lesion.
        false_volumes_ml: Volumes of the false propagated lesions.
        paper: Figures by the paper's rules, if they were asked for.
        actions: Points over the actions of simulated readers, if they were asked for.
        negatives: What one negative exemplar changes, if the curves over actions were asked for.
    """

    target_class: int
    figures: Figures
    curve: tuple[CountPoint, ...]
    lesions: tuple[TrueLesionRow, ...]
    false_volumes_ml: tuple[float, ...] = ()
    paper: PaperFigures | None = None
    actions: tuple[ActionPoint, ...] = ()
    negatives: tuple[NegativePoint, ...] = ()


@dataclass(frozen=True)
class SubjectReport:
    """One scan.

    Attributes:
        subject: Name of the scan.
        patient: Name of the patient.
        classes: Reports on the target class, or on every class that has lesions in the scan.
        false_without_exemplars: Lesions found with K = 0 that touch no true lesion of any class.
        seconds: Wall seconds by step.
        candidates: Candidates of every scored class, outside of the prompted lesions.
    """

    subject: str
    patient: str
    classes: tuple[ClassReport, ...]
    false_without_exemplars: int
    seconds: dict[str, float]
    candidates: tuple[CandidateRow, ...] = ()

    @property
    def figures(self) -> Figures:
        """Mean over the classes."""
        return Figures.mean([report.figures for report in self.classes])

    @property
    def paper(self) -> PaperFigures | None:
        """Mean over the classes; None if the paper's rules were not asked for."""
        parts = [report.paper for report in self.classes if report.paper is not None]
        return PaperFigures.mean(parts) if parts else None

    @property
    def lesions(self) -> tuple[TrueLesionRow, ...]:
        """Rows of every class."""
        return tuple(row for report in self.classes for row in report.lesions)

    def curve(self) -> tuple[CountPoint, ...]:
        """Return the points of the curve, each the mean over the classes."""
        keys = dict.fromkeys((point.clicks, point.count) for report in self.classes for point in report.curve)
        return tuple(
            _mean_point([p for r in self.classes for p in r.curve if (p.clicks, p.count) == key]) for key in keys
        )

    def row(self, surface_mm: float = SURFACE_MM) -> dict[str, Any]:
        """Return the scan as one flat row of a table; the tolerance of the surface Dice is part of its name."""
        return {
            "subject": self.subject,
            "patient": self.patient,
            "classes": " ".join(str(report.target_class) for report in self.classes),
            "lesions": len(self.lesions),
            **{"_".join(path): getattr(self.figures, name) for name, path in keys(surface_mm).items()},
            "false_without_exemplars": self.false_without_exemplars,
            **({f"paper_{name}": value for name, value in asdict(self.paper).items()} if self.paper else {}),
            **{f"seconds_{step}": round(spent, 3) for step, spent in self.seconds.items()},
        }

    def entry(self, surface_mm: float = SURFACE_MM) -> dict[str, Any]:
        """Return the scan as it stands in `subjects` of metrics.json."""
        return {
            "subject": self.subject,
            "patient": self.patient,
            "classes": [report.target_class for report in self.classes],
            "lesions": len(self.lesions),
            **nested(asdict(self.figures), surface_mm),
            "false_without_exemplars": self.false_without_exemplars,
            **({"paper": asdict(self.paper)} if self.paper else {}),
            "seconds": {step: round(spent, 3) for step, spent in self.seconds.items()},
        }

    def to_json(self) -> dict[str, Any]:
        """Return the whole report as plain values for JSON; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Any, name: str = "the report") -> SubjectReport:
        """Return the report that `to_json` stored, by this version or an earlier one.

        Raises:
            DataError: If it is no report.
        """
        return as_record(stored, cls, name, "score the scan again", complete=False)


def _mean_point(points: Sequence[CountPoint]) -> CountPoint:
    def mean(name: str) -> float | None:
        return mean_of([getattr(point, name) for point in points])

    names = ("right", "wrong", "swapped", "lesion_f1", "lesion_precision", "lesion_recall", "false_lesions")
    return CountPoint(
        count=points[0].count,
        used=mean("used") or 0.0,
        clicks=points[0].clicks,
        **{name: mean(name) for name in names},
    )


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None; None if all are None."""
    measured = [value for value in values if value is not None and not np.isnan(value)]
    return float(np.mean(measured)) if measured else None
