"""SAM 2.1 as Meta's own code has it, on random weights: network, prompts, masks and tracking are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sam2.build_sam import build_sam2
from torch import Tensor, nn
from torch.nn import functional

from mois.backbones import SAM2
from mois.backbones.rules import FIRST, SAM2Rules
from mois.backbones.sam2_network import Network
from mois.backbones.sizes import SIZES
from mois.inference.lesion_tracking import track_lesions, track_one_lesion
from tests.support.meta_sam2 import CONFIGS, as_seen, full_precision, meta_image_predictor, without_numbers
from tests.support.sam2_pair import Pair, apart, by_mask, by_points, by_slice, disc, limits, make_pair, meta_run, seeds

TOLERANCE = 1e-4
OURS = {"training", "dynamic_multimask_via_stability"}  # the one is a mode, the other a rule of ours
SLICES = 9


def same_on(ours: Mapping[int, Tensor], theirs: Mapping[int, Tensor], slices: range) -> None:
    differences = {index: apart(ours[index], theirs[index]) for index in slices}
    assert max(differences.values()) < TOLERANCE, differences


@pytest.fixture(scope="module", params=[128, pytest.param(512, marks=pytest.mark.ci)])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("weights"), request.param, SLICES)


@pytest.fixture(scope="module")
def long_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """18 slices of 64 pixels: farther than maps and pointers reach."""
    return make_pair(tmp_path_factory.mktemp("weights"), 64, 18)


def plain_settings(model: nn.Module) -> dict[str, object]:
    """Numbers and switches that a model keeps, and those of all that is in it."""
    return {
        f"{path}.{name}": list(value) if isinstance(value, Sequence) else value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int | float | str | Sequence) and name not in OURS
    }


# ---------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_names_shapes_and_settings_are_metas(size: str) -> None:
    with without_numbers():
        theirs = build_sam2(CONFIGS[size], device="meta")
        ours = Network(SIZES[size], 1024)
    shapes = [{name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} for model in (theirs, ours)]
    assert shapes[0] == shapes[1]
    assert plain_settings(theirs) == plain_settings(ours)
    for name in ("image_encoder", "memory_attention", "memory_encoder", "sam_prompt_encoder"):
        assert plain_settings(getattr(theirs, name)) == plain_settings(getattr(ours, name))


@torch.no_grad()
def test_features_are_metas(pair: Pair) -> None:
    theirs = pair.meta.forward_image(as_seen(pair.images[:1]))
    ours = pair.ours.encode(pair.images[:1])
    assert max(apart(a, b) for a, b in zip(ours.levels, theirs["backbone_fpn"], strict=True)) == 0
    assert apart(ours.position, theirs["vision_pos_enc"][-1]) == 0


@torch.no_grad()
def test_intensities_are_cut_to_those_of_an_8_bit_picture(pair: Pair) -> None:
    bright = pair.images[:1] * 2
    assert bright.max() > 1.5
    theirs = pair.meta.forward_image(as_seen(bright.clamp(0, 1)))
    assert apart(pair.ours.encode(bright).levels[-1], theirs["backbone_fpn"][-1]) == 0


# ---------------------------------------------------------------------------------------------- prompts

PROMPTS = {
    "a click": ([(0.4, 0.4)], (1,)),
    "a negative click": ([(0.4, 0.4)], (0,)),
    "two clicks": ([(0.4, 0.4), (0.45, 0.38)], (1, 1)),
    "a click and a negative one": ([(0.4, 0.4), (0.7, 0.2)], (1, 0)),
    "five clicks": ([(0.4, 0.4), (0.7, 0.2), (0.42, 0.42), (0.1, 0.1), (0.3, 0.5)], (1, 0, 1, 0, 1)),
    "a box": ([(0.25, 0.3), (0.5, 0.55)], (2, 3)),
    "a box and a negative click": ([(0.25, 0.3), (0.5, 0.55), (0.3, 0.5)], (2, 3, 0)),
}


@pytest.mark.parametrize("name", PROMPTS)
@torch.no_grad()
def test_answers_to_prompts_are_those_of_the_image_predictor(pair: Pair, name: str) -> None:
    points, labels = PROMPTS[name]
    given = pair.clicks(*points, labels=labels)
    boxed, several = 2 in labels, len(labels) > 1
    asked = {
        "box": given.points[0, :2].flatten().numpy() if boxed else None,
        "point_coords": given.points[0, 2 * boxed :].numpy() if len(labels) > 2 * boxed else None,
        "point_labels": given.labels[0, 2 * boxed :].numpy() if len(labels) > 2 * boxed else None,
    }
    predictor = meta_image_predictor(pair.meta, pair.images[0])
    _, iou, low = predictor.predict(**asked, multimask_output=not several, return_logits=True)
    ours = pair.decode(0, given)
    best = int(iou.argmax())
    assert apart(ours.logits[0], torch.from_numpy(low[best])) < TOLERANCE
    # as a correction: Meta's predictors hand an earlier answer back cut to 32 either way
    earlier = torch.from_numpy(low[best])[None, None] * 20
    assert earlier.abs().max() > 32
    cut = earlier[0].clamp(-32, 32).numpy()
    _, iou, low = predictor.predict(**asked, mask_input=cut, multimask_output=not several, return_logits=True)
    ours = pair.decode(0, given._replace(mask_logits=earlier))
    assert apart(ours.logits[0], torch.from_numpy(low[int(iou.argmax())])) < TOLERANCE


# ---------------------------------------------------------------------------------------------- tracking


@pytest.mark.parametrize("name", ["a click", "two clicks", "a box", "a mask"])
@torch.no_grad()
def test_tracking_is_that_of_the_video_predictor(pair: Pair, name: str) -> None:
    middle = SLICES // 2
    if name == "a mask":
        ask = by_mask(pair, disc(pair.px))
        answer = pair.ours.adopt(pair.encoded.select(np.array([middle])), disc(pair.px).float()[None])
    else:
        prompts = pair.clicks(*PROMPTS[name][0], labels=PROMPTS[name][1])
        ask, answer = by_points(pair, prompts), pair.decode(middle, prompts)
    found = by_slice(track_lesions(pair.ours, pair.encoded, seeds({middle: answer}), limits(pair.ours), 32))
    assert sorted(found) == list(range(SLICES))
    same_on(found, meta_run(pair, {middle: ask}, middle, reverse=False)[0], range(middle, SLICES))
    same_on(found, meta_run(pair, {middle: ask}, middle, reverse=True)[0], range(middle + 1))


@torch.no_grad()
def test_tracking_to_the_end_of_a_scan_is_that_of_the_video_predictor(pair: Pair) -> None:
    prompts = pair.clicks(*PROMPTS["a click"][0])
    found = by_slice(track_lesions(pair.ours, pair.encoded, seeds({0: pair.decode(0, prompts)}), limits(pair.ours), 32))
    same_on(found, meta_run(pair, {0: by_points(pair, prompts)}, 0, reverse=False)[0], range(SLICES))


@torch.no_grad()
def test_several_objects_are_tracked_at_once_as_one_by_one(pair: Pair) -> None:
    given = {2: pair.clicks((0.4, 0.4)), 5: pair.clicks((0.6, 0.3)), 8: pair.clicks((0.2, 0.7))}
    answers = {index: pair.decode(index, prompts) for index, prompts in given.items()}
    tracked = track_lesions(pair.ours, pair.encoded, seeds(answers), limits(pair.ours), 32)
    for number, (index, prompts) in enumerate(given.items()):
        own = tracked.lesion == number
        found = dict(zip(tracked.rows[own].tolist(), tracked.logits[torch.from_numpy(own)].unsqueeze(1), strict=True))
        same_on(found, meta_run(pair, {index: by_points(pair, prompts)}, index, reverse=True)[0], range(index + 1))
        assert sorted(found) == list(range(SLICES))


@torch.no_grad()
def test_where_the_score_sees_nothing_memory_and_pointer_are_metas_and_tracking_ends(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, 64, 4, presence=-9.0)
    prompts = pair.clicks((0.4, 0.4))
    answer = pair.decode(1, prompts)
    theirs, state = meta_run(pair, {1: by_points(pair, prompts)}, 1, reverse=False)
    told = state["output_dict_per_obj"][0]["cond_frame_outputs"][1]
    assert answer.presence.item() < 0 < answer.logits.max()  # a click is answered all the same
    assert apart(answer.pointer, told["obj_ptr"]) < TOLERANCE
    memory = seeds({1: answer}).remembered(pair.ours, pair.encoded)
    assert apart(memory.maps[:, 0], told["maskmem_features"]) < TOLERANCE
    assert {float(logits.max()) for logits in theirs.values()} == {-1024.0}
    assert sorted(by_slice(track_lesions(pair.ours, pair.encoded, seeds({1: answer}), limits(pair.ours), 32))) == [1]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("size", "px"),
    [("small", 128), ("base_plus", 128), ("large", 128), ("tiny", 224), ("base_plus", 224), ("tiny", 640)],
)
@torch.no_grad()
def test_other_sizes_and_inputs_are_metas(tmp_path: Path, size: str, px: int) -> None:
    pair = make_pair(tmp_path, px, 4, size)
    for name in ("a click", "two clicks", "a box"):
        prompts = pair.clicks(*PROMPTS[name][0], labels=PROMPTS[name][1])
        found = by_slice(
            track_lesions(pair.ours, pair.encoded, seeds({1: pair.decode(1, prompts)}), limits(pair.ours), 32)
        )
        for reverse, reached in ((False, range(1, 4)), (True, range(2))):
            same_on(found, meta_run(pair, {1: by_points(pair, prompts)}, 1, reverse=reverse)[0], reached)


@pytest.mark.parametrize("reverse", [False, True])
@torch.no_grad()
def test_maps_and_pointers_reach_as_far_as_metas(long_pair: Pair, reverse: bool) -> None:
    pair, last = long_pair, len(long_pair.images) - 1
    start, prompts = last if reverse else 0, pair.clicks(*PROMPTS["two clicks"][0], labels=(1, 1))
    answer = pair.decode(start, prompts)
    found = by_slice(track_lesions(pair.ours, pair.encoded, seeds({start: answer}), limits(pair.ours), 32))
    theirs, _ = meta_run(pair, {start: by_points(pair, prompts)}, start, reverse=reverse)
    same_on(found, theirs, range(last + 1))


@torch.no_grad()
def test_every_clicked_slice_is_remembered_and_pointers_only_of_the_past(pair: Pair) -> None:
    places, prompts = [1, 4, 8], pair.clicks(*PROMPTS["two clicks"][0], labels=(1, 1))
    answers = {index: pair.decode(index, prompts) for index in places}
    found = by_slice(track_one_lesion(pair.ours, pair.encoded, seeds(answers), limits(pair.ours)))
    ask = {index: by_points(pair, prompts) for index in places}
    # between two clicked slices each is followed to the middle, from nothing but the clicks
    for start, reverse, reached in [
        (1, True, range(2)),
        (1, False, range(1, 3)),
        (4, True, range(3, 5)),
        (4, False, range(4, 7)),
        (8, True, range(7, 9)),
    ]:
        same_on(found, meta_run(pair, ask, start, reverse=reverse)[0], reached)


@torch.no_grad()
def test_a_correction_of_a_tracked_slice_is_metas(pair: Pair) -> None:
    """Two clicks on a slice that was tracked: one mask, from conditioned features and the tracked mask."""
    first, both = pair.clicks((0.4, 0.4)), pair.clicks((0.4, 0.4), (0.6, 0.6), labels=(1, 0))
    _, state = meta_run(pair, {0: by_points(pair, first)}, 0, reverse=False, steps=2)
    told = state["output_dict_per_obj"][0]
    tracked = told["non_cond_frame_outputs"][1]["pred_masks"]
    with full_precision():
        pair.predictor.add_new_points_or_box(state, 1, 1, both.points[0], both.labels[0])
    theirs = state["temp_output_dict_per_obj"][0]["non_cond_frame_outputs"][1]["pred_masks"]
    memory = seeds({0: pair.decode(0, first)}).remembered(pair.ours, pair.encoded)
    seen = pair.ours.tracking.gather([(1, memory)], [], slices=SLICES)
    features = pair.ours.attend(pair.encoded.select(np.array([1])), seen)
    ours = pair.ours.decode(features, both._replace(mask_logits=tracked))
    assert apart(ours.logits.unsqueeze(1), theirs) < TOLERANCE
    assert ours.candidates.shape[1] == 1


# ---------------------------------------------------------------------------------------------- masks and memory


@torch.no_grad()
def test_a_readers_mask_is_metas(pair: Pair) -> None:
    mask = disc(pair.px)
    _, state = meta_run(pair, {0: by_mask(pair, mask)}, 0, reverse=False, steps=0)
    theirs = state["output_dict_per_obj"][0]["cond_frame_outputs"][0]
    features = pair.encoded.select(np.array([0]))
    ours = pair.ours.adopt(features, mask.float()[None])
    assert apart(ours.logits.unsqueeze(1), theirs["pred_masks"]) < TOLERANCE
    assert apart(ours.pointer, theirs["obj_ptr"]) < TOLERANCE
    assert apart(ours.presence, theirs["object_score_logits"][:, 0]) == 0
    memory = pair.ours.remember_slice(features, ours.logits, ours.pointer, ours.presence, hard=True)
    assert apart(memory.maps[:, 0], theirs["maskmem_features"]) < TOLERANCE


@pytest.mark.parametrize("presence", [-3.0, 3.0])
@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("hard", [True, False])
@torch.no_grad()
def test_the_score_says_whether_a_remembered_slice_shows_the_object(
    pair: Pair, presence: float, shown: bool, hard: bool
) -> None:
    features = pair.encoded.select(np.array([0]))
    logits = functional.avg_pool2d(disc(pair.px).float()[None, None], 4) * 6 - (3 if shown else 9)
    score = torch.tensor([[presence]])
    gated = logits if presence > 0 else torch.full_like(logits, -1024.0)  # as Meta's decoder hands it on
    large = functional.interpolate(gated, (pair.px, pair.px), mode="bilinear", align_corners=False)
    flat = [level.flatten(2).permute(2, 0, 1) for level in features.levels]
    sizes = [level.shape[-2:] for level in features.levels]
    theirs, position = pair.predictor._encode_new_memory(flat, sizes, large, score, is_mask_from_pts=hard)
    pointer = torch.zeros(1, pair.ours.width)
    ours = pair.ours.remember_slice(features, logits[:, 0], pointer, score[:, 0], hard=hard)
    assert apart(ours.maps[:, 0], theirs) < TOLERANCE
    assert apart(ours.position[:, 0], position[0]) < TOLERANCE


@torch.no_grad()
def test_an_unstable_single_mask_gives_way_to_the_best_candidate(long_pair: Pair) -> None:
    decoders = [model.sam_mask_decoder for model in (long_pair.meta, long_pair.ours.sam)]
    weights = [decoder.output_hypernetworks_mlps[0].layers[-1].weight for decoder in decoders]
    before = weights[0].clone()
    given = long_pair.clicks(*PROMPTS["two clicks"][0], labels=(1, 1))
    plain = long_pair.decode(0, given)
    try:
        for weight in weights:
            weight *= 1e-4  # all of the mask lies near 0
        low = meta_image_predictor(long_pair.meta, long_pair.images[0]).predict(
            given.points[0].numpy(), given.labels[0].numpy(), multimask_output=False
        )[2]
        ours = long_pair.decode(0, given)
        assert apart(ours.logits, torch.from_numpy(low)) < TOLERANCE
        assert apart(ours.logits, ours.candidates[:, 0]) > 1  # what is learned stays the single mask
        assert apart(ours.pointer, plain.pointer) == 0
    finally:
        for weight in weights:
            weight.copy_(before)


def test_the_rules_of_the_nano_are_not_metas(long_pair: Pair) -> None:
    nano, tiny = SAM2("nano", "random", patch_px=64), long_pair.ours
    assert nano.rules == FIRST
    assert nano.behaviour() == {}
    assert tiny.rules == SAM2Rules()
    assert (tiny.tracking.maps, tiny.tracking.pointers, tiny.tracking.past_pointers) == (6, 15, True)
