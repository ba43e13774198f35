"""What a model answers to the same prompts at several pixel sizes, before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mois.clicks import central_pixel
from mois.evaluation.reader import Reader
from mois.geometry import SliceGrid
from mois.lesions import InstanceMap
from mois.metrics.overlap import Matches, dice, match_lesions
from mois.records import Volume
from mois.session import InteractiveSession
from mois.session.playing import play, requested_actions
from mois.session.points import stack_point
from mois.session.prompts.prompt_file import PromptEntry
from mois.session.prompts.refusals import NothingLeft
from mois.sharing.lesion_model import LesionModel


@dataclass(frozen=True)
class TrialFigures:
    """Figures of an answer against annotated lesions; NaN where nothing can be measured.

    Attributes:
        prompted_dice: Dice of the clicked lesions.
        unprompted_dice: Dice of the other lesions of the class.
        lesion_f1: F1 of these lesions.
        false_lesions: Number of found lesions that are none.
    """

    prompted_dice: float
    unprompted_dice: float
    lesion_f1: float
    false_lesions: int


@dataclass(frozen=True)
class PixelTrial:
    """The answer at one pixel size.

    Attributes:
        pixel_mm: Edge of a pixel in mm.
        lesions: (S, H, W) int32, all lesions of the answer.
        prompted: Ids of those that were prompted; the others were found.
        volume_ml: Volume of all of them.
        seconds: Time from the scan to the answer.
        figures: Figures, where lesions are annotated; else None.
    """

    pixel_mm: float
    lesions: InstanceMap
    prompted: tuple[int, ...]
    volume_ml: float
    seconds: float
    figures: TrialFigures | None

    @property
    def found(self) -> InstanceMap:
        """(S, H, W) int32, the lesions that nobody prompted."""
        return np.where(np.isin(self.lesions, self.prompted), 0, self.lesions)


@dataclass(frozen=True)
class Annotated:
    """The annotated lesions of one class of a scan, and which of them are clicked.

    Attributes:
        lesions: (S, H, W) int32, lesions of the class.
        clicked: Ids of the clicked lesions.
        entries: A click on each of them.
    """

    lesions: InstanceMap
    clicked: tuple[int, ...]
    entries: tuple[PromptEntry, ...]

    @property
    def others(self) -> InstanceMap:
        """(S, H, W) int32, the lesions that are not clicked."""
        return np.where(np.isin(self.lesions, self.clicked), 0, self.lesions)


def click_annotated(volume: Volume, target_class: int, count: int) -> Annotated:
    """Click some annotated lesions of a class in their middle, on their largest slice: large, middle and small ones.

    Args:
        volume: The scan with its lesions.
        target_class: Class of the lesions.
        count: Number of clicks; at most half of the lesions are clicked, and one at least.
    """
    grid = SliceGrid.of(volume.shape, volume.affine)
    stack = grid.to_stack(volume.lesions)
    ids = [lesion for lesion, kind in volume.classes.items() if kind == target_class]
    lesions: InstanceMap = np.where(np.isin(stack.numpy(), ids), stack.numpy(), 0).astype(np.int32)
    voxels = np.bincount(lesions.reshape(-1), minlength=max(ids) + 1)
    volumes_ml = {lesion: float(voxels[lesion]) * volume.voxel_ml for lesion in ids}
    clicked = Reader("spread").choose_lesions(volumes_ml, max(1, min(count, len(ids) // 2)))
    entries = []
    for number, lesion in enumerate(clicked, start=1):
        mask = stack == lesion  # (S, H, W)
        index = int(mask.flatten(1).sum(1).argmax())
        column, row = central_pixel(mask[index].unsqueeze(0))[0].tolist()
        point = grid.to_lps_mm(stack.new_tensor([[index, round(row), round(column)]]))[0].tolist()
        entries.append(PromptEntry("click", point, number=number))
    return Annotated(lesions, tuple(clicked), (*entries, PromptEntry("propagate", True)))


def try_pixel_size(
    model: LesionModel,
    volume: Volume,
    pixel_mm: float,
    entries: Sequence[PromptEntry],
    annotated: Annotated | None = None,
) -> PixelTrial:
    """Answer prompts at a pixel size.

    Args:
        model: The model; its own pixel size is not used.
        volume: The scan.
        pixel_mm: Edge of a pixel in mm.
        entries: Prompts, with a propagation at the end.
        annotated: The annotated lesions, if there are any.

    Raises:
        ValueError: If a prompt does not fit the scan.
    """
    start = time.monotonic()
    settings = replace(model.segmenter.settings, pixel_mm=pixel_mm)
    session = InteractiveSession(replace(model, segmenter=model.segmenter.with_settings(settings)), volume)
    if annotated is None:
        play(session, requested_actions(entries, volume), Path())
    else:
        _click(session, entries)
    rows = session.lesions()
    lesions: InstanceMap = SliceGrid.of(volume.shape, volume.affine).to_stack(session.label_map()).numpy()
    session.close()
    prompted = tuple(row.id for row in rows if row.origin == "prompted")
    seconds = time.monotonic() - start
    figures = None if annotated is None else _score(lesions, prompted, annotated)
    return PixelTrial(pixel_mm, lesions, prompted, sum(row.volume_ml for row in rows), seconds, figures)


def _click(session: InteractiveSession, entries: Sequence[PromptEntry]) -> None:
    """Click as a reader would: not where an earlier click already shows a lesion. Then propagate.

    A click under which the model sees nothing at this pixel size is left out.
    """
    grid = SliceGrid.of(session.volume.shape, session.volume.affine)
    for entry in entries:
        if entry.kind == "propagate":
            session.propagate()
            continue
        place = stack_point(grid, entry.given).voxel
        if not grid.to_stack(session.label_map())[place]:
            with suppress(NothingLeft):
                session.click(entry.given)


def _score(lesions: InstanceMap, prompted: Sequence[int], annotated: Annotated) -> TrialFigures:
    clicked_true = np.isin(annotated.lesions, annotated.clicked)
    clicked_mask = np.isin(lesions, prompted)
    found = np.where(clicked_mask, 0, lesions)
    matches = match_others(lesions, prompted, annotated)
    return TrialFigures(
        dice(clicked_mask, clicked_true),
        dice(found > 0, annotated.others > 0, clicked_true | clicked_mask),
        matches.f1,
        len(matches.false),
    )


def match_others(lesions: InstanceMap, prompted: Sequence[int], annotated: Annotated) -> Matches:
    """Pair the lesions that nobody clicked with those that were found; the clicked ones are taken out.

    Args:
        lesions: (S, H, W) int32, all lesions of an answer.
        prompted: Ids of those that were prompted.
        annotated: The annotated lesions.
    """
    clicked_mask = np.isin(lesions, prompted)
    taken_out = np.isin(annotated.lesions, annotated.clicked) | clicked_mask
    found: InstanceMap = np.where(clicked_mask, 0, lesions)
    return match_lesions(found, annotated.others, taken_out)
