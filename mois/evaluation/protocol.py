"""A simulated reader prompts some lesions of a scan; what the model makes of them is scored on the others."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.encoded import EncodedVolume, enlarge, mask_centre
from mois.evaluation.overlays import save_overlay
from mois.evaluation.reports import ClassReport, CountPoint, Figures, LesionRow, SubjectReport, measured
from mois.evaluation.truth import Plan, Truth
from mois.inference import VolumeSegmenter
from mois.interfaces import Exemplars, MaskPrediction, Volume
from mois.io import write_volume
from mois.metrics import InstanceMap, Mask, Overlap, dilate_in_plane, mean_of
from mois.prompts import Reader, correct, first_click

NONE = (0, 0)
"""Key of what is found with no class's exemplars."""


@dataclass(frozen=True)
class ProtocolSettings:
    """How a scan is prompted and scored.

    Attributes:
        prompted: How many lesions of a class the reader prompts; all that may be prompted where there are fewer.
        clicks: Clicks per prompted lesion: one in its middle, then corrections.
        masks: What becomes an exemplar: the mask that the clicks gave, or the true one.
        reader: Who chooses the lesions.
        counts: Numbers of exemplars for the curves; empty for no curves.
        target_class: The class to score; None scores every class and averages.
        margin_px: How many pixels around a prompted lesion, in plane, are taken out with it.
    """

    prompted: int = 5
    clicks: int = 1
    masks: Literal["predicted", "true"] = "predicted"
    reader: Reader = field(default_factory=Reader)
    counts: tuple[int, ...] = ()
    target_class: int | None = None
    margin_px: int = 2

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.prompted < 1 or any(count < 1 for count in self.counts):
            raise ValueError(
                f"protocol.prompted={self.prompted} and protocol.counts={self.counts} must be 1 or more; "
                "K = 0 is always scored, as no_exemplars."
            )
        if self.clicks < 1:
            raise ValueError(f"protocol.clicks={self.clicks} must be at least 1.")
        if self.masks not in ("predicted", "true"):
            raise ValueError(f"protocol.masks={self.masks!r} is unknown; choose predicted or true.")


@dataclass(frozen=True)
class _Prompted:
    """The clicked lesions of one class, in the order in which they were clicked."""

    rows: npt.NDArray[np.int64]
    answer: MaskPrediction
    exemplars: Exemplars


def evaluate_volume(
    segmenter: VolumeSegmenter, volume: Volume, settings: ProtocolSettings, out: Path | None = None
) -> SubjectReport:
    """Prompt, propagate and score one scan; see `Figures` for what is measured on what.

    Every tile is encoded once, every lesion clicked once, and every set of exemplars propagated once.

    Args:
        segmenter: The model, in eval mode.
        volume: The scan with its true lesions.
        settings: How to prompt and score.
        out: Where to write the results as `predictions/*.nii.gz` and `overlays/*.png`; None writes nothing.
    """
    seconds: dict[str, float] = {}
    with _timed(seconds, "encode", segmenter):
        encoded = segmenter.encode(volume)
    run = _Run(segmenter, encoded, Truth.of(volume, encoded.grid), settings, seconds)
    reports = []
    for target_class in run.scored:
        report, result = run.score(target_class)
        reports.append(report)
        if out is not None:
            with _timed(seconds, "write", segmenter):
                _write(volume, run, report, result, out)
    return SubjectReport(volume.subject, volume.patient, tuple(reports), run.false_without_exemplars(), seconds)


