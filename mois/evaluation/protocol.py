"""A simulated reader prompts some lesions of a scan; the model finds the others, and they are scored."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.clicks import correct, first_click
from mois.evaluation.actions.curves import ReadersAtWork
from mois.evaluation.figures import PaperFigures, SubjectReport
from mois.evaluation.reader import Reader
from mois.evaluation.result_files import ScanFiles
from mois.evaluation.scoring import (
    NO_EXEMPLARS,
    PAPER_CLICKS,
    PAPER_LESIONS,
    Answers,
    FurtherResults,
    PromptedClass,
    Propagated,
    Question,
    score_by_paper,
)
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.true_lesions import ScanPlan
from mois.geometry import SliceGrid
from mois.inference.encoded_volume import EncodedVolume, enlarge, mask_centre
from mois.inference.lesion_maps import LesionMaps
from mois.inference.levels import Outlined, reads_plain, rule_of
from mois.inference.matched_masks import model_masks
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.shared_work import SharedWork, on_clock, timed
from mois.lesions import Candidates, InstanceMap, LesionVoxels
from mois.metrics.overlap import Overlap
from mois.records import Exemplars, MaskPrediction, Prompts, Volume
from mois.sharing.calibration import Calibration

Made = TypeVar("Made")

ANSWER_BYTES = 1 << 30
"""Memory for the probability maps of questions that are asked at once."""


ClickAnswers = dict[int, tuple[MaskPrediction, npt.NDArray[np.int64]]]
"""Number of clicks to the masks of N lesions and the number of clicks that were made on each, (N,)."""


@dataclass(frozen=True)
class Prompted:
    """Clicked lesions of one class, in the order in which they were clicked.

    Attributes:
        key: Ids of the lesions, and the intended number of clicks on each.
        rows: (N,) row of the tile on which each lesion was clicked.
        answer: Masks that the clicks gave on these tiles.
        masks: (N, P, P) bool, the masks that describe the exemplars.
        exemplars: Exemplars described from the masks; B = 1, K = N.
        clicks: (N,) number of clicks that were made on each lesion.
    """

    key: tuple[tuple[int, ...], int]
    rows: npt.NDArray[np.int64]
    answer: MaskPrediction
    masks: Tensor
    exemplars: Exemplars
    clicks: npt.NDArray[np.int64]


PromptedByClass = dict[int, dict[int, Prompted]]
"""Prompted lesions by class and by number of clicks."""


@dataclass(frozen=True)
class ScanAtWork:
    """A scan that is being evaluated.

    Attributes:
        segmenter: The model.
        encoded: The scan's features.
        plan: Which lesions are prompted and scored.
        settings: How to prompt and score.
        shared: Work that other propagations share.
        seconds: Wall-clock seconds by step. Each step adds its own.
    """

    segmenter: VolumeSegmenter
    encoded: EncodedVolume
    plan: ScanPlan
    settings: ProtocolSettings
    shared: SharedWork
    seconds: dict[str, float]

    def question(self, target_class: int, count: int, clicks: int) -> Question:
        """Return the question with the first `count` prompted lesions; with all of them if the class has fewer."""
        return Question.of(self.plan.classes[target_class], target_class, count, clicks)

    def final_question(self, target_class: int) -> Question:
        """Return the question whose answer is the final result of the reader."""
        return self.question(target_class, self.settings.prompted, self.settings.clicks)

    def once(self, step: str, subject: Hashable, make: Callable[[], Made]) -> Made:
        """Return the result of a step that propagations share; see `SharedWork.once`."""
        return self.shared.once(self.seconds, self.segmenter, step, subject, make)

    def timed(self, step: str) -> AbstractContextManager[None]:
        """Add the seconds of a block to a step."""
        return timed(self.seconds, step, self.segmenter)


def evaluate_volume(
    segmenter: VolumeSegmenter,
    volume: Volume,
    settings: ProtocolSettings,
    out: Path | None = None,
    shared: SharedWork | None = None,
    calibration: Calibration | None = None,
) -> SubjectReport:
    """Prompt, propagate and score one scan; see `Figures` for the definition of each figure.

    Every tile is encoded once, every lesion clicked once, and every set of exemplars propagated once.

    Args:
        segmenter: The model, in eval mode.
        volume: The scan with its true lesions.
        settings: How to prompt and score.
        out: Where to write the results as `predictions/*.nii.gz`, the prompted lesions alone with their true ids as
            `prompted/*.nii.gz`, and `overlays/*.png`; None writes nothing.
        shared: Work on this scan that other propagations of the same backbone and settings share.
        calibration: Confidence of found lesions, for readers who follow suggestions.

    Returns:
        The figures of each scored class, the candidates, and the seconds of each step.

    Raises:
        ValueError: If the dataset does not declare the class to score.
    """
    return ask_about_volume(segmenter, volume, settings, out, shared, calibration)()


def ask_about_volume(
    segmenter: VolumeSegmenter,
    volume: Volume,
    settings: ProtocolSettings,
    out: Path | None = None,
    shared: SharedWork | None = None,
    calibration: Calibration | None = None,
) -> ScoringWork:
    """Do the part of `evaluate_volume` that needs the model, and return the rest: it can be done in another process."""
    seconds: dict[str, float] = {}
    shared = shared or SharedWork()
    settings.scored((), volume.declared)  # refused before anything is encoded
    encoded = shared.once(seconds, segmenter, "encode", (), lambda: segmenter.encode(volume))
    plan = ScanPlan.of(volume, encoded.grid, settings)
    readers = ReadersAtWork.asked_for(segmenter, calibration, volume, plan, settings)
    if readers is not None:
        with timed(seconds, "actions", segmenter):
            plan = readers.plan()
    scan = ScanAtWork(segmenter, encoded, plan, settings, shared, seconds)
    prompted = prompt_lesions(scan)
    propagated = propagate(scan, prompted)
    classes = {target_class: _prompted_class(scan, prompted, target_class) for target_class in plan.scored}
    further: dict[int, FurtherResults] = {}
    for target_class in plan.scored:
        paper = _score_by_rules_of_paper(scan, target_class) if settings.rules == "paper" else None
        further[target_class] = FurtherResults(paper=paper)
        if readers is not None:
            with scan.timed("actions"):
                further[target_class] = FurtherResults(paper, *readers.curves(target_class))
    answers = Answers(plan.lesions, plan.classes, settings, propagated, classes, further)
    return ScoringWork(volume, encoded.grid, answers, out, seconds)


@dataclass(frozen=True)
class ScoringWork:
    """What is left to do on a scan when the model has answered: scoring and writing.

    Attributes:
        volume: The scan.
        grid: Its slices.
        answers: What the model answered.
        out: Where results are written; None writes nothing.
        seconds: Wall-clock seconds of the steps that are done.
    """

    volume: Volume
    grid: SliceGrid
    answers: Answers
    out: Path | None
    seconds: dict[str, float]

    def __call__(self) -> SubjectReport:
        """Score and write."""
        answers, seconds = self.answers, dict(self.seconds)
        files = None if self.out is None else ScanFiles(self.volume, self.grid, answers.lesions, self.out)
        reports, rows = [], []
        for target_class in answers.prompted:
            with on_clock(seconds, "score"):
                report, result, final = answers.score_class(target_class)
                rows += answers.candidate_rows(target_class)
            reports.append(report)
            if files is not None:
                with on_clock(seconds, "write"):
                    files.write_class(report, result, final)
        return SubjectReport(
            subject=self.volume.subject,
            patient=self.volume.patient,
            classes=tuple(reports),
            false_without_exemplars=answers.propagated.false_without_exemplars,
            seconds=seconds,
            candidates=tuple(rows),
        )


def prompt_lesions(scan: ScanAtWork) -> PromptedByClass:
    """Click the lesions of every class. `wrong` and `swapped` need exemplars of the other classes."""
    clicks = sorted({scan.settings.clicks, *scan.settings.every_clicks})
    classes = scan.plan.classes if scan.plan.scored else {}
    return {target_class: _prompt(scan, plan.order, clicks) for target_class, plan in classes.items()}


def propagate(scan: ScanAtWork, prompted: PromptedByClass) -> Propagated:
    """Ask all questions, as many at once as memory allows. Keep only the results that are scored."""
    settings, lesions = scan.settings, scan.plan.lesions
    final = {scan.final_question(c) for c in scan.plan.scored}
    curve = {scan.question(c, n, k) for c in prompted for n in settings.counts for k in settings.every_clicks}
    queue = sorted({scan.final_question(c) for c in prompted} | curve | {NO_EXEMPLARS})
    never_prompted = {c: plan.never for c, plan in scan.plan.classes.items()} if scan.plan.scored else {}
    voxels = scan.encoded.pictures.numel() + lesions.index.size  # of one answer: blended pictures, and restored stack
    side_by_side = max(1, ANSWER_BYTES // (8 * voxels))  # float32, and float16 for cores and for plain answers
    candidates: dict[Question, Candidates] = {}
    never: dict[tuple[Question, int], Overlap] = {}
    false_without_exemplars = 0
    for questions in (queue[start : start + side_by_side] for start in range(0, len(queue), side_by_side)):
        with scan.timed("propagate"):
            exemplars = [_exemplars(scan, prompted, question) for question in questions]
            plain = [reads_plain(scan.segmenter, each, each.count) for each in exemplars]
            found_all = scan.segmenter.find_all(scan.encoded, exemplars, plain)
            answers = [
                _by_rule(scan, prompted.get(question.target_class, {}).get(question.clicks), asked, answer)
                for question, asked, answer in zip(questions, exemplars, found_all, strict=True)
            ]
        for question, answer in zip(questions, answers, strict=True):
            with scan.timed("components"):
                scan_candidates = scan.segmenter.candidates(answer, lesions.voxel_ml, lesions.edges_mm)
                found = scan_candidates.sure(scan.segmenter.settings.peak_threshold).lesions
            with scan.timed("score"):
                counts = lesions.count(LesionVoxels.of(found), scan.plan.taken_out)
                never |= {(question, c): counts.overlap(those) for c, those in never_prompted.items()}
                if question == NO_EXEMPLARS:
                    false_without_exemplars = len(counts.apart())
            if question in final:
                candidates[question] = scan_candidates
    return Propagated(candidates, never, false_without_exemplars, scan.segmenter.settings.peak_threshold)


def _prompt(scan: ScanAtWork, lesions: Sequence[int], clicks: Sequence[int]) -> dict[int, Prompted]:
    """Click lesions in this order. Describe them as exemplars after each number of clicks in `clicks`, ascending."""
    if not lesions:
        return {}
    key = (tuple(lesions), tuple(clicks))
    rows, masks, answers = scan.once("click", key, lambda: _click_all(scan, lesions, clicks))
    with scan.timed("describe"):
        described = {}
        for count, (answer, made) in answers.items():
            logits = model_masks(answer) if scan.segmenter.settings.shows_own_masks else answer.logits
            predicted = enlarge(logits, scan.encoded.tile_px).sigmoid()
            shown = predicted if scan.settings.masks == "predicted" else masks.float()
            exemplars = scan.segmenter.describe(scan.encoded, rows, shown)
            described[count] = Prompted((tuple(lesions), count), rows, answer, shown > 0.5, exemplars, made)
        return described


def _click_all(
    scan: ScanAtWork, lesions: Sequence[int], clicks: Sequence[int]
) -> tuple[npt.NDArray[np.int64], Tensor, ClickAnswers]:
    """Return the tile on which each lesion is clicked, (N,), its true mask there, (N, P, P) bool, and the answers."""
    rows, masks = [], []
    for lesion in lesions:
        slice_index = scan.plan.lesions.clicked_slice(lesion, scan.settings.reader)
        pixel_mm = scan.segmenter.settings.pixel_mm
        mask = scan.plan.lesions.outline(lesion, slice_index, scan.encoded.grid, pixel_mm)
        tile = int(scan.encoded.tiles.best_tile(*mask_centre(mask)))
        rows.append(scan.segmenter.row(scan.encoded, slice_index, tile))
        masks.append(scan.encoded.crop(mask, tile))
    tiles = np.array(rows, dtype=np.int64)
    return tiles, torch.stack(masks), _click(scan, tiles, torch.stack(masks), clicks)


@torch.inference_mode()
def _click(scan: ScanAtWork, rows: npt.NDArray[np.int64], masks: Tensor, clicks: Sequence[int]) -> ClickAnswers:
    """Click each lesion in its middle, then correct its mask until it has `max(clicks)` clicks."""
    reader, pixel_mm, edge = scan.settings.reader, scan.segmenter.settings.pixel_mm, scan.encoded.tile_px
    generator = torch.Generator().manual_seed(reader.seed)
    prompts = reader.shake(first_click(masks), pixel_mm, edge, generator)
    answer = scan.segmenter.answer(scan.encoded, rows, prompts)
    answers = {1: (answer, _clicks_made(prompts))}
    for made in range(2, max(clicks) + 1):
        prompts = correct(prompts, answer.logits.cpu(), masks, torch.rand(len(masks), generator=generator))
        prompts = reader.shake(prompts, pixel_mm, edge, generator)
        answer = scan.segmenter.answer(scan.encoded, rows, prompts)
        answers[made] = (answer, _clicks_made(prompts))
    return {made: answers[made] for made in clicks}


def _clicks_made(prompts: Prompts) -> npt.NDArray[np.int64]:
    """Return the number of clicks on each image, without padding."""
    return np.asarray((prompts.labels >= 0).sum(1).cpu().numpy(), dtype=np.int64)


def _exemplars(scan: ScanAtWork, prompted: PromptedByClass, question: Question) -> Exemplars:
    """Return the exemplars of a question."""
    if question == NO_EXEMPLARS:
        return scan.segmenter.no_exemplars(scan.encoded)
    return prompted[question.target_class][question.clicks].exemplars.pick(slice(0, question.exemplars))


def _by_rule(scan: ScanAtWork, prompted: Prompted | None, exemplars: Exemplars, answer: LesionMaps) -> LesionMaps:
    """Return an answer as the exemplars of the scan decide (`mois.inference.levels`); without exemplars as it is."""
    if prompted is None:
        return answer
    own = np.arange(exemplars.count)
    outlined = Outlined(own, prompted.rows[own], prompted.masks[own])
    return answer.by_rule(rule_of(scan.segmenter, scan.encoded, exemplars, outlined, answer))


def _prompted_class(scan: ScanAtWork, prompted: PromptedByClass, target_class: int) -> PromptedClass:
    """Return the prompted lesions of a class, as clicked and tracked, of the reader's final result."""
    question = scan.final_question(target_class)
    if not question.exemplars:
        return PromptedClass((), np.zeros_like(scan.plan.lesions.index))
    clicked = prompted[target_class][question.clicks]
    order = scan.plan.classes[target_class].order[: question.exemplars]
    made = int(clicked.clicks[: question.exemplars].sum())
    return PromptedClass(order, _track(scan, clicked, question.exemplars), made)


