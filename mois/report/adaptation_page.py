"""The page of an adaptation: the plan, and figures of the model before the training and of the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mois.report.html_page import Page, Picture, Section, SideBySide, Table, picture_uri, text_of, write_page
from mois.sharing.calibration import Calibration

COMPARED = {
    "unprompted_dice": "Dice of lesions that nobody clicked, with exemplars",
    "right": "Dice with exemplars of their own type",
    "no_exemplars": "Dice without exemplars",
    "prompted_dice": "Dice of clicked lesions",
    "lesion_f1": "F1 of lesions that nobody clicked",
    "false_lesions": "false lesions in a scan",
}
_MOST_PICTURES = 4


@dataclass(frozen=True)
class Adaptation:
    """The result of an adaptation.

    Attributes:
        plan: Lines of the plan.
        before: Figures of the validation before the first step, by name; empty without a validation.
        after: Figures of the delivered model on the same scans.
        delivered: Which model was delivered, and why.
        calibration: Calibration of the bundle; None if there was nothing to fit it on.
        steps: Number of steps of the training.
    """

    plan: Sequence[str]
    before: Mapping[str, float]
    after: Mapping[str, float]
    delivered: str
    calibration: Calibration | None
    steps: int

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the name, the figure before and the figure after, for each figure that was measured."""
        return [
            (words, text_of(self.before.get(name), 2), text_of(self.after.get(name), 2))
            for name, words in COMPARED.items()
            if name in self.before or name in self.after
        ]

    def lines(self) -> list[str]:
        """Return the comparison for a terminal. Which model was delivered is the last line of the training."""
        compared = [f"{words}: {before} before, {after} after" for words, before, after in self.rows()]
        return [*compared, self.of_confidence()]

    def of_confidence(self) -> str:
        """Return from what the confidence of found lesions comes."""
        if self.calibration is None:
            return "confidences are not calibrated: nothing was found in a validation"
        return f"confidences were fitted on {self.calibration.candidates} candidates of the validation"


def write_adaptation_page(path: Path, result: Adaptation, training: Path) -> Path:
    """Write the page of an adaptation as one HTML file.

    Args:
        path: File to write.
        result: The plan and the figures.
        training: Folder of the training, with pictures of a validation.
    """
    pictures = sorted((training / "validation" / "overlays").glob("*.png"))[:_MOST_PICTURES]
    table = Table(
        ("", "before", "after"),
        result.rows(),
        note="Both on the scans or slices that validate. The model was chosen by them, so the figures after flatter.",
    )
    shown = [Picture(picture_uri(one), one.stem) for one in pictures]
    sections = [
        Section("Before and after", [table], f"{result.delivered}. {result.of_confidence()}.".capitalize()),
        Section("The plan", [Table(("setting", "from what"), [_parted(line) for line in result.plan], words=(1,))]),
    ]
    if shown:
        sections.insert(1, Section("The last validation", [SideBySide(shown)]))
    lead = f"An adaptation of {result.steps} steps. Not a medical device: for research only."
    return write_page(path, Page("Adaptation", lead, sections))


def _parted(line: str) -> tuple[str, str]:
    what, _, why = line.partition(": ")
    return what, why
