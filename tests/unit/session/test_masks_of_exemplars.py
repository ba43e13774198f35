"""Which mask of a clicked lesion describes it as an exemplar, in a session as in an evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mois.inference.encoded_volume import enlarge
from mois.inference.segmenter import VolumeSegmenter
from mois.records import Prompts
from mois.session.prompts.prompting import PromptSegmenter
from mois.session.prompts.slice_answers import SliceAnswers, TilePrompts
from mois.session.state import Prompt
from tests.support.session_fakes import bundled_nano, make_segmenter, three_lesions


@pytest.mark.parametrize("clicks", ["model", "matched", "bounded", "followed", "near"])
@torch.inference_mode()
def test_bounded_masks_describe_exemplars_and_matched_ones_do_not(clicks: str) -> None:
    given = bundled_nano().segmenter
    settings = replace(given.settings, clicks=clicks, half_features=False)
    segmenter = VolumeSegmenter(given.backbone, given.propagation, settings)
    encoded = segmenter.encode(three_lesions())
    index, (row, column) = 3, (46.0, 32.0)
    described = PromptSegmenter(segmenter, encoded).segment([Prompt("click", index, ((row, column),))]).soft[index]

    sizes = zip(encoded.pictures.shape[1:], encoded.grid.stack_shape[1:], strict=True)
    y, x = ((place + 0.5) * size / own - 0.5 for place, (size, own) in zip((row, column), sizes, strict=True))
    tile = int(encoded.tiles.best_tile(y, x))
    top, left = encoded.corner(tile)
    click = Prompts(torch.tensor([[[x - left, y - top]]]), torch.tensor([[1]], dtype=torch.int32))
    rows = np.array([segmenter.row(encoded, index, tile)])
    shown = segmenter.answer(encoded, rows, click).logits
    by_model = VolumeSegmenter(given.backbone, given.propagation, replace(settings, clicks="model"))
    of_model = by_model.answer(encoded, rows, click).logits

    on_tile = described[top : top + encoded.tile_px, left : left + encoded.tile_px]
    height, width = on_tile.shape
    differs = {
        name: float((enlarge(logits, encoded.tile_px)[0, :height, :width].sigmoid() - on_tile).abs().max())
        for name, logits in (("shown", shown), ("model", of_model))
    }
    expected = {
        "model": {"shown", "model"},
        "matched": {"model"},
        "bounded": {"shown"},
        "followed": {"shown"},
        "near": {"shown"},
    }[clicks]
    assert {name for name, most in differs.items() if most < 1e-5} == expected


@pytest.mark.parametrize(
    ("clicks", "kept"), [("model", False), ("matched", True), ("bounded", False), ("followed", False), ("near", False)]
)
@torch.inference_mode()
def test_a_session_keeps_masks_of_the_model_only_where_they_describe_exemplars(clicks: str, kept: bool) -> None:
    given = make_segmenter()
    segmenter = VolumeSegmenter(given.backbone, given.propagation, replace(given.settings, clicks=clicks))
    encoded = segmenter.encode(three_lesions())
    clicked = [Prompt("click", 3, ((46.0, 32.0),)), Prompt("click", 4, ((44.0, 30.0),), positive=False)]
    tile = int(encoded.tiles.best_tile(46.0, 32.0))
    answers = SliceAnswers(segmenter, encoded).answers(TilePrompts(tile, clicked))
    assert [answer.own is not None for answer in answers.values()] == [kept, kept]
