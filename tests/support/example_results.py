"""Results as an evaluation leaves them, without a model: figures drawn at random about a level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mois.evaluation.figures import CandidateRow, ClassReport, CountPoint, Figures, SubjectReport, TrueLesionRow
from mois.evaluation.result_files import write_result_files
from mois.evaluation.settings import ProtocolSettings

SECONDS = {"encode": 3.1, "click": 0.4, "describe": 0.1, "propagate": 2.2, "track": 1.1, "score": 0.6}
COUNTS, CLICKS = (0, 1, 3, 5, 10, 20), (1, 3)
PROVENANCE = {
    "code": "0.1.0 git 0123456789ab",
    "data": "ab" * 32,
    "backbone": {"name": "nano", "source": "bundled", "sha256": "cd" * 32},
    "seed": 0,
    "trainable_fraction": 0.08,
}


def example_report(
    name: str, patient: str, level: float, seed: int, *, classes: tuple[int, ...] = (1,)
) -> SubjectReport:
    """Return a report on a scan whose unprompted Dice is near `level`."""
    draw = _Draw(np.random.default_rng(seed), level)
    reports = tuple(
        ClassReport(target, draw.figures(), draw.curve(), draw.lesions(), draw.false_volumes_ml()) for target in classes
    )
    candidates = draw.candidates()
    seconds = {step: float(s * draw.rng.uniform(0.8, 1.3)) for step, s in SECONDS.items()}
    return SubjectReport(name, patient, reports, int(draw.rng.integers(0, 9)), seconds, candidates)


class _Draw:
    """Draws the parts of a report from one generator.

    Args:
        rng: The generator.
        level: Unprompted Dice that the figures lie around.
    """

    def __init__(self, rng: np.random.Generator, level: float) -> None:
        self.rng = rng
        self.level = level

    def near(self, value: float, spread: float = 0.04) -> float:
        """Return a share near a value."""
        return float(np.clip(value + self.rng.normal(0, spread), 0, 1))

    def figures(self) -> Figures:
        """Return the figures of a class."""
        near, level, rng = self.near, self.level, self.rng
        return Figures(
            right=near(level),
            wrong=near(0.3 * level),
            swapped=near(0.9 * level),
            no_exemplars=near(0.5 * level),
            unprompted_dice=level,
            lesion_f1=near(level + 0.05),
            lesion_precision=near(level + 0.1),
            lesion_recall=near(level),
            false_lesions=float(rng.integers(0, 6)),
            unprompted_panoptic_quality=near(0.7 * level),
            unprompted_surface_dice=near(level + 0.2),
            unprompted_volume_error_ml=float(rng.normal(0, 3)),
            unprompted_volume_error_percent=float(rng.normal(5, 10)),
            unprompted_volume_absolute_error_percent=float(abs(rng.normal(10, 5))),
            prompted_dice=near(0.8),
            prompted_lesions=5.0,
            prompted_clicks=5.0,
            scan_dice=near(level + 0.08),
            scan_lesion_f1=near(level + 0.1),
            scan_false_lesions=float(rng.integers(0, 6)),
        )

    def curve(self) -> tuple[CountPoint, ...]:
        """Return a figure for each number of clicks and of exemplars."""
        return tuple(self._point(count, clicks) for clicks in CLICKS for count in COUNTS)

    def _point(self, count: int, clicks: int) -> CountPoint:
        near, level, doublings = self.near, self.level, np.log2(count + 1)
        right = near(level * (0.8 + 0.08 * doublings * clicks**0.3), 0.02) if count else near(0.5 * level)
        wrong, swapped, f1 = near(0.3 * level), near(0.85 * level), near(level + 0.02 * doublings)
        return CountPoint(count, float(count), right, wrong, swapped, f1, clicks)

    def lesions(self) -> tuple[TrueLesionRow, ...]:
        """Return a row for each of 24 lesions, 5 of them prompted."""
        return tuple(
            self._lesion(number, float(ml)) for number, ml in enumerate(np.exp(self.rng.normal(0.3, 1.2, 24)), start=1)
        )

    def _lesion(self, number: int, volume_ml: float) -> TrueLesionRow:
        hit = bool(self.rng.random() < 0.55 + 0.15 * np.log10(volume_ml) + 0.2)
        return TrueLesionRow(
            number,
            volume_ml,
            "prompted" if number <= 5 else "promptable" if number <= 12 else "never",
            hit,
            self.near(0.5) if hit else 0.0,
            self.near(0.65, 0.15) if hit else 0.0,
            third=("lower", "middle", "upper")[number % 3],
            contrast=float(self.rng.normal(0.2, 0.15)),
        )

    def false_volumes_ml(self) -> tuple[float, ...]:
        """Return the volumes of three false lesions."""
        return tuple(np.exp(self.rng.normal(-1, 1, 3)).tolist())

    def candidates(self) -> tuple[CandidateRow, ...]:
        """Return 40 candidates; the higher the peak, the more often a lesion."""
        peaks = self.rng.uniform(0.35, 1, 40)
        return tuple(
            CandidateRow(float(p), bool(self.rng.random() < p**2), float(self.rng.exponential(1))) for p in peaks
        )


def example_reports(scans: int = 8, level: float = 0.6, seed: int = 0) -> list[SubjectReport]:
    """Return reports on scans p0, p1, ...; the last two are of one patient."""
    rng = np.random.default_rng(seed)
    levels = np.clip(level + np.random.default_rng(7).normal(0, 0.1, scans) + rng.normal(0, 0.02, scans), 0, 1)
    return [
        example_report(f"p{i}", f"p{min(i, scans - 2)}" if scans > 1 else "p0", float(at), 100 * seed + i)
        for i, at in enumerate(levels)
    ]


def write_example(out: Path, scans: int = 8, level: float = 0.6, seed: int = 0) -> Path:
    """Write a folder of results with a picture for each scan; return it."""
    settings = ProtocolSettings(counts=COUNTS, curve_clicks=CLICKS)
    reports = example_reports(scans, level, seed)
    write_result_files(out, reports, PROVENANCE, protocol=settings)
    (out / "overlays").mkdir()
    for report in reports:
        pixels = np.random.default_rng(0).integers(0, 255, (30, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(out / "overlays" / f"{report.subject}_class1.png")
    return out
