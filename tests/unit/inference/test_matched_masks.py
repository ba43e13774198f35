"""Clicked masks that are matched to the picture, on pictures of one disc that can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mois.filters import FILTERS, filter_bank
from mois.inference.encoded_volume import EncodedVolume
from mois.inference.matched_masks import (
    BOUNDED,
    MATCHED,
    MaskRules,
    Picture,
    border_contrast,
    by_cell,
    for_model,
    match_answer,
    match_clicked,
)
from mois.records import MaskPrediction, Prompts
from tests.support.cell_pictures import CELLS, SHOWN, dice, disc, logits, picture
from tests.support.fake_model import TYPE_A, box, make_scan
from tests.support.session_fakes import make_segmenter


def test_contrast_is_the_difference_of_both_sides_in_standard_deviations() -> None:
    inside = np.zeros((CELLS, CELLS), dtype=bool)
    inside[:, :16] = True
    filters = torch.zeros(FILTERS, CELLS, CELLS)
    filters[0, :, :16] = torch.tensor([0.8, 1.0]).repeat(8)  # mean 0.9, variance 0.01
    filters[0, :, 16:] = torch.tensor([0.1, 0.3]).repeat(8)  # mean 0.2, variance 0.01
    contrast = border_contrast(Picture(filters, SHOWN), inside)
    assert contrast.tolist() == pytest.approx([0.7 / 0.02001**0.5], rel=1e-4)
    assert border_contrast(Picture(filters, SHOWN), ~inside).tolist() == pytest.approx([-0.7 / 0.02001**0.5], rel=1e-4)


def test_of_several_candidates_the_one_with_the_clearest_border_is_taken() -> None:
    lesion = disc(6)
    candidates = torch.stack([logits(disc(10)), logits(lesion), logits(disc(3))])
    matched = match_clicked(picture(lesion), candidates, [(16, 16)], [])
    assert dice(matched.inside, lesion) > 0.9
    assert ((matched.logits > 0).numpy() == matched.inside).all()


def test_a_part_that_was_not_clicked_is_left_out() -> None:
    lesion, other = disc(4, 8, 8), disc(4, 24, 24)
    matched = match_clicked(picture(lesion, other), logits(lesion | other).unsqueeze(0), [(8, 8)], [])
    assert matched.inside[8, 8]
    assert not matched.inside[24, 24]


def test_clicks_win_over_the_picture() -> None:
    lesion = disc(6)
    matched = match_clicked(picture(lesion), logits(lesion).unsqueeze(0), [(16, 16), (3, 3)], [(14, 14)])
    assert matched.inside[16, 16]
    assert matched.inside[3, 3]  # dark, but clicked as inside
    assert not matched.inside[14, 14]  # bright, but clicked as outside


def test_bounded_a_mask_does_not_run_into_a_lesion_that_touches_it_and_looks_like_it() -> None:
    lesion, other = disc(5, 16, 10), disc(5, 16, 19)
    candidate = logits(lesion).unsqueeze(0)
    matched = match_clicked(picture(lesion, other), candidate, [(16, 10)], [])
    assert (matched.inside == lesion | other).all()  # why there is a bound
    bounded = match_clicked(picture(lesion, other), candidate, [(16, 10)], [], BOUNDED)
    assert dice(bounded.inside, lesion) > 0.9
    assert np.hypot(*(np.argwhere(bounded.inside) - (16, 10)).T).max() <= 5 + BOUNDED.reach_cells


def test_bounded_the_candidates_vote_between_two_clear_borders() -> None:
    core, whole = disc(5), disc(10)
    image = torch.full((CELLS, CELLS), 0.2)
    image[torch.from_numpy(whole)], image[torch.from_numpy(core)] = 0.5, 0.8  # both borders fall by 0.3
    noise = 0.02 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    pixels = (image + noise).repeat_interleave(2, 0).repeat_interleave(2, 1)
    shown = Picture(filter_bank(pixels.view(1, 1, 64, 64))[0], SHOWN)

    def taken(votes: list[np.ndarray], rules: MaskRules) -> np.ndarray:
        return match_clicked(shown, torch.stack([logits(vote) for vote in votes]), [(16, 16)], [], rules).inside

    assert dice(taken([core, whole, whole], BOUNDED), whole) > 0.9
    assert dice(taken([core, core, whole], BOUNDED), core) > 0.9
    assert (taken([core, whole, whole], MATCHED) == taken([core, core, whole], MATCHED)).all()


def test_masks_of_the_model_and_masks_by_cell_turn_into_each_other() -> None:
    small = torch.zeros(1, 8, 8)
    small[0, :4] = 2.0
    large = by_cell(small, 32)
    assert large.shape == (1, 16, 16)
    assert large[0, :7].eq(2.0).all()
    assert for_model(large, 32).shape == (1, 8, 8)
    assert for_model(large, 32)[0, 0].eq(2.0).all()
    assert for_model(small, 32) is small
    assert by_cell(large, 32).equal(large)


def _answered(labels: list[int]) -> tuple[EncodedVolume, MaskPrediction, MaskPrediction]:
    segmenter = make_segmenter()
    encoded = segmenter.encode(make_scan([(TYPE_A, box((1, 4), (16, 24), (16, 24)))]))
    rows = np.array([segmenter.row(encoded, 2, int(encoded.tiles.best_tile(20, 20)))])
    top, left = encoded.corner(int(encoded.places[rows[0]][1]))
    points = torch.tensor([[[20.0 - left, 20.0 - top]] * len(labels)])
    prompts = Prompts(points, torch.tensor([labels], dtype=torch.int32))
    answer = segmenter.answer(encoded, rows, prompts)
    return encoded, answer, match_answer(encoded, rows, prompts, answer)


def test_an_answer_to_a_click_is_matched_and_one_to_a_box_only_enlarged() -> None:
    encoded, answer, matched = _answered([1])
    assert matched.logits.shape == (1, encoded.tile_px // 2, encoded.tile_px // 2)
    assert matched.pointer.equal(answer.pointer)
    encoded, answer, boxed = _answered([2, 3])
    assert boxed.logits.equal(by_cell(answer.logits, encoded.tile_px))
