"""A simulated reader prompts some lesions of a scan; what the model makes of them is scored on the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.clicks import correct, first_click
from mois.evaluation.figures import CandidateRow, ClassReport, Figures, PaperFigures, SubjectReport, mean_of, measured
from mois.evaluation.overlays import save_overlay
from mois.evaluation.reader import Reader
from mois.evaluation.scoring import (
    PAPER_CLICKS,
    PAPER_LESIONS,
    Answer,
    candidate_rows,
    curve_point,
    score_answer,
    score_by_paper,
    unprompted_truth,
)
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.truth import Plan, Truth
from mois.inference.encoded_volume import EncodedVolume, enlarge, mask_centre
from mois.inference.segmenter import VolumeSegmenter
from mois.lesions import Candidates, InstanceMap, Mask, dilate_in_plane
from mois.metrics.overlap import Overlap
from mois.records import Exemplars, MaskPrediction, Prompts, Volume
from mois.scans.image_files import write_volume

__all__ = ["ProtocolSettings", "Run", "Shared", "evaluate_volume"]

Made = TypeVar("Made")
Key = tuple[int, int, int]
NONE: Key = (0, 0, 0)
"""A question: class, number of exemplars, clicks on each. This one has no exemplars."""

Answers = dict[int, tuple[MaskPrediction, npt.NDArray[np.int64]]]
"""By number of clicks: the answers to them, and how many there were in the end on each of N lesions, (N,)."""

ANSWER_BYTES = 1 << 30
"""How much memory the answers to questions that are asked side by side may take."""


class Shared:
    """What one backbone makes of a scan whatever propagates from it: features, answers to clicks, tracked lesions."""

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[Any, float]] = {}

    def once(
        self,
        seconds: dict[str, float],
        segmenter: VolumeSegmenter,
        step: str,
        of: Hashable,
        make: Callable[[], Made],
    ) -> Made:
        """Return what a step makes `of` something, now or before; its seconds are added either way."""
        if (step, of) not in self._made:
            took: dict[str, float] = {}
            with timed(took, step, segmenter):
                made = make()
            self._made[step, of] = made, took[step]
        kept: tuple[Made, float] = self._made[step, of]
        seconds[step] = seconds.get(step, 0.0) + kept[1]
        return kept[0]


@dataclass(frozen=True)
class Prompted:
    """Clicked lesions of one class, in the order in which they were clicked.

    Attributes:
        of: Their ids, and the number of clicks that was aimed at on each.
        rows: (N,) the tile that each was clicked on.
        answer: What the clicks gave there.
        exemplars: What was made of it; B = 1, K = N.
        clicks: (N,) how many there were on each.
    """

    of: tuple[tuple[int, ...], int]
    rows: npt.NDArray[np.int64]
    answer: MaskPrediction
    exemplars: Exemplars
    clicks: npt.NDArray[np.int64]


def evaluate_volume(
    segmenter: VolumeSegmenter,
    volume: Volume,
    settings: ProtocolSettings,
    out: Path | None = None,
    shared: Shared | None = None,
) -> SubjectReport:
    """Prompt, propagate and score one scan; see `Figures` for what is measured on what.

    Every tile is encoded once, every lesion clicked once, and every set of exemplars propagated once.

    Args:
        segmenter: The model, in eval mode.
        volume: The scan with its true lesions.
        settings: How to prompt and score.
        out: Where to write the results as `predictions/*.nii.gz`, the prompted lesions alone with their true ids as
            `prompted/*.nii.gz`, and `overlays/*.png`; None writes nothing.
        shared: What was made of this scan for another propagation, by the same backbone and settings, and will be.
    """
    seconds: dict[str, float] = {}
    shared = shared or Shared()
    settings.scored((), volume.declared)  # refused before anything is encoded
    encoded = shared.once(seconds, segmenter, "encode", (), lambda: segmenter.encode(volume))
    run = Run(segmenter, encoded, Truth.of(volume, encoded.grid), settings, seconds, shared)
    reports = []
    for target_class in run.scored:
        report, answer, result = run.score(target_class)
        reports.append(report)
        if out is not None:
            with timed(seconds, "write", segmenter):
                _write(volume, run, report, answer, result, out)
    return SubjectReport(
        subject=volume.subject,
        patient=volume.patient,
        classes=tuple(reports),
        false_without_exemplars=run.false_without_exemplars,
        seconds=seconds,
        candidates=tuple(row for target_class in run.scored for row in run.candidate_rows(target_class)),
    )


class Run:
    """One scan being evaluated: everything is prompted and propagated once, then scored."""

    def __init__(
        self,
        segmenter: VolumeSegmenter,
        encoded: EncodedVolume,
        truth: Truth,
        settings: ProtocolSettings,
        seconds: dict[str, float],
        shared: Shared,
    ) -> None:
        self.segmenter = segmenter
        self.encoded = encoded
        self.truth = truth
        self.settings = settings
        self.seconds = seconds
        self.shared = shared
        most = max(settings.prompted, *settings.counts, 0)
        self.plans = {c: Plan.of(truth.of_class(c), settings.reader, most) for c in sorted(set(truth.classes.values()))}
        self.scored = settings.scored(self.plans, ())
        promptable = [lesion for plan in self.plans.values() for lesion in plan.promptable]
        self.taken_out: Mask = dilate_in_plane(truth.only(promptable) > 0, settings.margin_px)
        self.false_without_exemplars = 0
        # The other classes' exemplars are needed for `wrong` and `swapped`.
        clicks = sorted({settings.clicks, *settings.every_clicks})
        self.prompted = {c: self.prompt(plan.order, clicks) for c, plan in self.plans.items() if self.scored}
        self.candidates: dict[Key, Candidates] = {}
        self.on_never: dict[tuple[Key, int], Overlap] = {}
        self._propagate()

    def key(self, target_class: int, count: int, clicks: int) -> Key:
        """Return the question with as many exemplars as there are where `count` are asked for."""
        used = min(count, len(self.plans[target_class].order))
        return (target_class, used, clicks) if used else NONE

    def main(self, target_class: int) -> Key:
        """Return the question whose answer the reader ends up with."""
        return self.key(target_class, self.settings.prompted, self.settings.clicks)

    def prompt(self, lesions: Sequence[int], clicks: Sequence[int]) -> dict[int, Prompted]:
        """Click lesions, in this order, and describe them after each of some numbers of clicks, ascending."""
        if not lesions:
            return {}
        rows, masks, answers = self._once(
            "click", (tuple(lesions), tuple(clicks)), lambda: self._clicked(lesions, clicks)
        )
        with timed(self.seconds, "describe", self.segmenter):
            described = {}
            for count, (answer, made) in answers.items():
                predicted = enlarge(answer.logits, self.encoded.tile_px).sigmoid()
                shown = predicted if self.settings.masks == "predicted" else masks.float()
                exemplars = self.segmenter.describe(self.encoded, rows, shown)
                described[count] = Prompted((tuple(lesions), count), rows, answer, exemplars, made)
            return described

    def _once(self, step: str, of: Hashable, make: Callable[[], Made]) -> Made:
        return self.shared.once(self.seconds, self.segmenter, step, of, make)

    def _propagate(self) -> None:
        """Ask all questions, as many at once as memory allows, and keep of the answers what is scored."""
        settings = self.settings
        main = {self.main(c) for c in self.scored}
        curve = {self.key(c, n, k) for c in self.prompted for n in settings.counts for k in settings.every_clicks}
        asked = {self.main(c) for c in self.prompted} | curve | {NONE}
        truths = {c: self.truth.only(plan.never) for c, plan in self.plans.items()}
        voxels = self.encoded.pictures.numel() + self.truth.index.size  # blended, and as restored
        at_once = max(1, ANSWER_BYTES // (4 * voxels))
        queue = sorted(asked)
        for keys in (queue[start : start + at_once] for start in range(0, len(queue), at_once)):
            with timed(self.seconds, "propagate", self.segmenter):
                answers = self.segmenter.propagate_all(self.encoded, [self._exemplars(key) for key in keys])
            for key, answer in zip(keys, answers, strict=True):
                with timed(self.seconds, "components", self.segmenter):
                    candidates = self.segmenter.candidates(answer, self.truth.voxel_ml, self.truth.edges_mm)
                    found = candidates.sure(self.segmenter.settings.peak_threshold).lesions
                with timed(self.seconds, "score", self.segmenter):
                    for c, truth in truths.items() if self.scored else ():
                        self.on_never[key, c] = Overlap.of(found, truth, self.taken_out)
                    if key == NONE:
                        self.false_without_exemplars = len(Overlap.of(found, self.truth.index).apart())
                if key in main:
                    self.candidates[key] = candidates

    def _exemplars(self, key: Key) -> Exemplars:
        if key == NONE:
            return self.segmenter.no_exemplars(self.encoded)
        target_class, count, clicks = key
        return self.prompted[target_class][clicks].exemplars.pick(slice(0, count))

    def _place(self, lesions: Sequence[int]) -> tuple[npt.NDArray[np.int64], Tensor]:
        """Return the tile on which each lesion is clicked, (N,), and its true mask there, (N, P, P) bool."""
        rows, masks = [], []
        for lesion in lesions:
            slice_index = self.truth.largest_slice(lesion)
            mask = self.truth.outline(lesion, slice_index, self.encoded.grid, self.segmenter.settings.pixel_mm)
            tile = int(self.encoded.tiles.best_tile(*mask_centre(mask)))
            rows.append(self.segmenter.row(self.encoded, slice_index, tile))
            masks.append(self.encoded.crop(mask, tile))
        return np.array(rows, dtype=np.int64), torch.stack(masks)

    def _clicked(self, lesions: Sequence[int], clicks: Sequence[int]) -> tuple[npt.NDArray[np.int64], Tensor, Answers]:
        rows, masks = self._place(lesions)
        return rows, masks, self._click(rows, masks, clicks)

    @torch.inference_mode()
    def _click(self, rows: npt.NDArray[np.int64], masks: Tensor, clicks: Sequence[int]) -> Answers:
        """Click each lesion in its middle and correct the answers, up to the last of `clicks`.

        Returns:
            For each of `clicks`.
        """
        reader, pixel_mm, edge = self.settings.reader, self.segmenter.settings.pixel_mm, self.encoded.tile_px
        generator = torch.Generator().manual_seed(reader.seed)
        prompts = reader.shake(first_click(masks), pixel_mm, edge, generator)
        answer = self.segmenter.answer(self.encoded, rows, prompts)
        answers = {1: (answer, _clicks(prompts))}
        for made in range(2, max(clicks) + 1):
            prompts = correct(prompts, answer.logits.cpu(), masks, torch.rand(len(masks), generator=generator))
            prompts = reader.shake(prompts, pixel_mm, edge, generator)
            answer = self.segmenter.answer(self.encoded, rows, prompts)
            answers[made] = (answer, _clicks(prompts))
        return {made: answers[made] for made in clicks}

    def words(self, target_class: int, count: int, clicks: int) -> tuple[Overlap, float | None, float | None]:
        """Return `right` as an overlap, and the Dice `wrong` and `swapped`."""
        others = {c: self.key(c, count, clicks) for c in self.plans if c != target_class}
        wrong = mean_of([self.on_never[key, target_class].dice() for key in others.values()])
        swapped = mean_of([self.on_never[key, c].dice() for c, key in others.items()])
        return self.on_never[self.key(target_class, count, clicks), target_class], wrong, swapped

    def tracked(self, prompted: Prompted, count: int) -> InstanceMap:
        """Return the first prompted lesions as clicked and tracked; the n-th one has id n + 1."""

        def track() -> InstanceMap:
            answer = MaskPrediction(*(part[:count] for part in prompted.answer))
            tracked = self.segmenter.track(self.encoded, prompted.rows[:count], answer)
            return self.segmenter.tracked_lesions(self.encoded, tracked)

        return self._once("track", (prompted.of, count), track)

    def answer(self, target_class: int) -> Answer:
        """Return what the reader ends up with."""
        _, count, clicks = self.main(target_class)
        found = self.candidates[self.main(target_class)].sure(self.segmenter.settings.peak_threshold).lesions
        if not count:
            return Answer((), found, np.zeros_like(found))
        prompted = self.prompted[target_class][clicks]
        order = self.plans[target_class].order[:count]
        return Answer(order, found, self.tracked(prompted, count), int(prompted.clicks[:count].sum()))

    def score(self, target_class: int) -> tuple[ClassReport, Answer, InstanceMap]:
        """Return the report on a class, what it is about, and all that the reader ends up with as an instance map."""
        settings, plan = self.settings, self.plans[target_class]
        right, wrong, swapped = self.words(target_class, settings.prompted, settings.clicks)
        without = self.on_never[NONE, target_class]
        words = Figures.of_words(measured(right.dice()), wrong, swapped, measured(without.dice()))
        answer = self.answer(target_class)
        with timed(self.seconds, "score", self.segmenter):
            figures, rows, false_ml, result = score_answer(self.truth, plan, answer, settings, words)
            curve = tuple(
                curve_point(k, n, self.key(target_class, n, k)[1], *self.words(target_class, n, k))
                for k in settings.every_clicks
                for n in settings.counts
            )
        paper = self._by_the_papers_rules(target_class) if settings.rules == "paper" else None
        return ClassReport(target_class, figures, curve, rows, false_ml, paper), answer, result

    def _by_the_papers_rules(self, target_class: int) -> PaperFigures:
        """Prompt the largest lesions, whichever of them are never prompted otherwise, propagate, and score."""
        lesions = self.truth.of_class(target_class)
        largest = Reader("largest").choose_lesions(lesions, PAPER_LESIONS)
        ours, self.seconds = self.seconds, {}  # not part of what our own steps took
        with timed(ours, "paper", self.segmenter):
            prompted = self.prompt(largest, [PAPER_CLICKS])[PAPER_CLICKS]
            probability = self.segmenter.propagate(self.encoded, prompted.exemplars)
            found, tracked = (
                self.segmenter.lesions(probability, self.truth.voxel_ml, self.truth.edges_mm),
                self.tracked(prompted, len(largest)),
            )
        self.seconds = ours
        return score_by_paper(self.truth.only(lesions) > 0, found > 0, tracked > 0, self.truth.voxel_ml)

    def candidate_rows(self, target_class: int) -> list[CandidateRow]:
        """Return what might have been a lesion of a class, outside of the prompted ones."""
        key = self.main(target_class)
        plan = self.plans[target_class]
        rest, taken_out = unprompted_truth(self.truth, plan, plan.order[: key[1]], self.settings.margin_px)
        with timed(self.seconds, "score", self.segmenter):
            return candidate_rows(self.candidates[key], rest, taken_out, self.truth.voxel_ml)


def _clicks(prompts: Prompts) -> npt.NDArray[np.int64]:
    """Return how many clicks there are on each image, padding left out."""
    return np.asarray((prompts.labels >= 0).sum(1).cpu().numpy(), dtype=np.int64)


def _write(volume: Volume, run: Run, report: ClassReport, answer: Answer, result: InstanceMap, out: Path) -> None:
    """Write the reader's final result and the prompted lesions alone on the scanner's grid, and a picture of it."""
    name = f"{volume.subject}_class{report.target_class}"
    grid = run.encoded.grid
    write_volume(grid.to_volume(torch.from_numpy(result)), volume.affine, out / "predictions" / f"{name}.nii.gz")
    if answer.tracked is not None and answer.prompted:
        prompted = np.array([0, *answer.prompted], dtype=np.int32)[answer.tracked]
        write_volume(grid.to_volume(torch.from_numpy(prompted)), volume.affine, out / "prompted" / f"{name}.nii.gz")
    image = grid.to_stack(volume.image.float().cpu()).numpy()
    truth = run.truth.only([row.lesion for row in report.lesions])
    save_overlay(
        out / "overlays" / f"{name}.png", image, truth, result, report, (grid.row_mm, grid.column_mm), volume.channel
    )


@contextmanager
def timed(seconds: dict[str, float], step: str, segmenter: VolumeSegmenter) -> Iterator[None]:
    """Add the wall seconds of a step, the accelerator's work included."""
    start = time.perf_counter()
    try:
        yield
    finally:
        if segmenter.device.type == "cuda":
            torch.cuda.synchronize(segmenter.device)
        seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - start
