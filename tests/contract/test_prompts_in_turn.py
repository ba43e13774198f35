"""The prompts of one slice, one after the other, answered as Meta's video predictor answers them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mois.inference.segmenter import InferenceSettings, VolumeSegmenter
from mois.propagation import Sam2Only
from mois.session.masks import BoxMask
from mois.session.prompts.prompting import PromptSegmenter
from mois.session.state import Prompt
from tests.support.meta_sam2 import full_precision, video_state
from tests.support.sam2_pair import Pair, apart, disc, make_pair

INDEX, PX = 2, 128
MASK = Prompt("mask", INDEX, mask=BoxMask.of(disc(PX).numpy()[None], (INDEX, 0, 0)))
BOX = Prompt("box", INDEX, ((35.0, 38.0), (65.0, 70.0)))
IN, ALSO = Prompt("click", INDEX, ((50.0, 51.0),)), Prompt("click", INDEX, ((60.0, 45.0),))
OUT, AWAY = (
    Prompt("click", INDEX, ((40.0, 40.0),), positive=False),
    Prompt("click", INDEX, ((70.0, 30.0),), positive=False),
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(Path(tmp_path_factory.mktemp("weights")), PX, 4)


def metas(pair: Pair, prompts: tuple[Prompt, ...]) -> Tensor:
    state = video_state(pair.predictor, pair.images)
    add = pair.predictor.add_new_points_or_box
    with full_precision():
        for prompt in prompts:
            points = torch.tensor(prompt.points).flip(-1)  # x before y
            if prompt.kind == "mask":
                pair.predictor.add_new_mask(state, INDEX, 1, disc(PX))
            elif prompt.kind == "box":
                add(state, INDEX, 1, box=points.flatten())
            else:
                add(state, INDEX, 1, points, torch.tensor([int(prompt.positive)]), clear_old_points=False)
    answer: Tensor = state["temp_output_dict_per_obj"][0]["cond_frame_outputs"][INDEX]["pred_masks"]
    return answer


@pytest.mark.parametrize(
    "prompts",
    [(IN, ALSO), (IN, OUT, AWAY), (BOX, OUT), (BOX, IN, OUT, ALSO), (MASK, ALSO, OUT)],
    ids=lambda prompts: ", ".join(prompt.kind if prompt.positive else "out" for prompt in prompts),
)
@torch.no_grad()
def test_each_prompt_corrects_the_answer_to_those_before_it_as_in_sam2(pair: Pair, prompts: tuple[Prompt, ...]) -> None:
    settings = InferenceSettings(pixel_mm=1.0, air_level=0.0, half_features=False, precision="32")
    session = PromptSegmenter(VolumeSegmenter(pair.ours, Sam2Only(), settings), pair.encoded)
    grid, theirs = pair.encoded.grid, metas(pair, prompts)
    tracked = torch.nn.functional.interpolate(theirs, (PX, PX), mode="bilinear", align_corners=False)[0, 0]
    soft = session.segment(prompts).soft[INDEX]
    assert grid.stack_shape[1:] == (PX, PX)
    assert apart(soft, tracked.clamp(-20, 20).sigmoid()) < 1e-5
    assert 0 < float((soft > 0.5).float().mean()) < 1