class _Run:
    """One scan being evaluated: everything is prompted and propagated once, then scored."""

    def __init__(
        self,
        segmenter: VolumeSegmenter,
        encoded: EncodedVolume,
        truth: Truth,
        settings: ProtocolSettings,
        seconds: dict[str, float],
    ) -> None:
        self.segmenter = segmenter
        self.encoded = encoded
        self.truth = truth
        self.settings = settings
        self.seconds = seconds
        most = max(settings.prompted, *settings.counts, 1)
        self.plans = {c: Plan.of(truth.of_class(c), settings.reader, most) for c in sorted(set(truth.classes.values()))}
        self.scored = [c for c in self.plans if settings.target_class in (None, c)]
        promptable = [lesion for plan in self.plans.values() for lesion in plan.promptable]
        self.taken_out: Mask = dilate_in_plane(truth.only(promptable) > 0, settings.margin_px)

        # The other classes' exemplars are needed for `wrong` and `swapped`.
        self.prompted = {c: self._prompt(plan.order) for c, plan in self.plans.items() if self.scored}
        self.found = self._propagate()

    def _prompt(self, lesions: Sequence[int]) -> _Prompted:
        """Click the lesions of one class, in this order, and describe them."""
        with _timed(self.seconds, "click", self.segmenter):
            rows, masks = self._place(lesions)
            answer = self._click(rows, masks)
        with _timed(self.seconds, "describe", self.segmenter):
            predicted = enlarge(answer.logits, self.encoded.tile_px).sigmoid()
            shown = predicted if self.settings.masks == "predicted" else masks.float()
            return _Prompted(rows, answer, self.segmenter.describe(self.encoded, rows, shown))

    def _propagate(self) -> dict[tuple[int, int], InstanceMap]:
        """Return what is found by class and number of exemplars; without exemplars under `NONE`."""
        questions = {NONE: self.segmenter.no_exemplars(self.encoded)}
        for c, prompted in self.prompted.items():
            for count in {self.used(c, count) for count in (self.settings.prompted, *self.settings.counts)}:
                questions[c, count] = prompted.exemplars.pick(slice(0, count))
        with _timed(self.seconds, "propagate", self.segmenter):
            answers = self.segmenter.propagate_all(self.encoded, list(questions.values()))
        with _timed(self.seconds, "components", self.segmenter):
            lesions = [self.segmenter.lesions(answer, self.truth.voxel_ml) for answer in answers]
        return dict(zip(questions, lesions, strict=True))

    def used(self, target_class: int, count: int) -> int:
        """Return how many exemplars of a class there are where `count` are asked for."""
        return min(count, len(self.plans[target_class].order))

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

    @torch.inference_mode()
    def _click(self, rows: npt.NDArray[np.int64], masks: Tensor) -> MaskPrediction:
        """Click each lesion in its middle and correct the answers."""
        generator = torch.Generator().manual_seed(self.settings.reader.seed)
        prompts = first_click(masks)
        answer = self.segmenter.answer(self.encoded, rows, prompts)
        for _ in range(self.settings.clicks - 1):
            prompts = correct(prompts, answer.logits.cpu(), masks, torch.rand(len(masks), generator=generator))
            answer = self.segmenter.answer(self.encoded, rows, prompts)
        return answer

    def on_never(self, target_class: int, key: tuple[int, int]) -> Overlap:
        """Compare what was found with the never-prompted lesions of a class."""
        with _timed(self.seconds, "score", self.segmenter):
            return Overlap.of(self.found[key], self.truth.only(self.plans[target_class].never), self.taken_out)

    def words(self, target_class: int, count: int) -> tuple[Overlap, float | None, float | None]:
        """Return `right` as an overlap, and the Dice `wrong` and `swapped`, with `count` exemplars."""
        others = [(c, self.used(c, count)) for c in self.plans if c != target_class]
        wrong = mean_of([self.on_never(target_class, other).dice() for other in others])
        swapped = mean_of([self.on_never(other[0], other).dice() for other in others])
        return self.on_never(target_class, (target_class, self.used(target_class, count))), wrong, swapped

    def tracked(self, target_class: int) -> InstanceMap:
        """Return the prompted lesions as clicked and tracked; the n-th prompted one has id n + 1."""
        prompted = self.prompted[target_class]
        answer = MaskPrediction(*(part[: self.settings.prompted] for part in prompted.answer))
        with _timed(self.seconds, "track", self.segmenter):
            tracked = self.segmenter.track(self.encoded, prompted.rows[: self.settings.prompted], answer)
            return self.segmenter.tracked_lesions(self.encoded, tracked)

    def score(self, target_class: int) -> tuple[ClassReport, InstanceMap]:
        """Return the report on a class, and all that the reader ends up with as an instance map (S, H, W)."""
        plan, count = self.plans[target_class], self.settings.prompted
        prompted = plan.order[:count]
        right, wrong, swapped = self.words(target_class, count)
        without = self.on_never(target_class, NONE)
        found, tracked = self.found[target_class, len(prompted)], self.tracked(target_class)
        curve = tuple(self._point(target_class, asked) for asked in self.settings.counts)
        with _timed(self.seconds, "score", self.segmenter):
            taken_out = dilate_in_plane(self.truth.only(prompted) > 0, self.settings.margin_px)
            others = [lesion for lesion in plan.lesions if lesion not in prompted]
            unprompted = Overlap.of(found, self.truth.only(others), taken_out)
            matches = unprompted.match()
            result = merge(tracked, found)
            scan = Overlap.of(result, self.truth.only(plan.lesions))
            scan_matches = scan.match()
            own = _own_dice(tracked, self.truth.only(prompted), prompted)
            figures = Figures(
                right=measured(right.dice()),
                wrong=wrong,
                swapped=swapped,
                no_exemplars=measured(without.dice()),
                unprompted_dice=measured(unprompted.dice()),
                lesion_f1=measured(matches.f1),
                lesion_precision=measured(matches.precision),
                lesion_recall=measured(matches.recall),
                false_lesions=len(matches.false),
                prompted_dice=mean_of(list(own.values())),
                scan_dice=measured(scan.dice()),
                scan_lesion_f1=measured(scan_matches.f1),
                scan_lesion_precision=measured(scan_matches.precision),
                scan_lesion_recall=measured(scan_matches.recall),
            )
            rows = _lesion_rows(plan, scan, self.truth.volumes_ml, own)
        return ClassReport(target_class, figures, curve, rows), result

    def _point(self, target_class: int, count: int) -> CountPoint:
        right, wrong, swapped = self.words(target_class, count)
        return CountPoint(
            count, self.used(target_class, count), measured(right.dice()), wrong, swapped, measured(right.match().f1)
        )

    def false_without_exemplars(self) -> int:
        """Return how many lesions are found with no exemplars where there is no true lesion of any class."""
        return int((Overlap.of(self.found[NONE], self.truth.index).shared.sum(1) == 0).sum())