def _track(scan: ScanAtWork, prompted: Prompted, count: int) -> InstanceMap:
    """Return the first prompted lesions as clicked and tracked; the n-th of them has id n + 1."""

    def track() -> InstanceMap:
        answer = MaskPrediction(*(part[:count] for part in prompted.answer))
        tracked = scan.segmenter.track(scan.encoded, prompted.rows[:count], answer)
        return scan.segmenter.tracked_lesions(scan.encoded, tracked)

    return scan.once("track", (prompted.key, count), track)


def _score_by_rules_of_paper(scan: ScanAtWork, target_class: int) -> PaperFigures:
    """Prompt the largest lesions, propagate and score, by the rules of the paper. Its seconds are the step `paper`."""
    lesions = scan.plan.lesions.volumes_of_class(target_class)
    largest = Reader("largest").choose_lesions(lesions, PAPER_LESIONS)
    with scan.timed("paper"):
        scan_for_paper = replace(scan, seconds={})
        prompted = _prompt(scan_for_paper, largest, [PAPER_CLICKS])[PAPER_CLICKS]
        answer = scan.segmenter.find(scan.encoded, prompted.exemplars)
        answer = _by_rule(scan_for_paper, prompted, prompted.exemplars, answer)
        true = scan.plan.lesions
        found = scan.segmenter.lesions(answer, true.voxel_ml, true.edges_mm)
        tracked = _track(scan_for_paper, prompted, len(largest))
    return score_by_paper(true.only(lesions) > 0, found > 0, tracked > 0, true.voxel_ml)
