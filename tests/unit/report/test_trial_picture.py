"""The picture of `mois try`: a row for each pixel size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mois.cli.try_bundle import _judgement
from mois.evaluation.actions.pixel_trials import (
    Annotated,
    PixelTrial,
    TrialFigures,
    _score,
    click_annotated,
    try_pixel_size,
)
from mois.geometry import SliceGrid
from mois.records import Volume
from mois.report.trial_picture import _masks, draw_trials
from mois.session.masks import BoxMask
from mois.session.prompts.prompt_file import PromptEntry
from mois.session.prompts.prompting import PromptSegmenter, SegmentedLesion
from tests.support.fake_model import TYPE_A, box, make_scan
from tests.support.session_fakes import make_model


def scan() -> Volume:
    """Return a scan of 40 x 40 x 6 voxels of 1 mm, with lesions of 9, 27 and 75 voxels on one or three slices."""
    lesions = torch.zeros(40, 40, 6, dtype=torch.int32)
    lesions[5:8, 5:8, 1] = 4
    lesions[20:23, 5:8, 1:4] = 7
    lesions[20:25, 20:25, 2:5] = 9
    image = torch.rand(40, 40, 6, generator=torch.Generator().manual_seed(0)) + 3 * (lesions > 0)
    affine = torch.diag(torch.tensor([-1.0, -1.0, 3.0, 1.0], dtype=torch.float64))  # i to the left, j to the back
    return Volume("a", "a", image, affine, lesions, {4: 1, 7: 1, 9: 1})


def test_the_middle_lesion_is_clicked_in_its_middle() -> None:
    annotated = click_annotated(scan(), 1, count=5)
    assert annotated.clicked == (7,)  # half of three lesions; of the sizes 9, 27 and 75 the middle one first
    click, propagation = annotated.entries
    assert click.given == pytest.approx([21.0, 6.0, 3.0])  # the first of its slices, voxel (21, 6, 1), LPS mm
    assert propagation.kind == "propagate"


def test_figures_by_hand() -> None:
    """Truth: 2 voxels clicked, 4 others. Answer: both and one more of the clicked, 2 of the 4 others, a false one."""
    truth = np.array([[[1, 1, 0, 0, 2, 2, 2, 2, 0, 0]]], np.int32)
    answer = np.array([[[1, 1, 1, 0, 5, 5, 0, 0, 0, 8]]], np.int32)
    figures = _score(answer, (1,), Annotated(truth, (1,), ()))
    assert figures.prompted_dice == pytest.approx(2 * 2 / (2 + 3))
    assert figures.unprompted_dice == pytest.approx(2 * 2 / (4 + 3))
    assert figures.lesion_f1 == pytest.approx(2 / 3)  # one found, one false
    assert figures.false_lesions == 1


@pytest.mark.parametrize("known", [True, False])
def test_a_row_for_each_size(tmp_path: Path, known: bool) -> None:
    volume = scan()
    annotated = click_annotated(volume, 1, count=1) if known else None
    lesions = np.moveaxis(volume.lesions.numpy(), -1, 0)
    figures = TrialFigures(0.5, 0.5, 0.5, 0) if known else None
    trials = [PixelTrial(size, lesions.copy(), (7,), 1.0, 2.0, figures) for size in (0.5, 1.0)]
    path = draw_trials(tmp_path / "try.png", volume, trials, annotated)
    with Image.open(path) as picture:
        one_row = picture.height / picture.width
    path = draw_trials(tmp_path / "try.png", volume, trials[:1], annotated)
    with Image.open(path) as picture:
        assert picture.height / picture.width < one_row


def test_the_words_fit_beside_a_single_narrow_panel(tmp_path: Path) -> None:
    alone = scan()._replace(lesions=scan().lesions * (scan().lesions == 4), classes={4: 1})
    annotated = click_annotated(alone, 1, count=1)
    trial = PixelTrial(0.25, annotated.lesions, (), 1.0, 2.0, TrialFigures(0.5, 0.5, 0.5, 0))
    with Image.open(draw_trials(tmp_path / "try.png", alone, [trial], annotated)) as picture:
        grey = np.asarray(picture.convert("L"))
    headline = grey[:32].max(0)  # of each column
    assert headline.max() > 128
    assert headline[-4:].max() < 16
    assert grey[-32:, -4:].max() < 16  # the legend ends before the edge, too
    assert grey[-32:, :4].max() < 16


def test_the_picture_shows_as_false_what_the_figures_count_as_false() -> None:
    """A third of a clicked lesion was found on its own: it is taken out, in the figures and in the picture."""
    truth = np.array([[[1, 1, 1, 0, 2, 2, 2, 2, 0, 0]]], np.int32)
    answer = np.array([[[1, 1, 5, 0, 6, 6, 6, 0, 0, 8]]], np.int32)
    annotated = Annotated(truth, (1,), ())
    figures = _score(answer, (1,), annotated)
    masks = _masks(PixelTrial(1.0, answer, (1,), 1.0, 1.0, figures), annotated)
    assert figures.false_lesions == 1
    assert masks["false"].nonzero()[2].tolist() == [9]
    assert masks["found"].nonzero()[2].tolist() == [2, 4, 5, 6]


def test_a_lesion_that_an_earlier_click_shows_is_not_clicked() -> None:
    """The fake model segments all pixels of the clicked intensity, so one click shows both lesions at once."""
    volume = make_scan([(TYPE_A, box((1, 4), (16, 24), (16, 24))), (TYPE_A, box((1, 4), (16, 24), (25, 33)))])
    grid = SliceGrid.of(volume.shape, volume.affine)
    points = [grid.to_lps_mm(torch.tensor([[2, 20, column]]))[0].tolist() for column in (20, 29)]
    entries = (*(PromptEntry("click", point) for point in points), PromptEntry("propagate", True))
    lesions = grid.to_stack(volume.lesions).numpy()
    trial = try_pixel_size(make_model(), volume, 1.5, entries, Annotated(lesions, (1, 2), entries))
    assert len(trial.prompted) == 1


def test_a_click_under_which_the_model_sees_nothing_ends_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = make_scan([(TYPE_A, box((1, 4), (16, 24), (16, 24))), (TYPE_A, box((1, 4), (36, 44), (36, 44)))])
    annotated = click_annotated(volume, 1, count=1)
    nothing = SegmentedLesion(BoxMask.of(np.zeros((1, 1, 1), dtype=bool)), {})
    monkeypatch.setattr(PromptSegmenter, "segment", lambda self, prompts: nothing)
    trial = try_pixel_size(make_model(), volume, 1.5, annotated.entries, annotated)
    assert trial.prompted == ()


@pytest.mark.parametrize(
    ("dice", "said"),
    [
        ((0.2, 0.4), "2 mm per pixel finds the others best (Dice 0.40), before any training"),
        ((float("nan"), 0.0), "none of the others is found at any of these pixel sizes, before any training"),
    ],
)
def test_the_size_that_finds_most_is_named_if_there_is_one(dice: tuple[float, float], said: str) -> None:
    annotated = click_annotated(scan(), 1, count=1)
    trials = [
        PixelTrial(size, annotated.lesions, (7,), 1.0, 2.0, TrialFigures(0.5, value, 0.5, 0))
        for size, value in zip((1.0, 2.0), dice, strict=True)
    ]
    assert _judgement(trials, annotated) == said


def test_a_single_lesion_leaves_nothing_to_be_found() -> None:
    alone = scan()._replace(classes={9: 1})
    trial = PixelTrial(1.0, np.zeros((6, 40, 40), np.int32), (), 0.0, 1.0, TrialFigures(0.0, 0.0, 0.0, 3))
    said = "each lesion of the class was clicked, so nothing says which pixel size finds others"
    assert _judgement([trial], click_annotated(alone, 1, count=5)) == said