def merge(tracked: InstanceMap, found: InstanceMap) -> InstanceMap:
    """Return prompted and propagated lesions as one instance map.

    A found lesion of which at least half lies in tracked ones is the same lesion, and its voxels join the one that it
    shares most with. Any other keeps what lies outside the tracked lesions, under a new id.

    Args:
        tracked: Instance map (S, H, W) int32 of the prompted lesions, which keep their ids.
        found: Instance map of the propagated lesions.
    """
    overlap = Overlap.of(found, tracked)
    if not len(overlap.found_ids):
        return tracked.copy()
    table = np.zeros(int(overlap.found_ids[-1]) + 1, dtype=np.int32)
    first = int(tracked.max()) + 1
    table[overlap.found_ids] = np.arange(first, first + len(overlap.found_ids), dtype=np.int32)
    if len(overlap.true_ids):
        same = 2 * overlap.shared.sum(1) >= overlap.found_voxels
        table[overlap.found_ids[same]] = overlap.true_ids[overlap.shared[same].argmax(1)]
    return np.where(tracked > 0, tracked, table[found])


def _own_dice(tracked: InstanceMap, truth: InstanceMap, prompted: Sequence[int]) -> dict[int, float]:
    """Return the Dice of each prompted lesion with what its own click gave; 0 where that is nothing."""
    overlap = Overlap.of(tracked, truth)
    dice = overlap.lesion_dice()
    rows = {int(found): row for row, found in enumerate(overlap.found_ids)}
    columns = {int(lesion): column for column, lesion in enumerate(overlap.true_ids)}
    return {
        lesion: float(dice[rows[place + 1], columns[lesion]]) if place + 1 in rows else 0.0
        for place, lesion in enumerate(prompted)
    }


def _lesion_rows(
    plan: Plan, scan: Overlap, volumes_ml: dict[int, float], own: dict[int, float]
) -> tuple[LesionRow, ...]:
    matches = scan.match()
    iou, dice = scan.iou(), scan.lesion_dice()
    rows = {int(found): row for row, found in enumerate(scan.found_ids)}
    columns = {int(lesion): column for column, lesion in enumerate(scan.true_ids)}
    made = []
    for lesion in plan.lesions:
        pair = (rows[matches.pairs[lesion]], columns[lesion]) if lesion in matches.pairs else None
        made.append(
            LesionRow(
                lesion=lesion,
                volume_ml=volumes_ml[lesion],
                role="prompted" if lesion in own else "never" if lesion in plan.never else "promptable",
                found=pair is not None,
                iou=float(iou[pair]) if pair else 0.0,
                dice=own[lesion] if lesion in own else float(dice[pair]) if pair else 0.0,
            )
        )
    return tuple(made)


def _write(volume: Volume, run: _Run, report: ClassReport, result: InstanceMap, out: Path) -> None:
    """Write the reader's final result on the scanner's grid, and a picture of it."""
    name = f"{volume.subject}_class{report.target_class}"
    grid = run.encoded.grid
    write_volume(grid.to_volume(torch.from_numpy(result)), volume.affine, out / "predictions" / f"{name}.nii.gz")
    image = grid.to_stack(volume.image.float().cpu()).numpy()
    truth = run.truth.only([row.lesion for row in report.lesions])
    save_overlay(out / "overlays" / f"{name}.png", image, truth, result, report, grid.row_mm / grid.column_mm)


@contextmanager
def _timed(seconds: dict[str, float], step: str, segmenter: VolumeSegmenter) -> Iterator[None]:
    """Add the wall seconds of a step, the accelerator's work included."""
    start = time.perf_counter()
    try:
        yield
    finally:
        if segmenter.device.type == "cuda":
            torch.cuda.synchronize(segmenter.device)
        seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - start
