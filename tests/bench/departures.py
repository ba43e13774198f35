"""How far ours is from Meta's SAM 2.1, rule by rule, on random weights: the tables of docs/sam2.md.

python tests/bench/departures.py [EDGE]: about 10 CPU minutes at 512 pixels, half a minute at 128.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from mois.backbones.rules import FIRST, SAM2Rules
from mois.inference.lesion_tracking import track_lesions, track_one_lesion
from mois.records import MaskPrediction
from tests.support.sam2_pair import Pair, by_mask, by_points, by_slice, disc, limits, make_pair, meta_run, seeds

SLICES = 10
RULES = SAM2Rules()
ONE, TWO = ([(0.4, 0.4)], (1,)), ([(0.4, 0.4), (0.45, 0.38)], (1, 1))


class Far:
    """Largest difference of logits, and Dice of the masks, over slices."""

    def __init__(self, ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> None:
        pairs = list(zip(ours, theirs, strict=True))
        self.logits = max(float((one - other).abs().max()) for one, other in pairs)
        self.dice = min(_dice(one > 0, other > 0) for one, other in pairs)

    def __str__(self) -> str:
        return f"{self.logits:.1e} | {self.dice:.2f}" if self.logits < 0.01 else f"{self.logits:.2f} | {self.dice:.2f}"


def _dice(one: Tensor, other: Tensor) -> float:
    total = float(one.sum() + other.sum())
    return 2 * float((one & other).sum()) / total if total else 1.0


def tracked(pair: Pair, answer: MaskPrediction, start: int = 0) -> list[Tensor]:
    found = by_slice(track_lesions(pair.ours, pair.encoded, seeds({start: answer}), limits(pair.ours), 32))
    return [found[index] for index in sorted(found)]


def forward(pair: Pair, ask: Callable[[object, int], None], start: int = 0) -> list[Tensor]:
    theirs, _ = meta_run(pair, {start: ask}, start, reverse=False)
    return [theirs[index] for index in sorted(theirs)]


def one_click(pair: Pair) -> Far:
    prompts = pair.clicks(*ONE[0])
    return Far(tracked(pair, pair.decode(0, prompts)), forward(pair, by_points(pair, prompts)))


def two_clicks(pair: Pair) -> Far:
    prompts = pair.clicks(*TWO[0], labels=TWO[1])
    return Far(tracked(pair, pair.decode(0, prompts)), forward(pair, by_points(pair, prompts)))


def corrected(pair: Pair) -> Far:
    first, both = pair.clicks(*ONE[0]), pair.clicks((0.4, 0.4), (0.6, 0.6), labels=(1, 0))
    theirs, state = meta_run(pair, {0: by_points(pair, first)}, 0, reverse=False, steps=2)
    pair.predictor.add_new_points_or_box(state, 1, 1, both.points[0], both.labels[0])
    corrected = state["temp_output_dict_per_obj"][0]["non_cond_frame_outputs"][1]["pred_masks"]
    memory = seeds({0: pair.decode(0, first)}).remembered(pair.ours, pair.encoded)
    seen = pair.ours.tracking.gather([(1, memory)], [], slices=len(pair.images))
    features = pair.ours.attend(pair.encoded.select(np.array([1])), seen)
    ours = pair.ours.decode(features, both._replace(mask_logits=theirs[1].unsqueeze(0)))
    return Far([ours.logits], [corrected[0]])


def three_slices(pair: Pair) -> Far:
    prompts, places = pair.clicks(*TWO[0], labels=TWO[1]), (0, 4, 9)
    answers = {index: pair.decode(index, prompts) for index in places}
    found = by_slice(track_one_lesion(pair.ours, pair.encoded, seeds(answers), limits(pair.ours)))
    theirs, _ = meta_run(pair, {index: by_points(pair, prompts) for index in places}, 0, reverse=False, steps=2)
    return Far([found[1], found[2]], [theirs[1], theirs[2]])


def given_mask(pair: Pair) -> Far:
    mask = disc(pair.px)
    answer = pair.ours.adopt(pair.encoded.select(np.array([0])), mask.float()[None])
    return Far(tracked(pair, answer), forward(pair, by_mask(pair, mask)))


def absent(pair: Pair) -> Far:
    """A clicked slice whose score says that there is nothing, though the mask shows something."""
    prompts = pair.clicks(*ONE[0])
    bias = [m.sam_mask_decoder.pred_obj_score_head.layers[-1].bias for m in (pair.ours.sam, pair.predictor)]
    try:
        for value in bias:
            value -= 6.0
        answer = pair.decode(0, prompts)
        assert answer.presence < 0 < answer.logits.max()
        _, state = meta_run(pair, {0: by_points(pair, prompts)}, 0, reverse=False, steps=0)
        told = state["output_dict_per_obj"][0]["cond_frame_outputs"][0]
        memory = seeds({0: answer}).remembered(pair.ours, pair.encoded)
        return Far([memory.maps[:, 0]], [told["maskmem_features"]])
    finally:
        for value in bias:
            value += 6.0


def unstable(pair: Pair) -> Far:
    prompts = pair.clicks(*TWO[0], labels=TWO[1])
    decoders = [model.sam_mask_decoder for model in (pair.ours.sam, pair.predictor)]
    weights = [decoder.output_hypernetworks_mlps[0].layers[-1].weight for decoder in decoders]
    before = weights[0].clone()
    try:
        for weight in weights:
            weight *= 1e-4
        theirs, _ = meta_run(pair, {0: by_points(pair, prompts)}, 0, reverse=False, steps=0)
        return Far([pair.decode(0, prompts).logits], [theirs[0]])
    finally:
        for weight in weights:
            weight.copy_(before)


def far_logits(pair: Pair) -> Far:
    prompts = pair.clicks(*TWO[0], labels=TWO[1])
    earlier = 20 * pair.decode(0, prompts).logits[:, None]
    theirs = pair.decode(0, prompts._replace(mask_logits=earlier.clamp(-32, 32)))
    return Far([pair.decode(0, prompts._replace(mask_logits=earlier)).logits], [theirs.logits])


def bright(pair: Pair) -> Far:
    image = pair.images[:1] * 2
    prompts = pair.clicks(*ONE[0])
    ours = [pair.ours.decode(pair.ours.encode(one), prompts).logits for one in (image, image.clamp(0, 1))]
    return Far(ours[:1], ours[1:])


OFF: Mapping[str, tuple[dict[str, object], Callable[[Pair], Far]]] = {
    "one map, its pointer": ({"maps": 1, "pointers": None, "past_pointers": False}, one_click),
    "pointers no farther than maps": ({"pointers": 6}, one_click),
    "distances always over 15, on 10 slices": ({"scaled_pointers": False}, one_click),
    "three candidates for two clicks on a conditioned slice": ({"single_mask": False}, corrected),
    "pointers of clicked slices ahead": ({"past_pointers": False}, three_slices),
    "soft clicked masks": ({"hard_clicks": False}, one_click),
    "presence by the mask (memory maps)": ({"score_presence": False}, absent),
    "a reader's mask by its average": ({"learned_masks": False}, given_mask),
    "no fallback, single mask unstable": ({"stability_fallback": False}, unstable),
    "earlier logits not cut": ({"mask_limit": None}, far_logits),
    "intensities to 2": ({"intensity_limit": None}, bright),
}


def rules(pair: Pair) -> None:
    print("| as it was | logits | Dice | as it is | Dice |\n|---|---|---|---|---|")
    for name, (changes, measure) in OFF.items():
        pair.ours.rules = replace(RULES, **changes)  # type: ignore[arg-type]
        before = measure(pair)
        pair.ours.rules = RULES
        print(f"| {name} | {before} | {measure(pair)} |", flush=True)
    pair.ours.rules = FIRST
    before = two_clicks(pair)
    pair.ours.rules = RULES
    print(f"| all of them, two clicks | {before} | {two_clicks(pair)} |")


def stays(pair: Pair) -> None:
    """What is left on purpose."""
    print("\n| what stays | logits | Dice |\n|---|---|---|")
    one, middle, last = pair.clicks(*ONE[0]), len(pair.images) // 2, len(pair.images) - 1
    ask = by_points(pair, one)
    alone, _ = meta_run(pair, {middle: ask}, middle, reverse=True)
    _, state = meta_run(pair, {middle: ask}, middle, reverse=False)
    with suppress(StopIteration):
        for _ in pair.predictor.propagate_in_video(state, middle, 99, True):
            pass
    after = state["output_dict_per_obj"][0]["non_cond_frame_outputs"]
    back = range(middle)
    print(f"| both ways start anew | {Far([alone[i] for i in back], [after[i]['pred_masks'][0] for i in back])} |")

    both = {0: ask, middle: ask}
    whole, _ = meta_run(pair, both, 0, reverse=False)
    clicked = seeds({index: pair.decode(index, one) for index in (0, middle)})
    found = by_slice(track_one_lesion(pair.ours, pair.encoded, clicked, limits(pair.ours)))
    ahead = range(middle + 1, last + 1)
    print(f"| past a clicked slice it starts anew | {Far([found[i] for i in ahead], [whole[i] for i in ahead])} |")
    half = range(middle // 2 + 1, middle)
    print(f"| from each clicked slice to the middle | {Far([found[i] for i in half], [whole[i] for i in half])} |")

    memory = seeds({0: pair.decode(0, one)}).remembered(pair.ours, pair.encoded)
    known = pair.ours.tracking.gather([(2, memory)], [], slices=len(pair.images))
    features = pair.encoded.select(np.array([2]))
    aware = pair.ours.decode(pair.ours.attend(features, known), one)
    print(f"| a second clicked slice knows the first | {Far([aware.logits], [pair.decode(2, one).logits])} |")

    exact = tracked(pair, pair.decode(0, one))
    rounded = _rounded(pair, one)
    print(f"| memories in float32 | {Far(exact, [rounded[i] for i in sorted(rounded)])} |")

    filled = _filled(pair, one)
    print(f"| holes are not filled | {Far(exact, [filled[i] for i in sorted(filled)])} |")

    half_kept = replace_store(pair)
    found_half = tracked(half_kept, half_kept.decode(0, one))
    print(f"| features kept as float16 | {Far(found_half, exact)} |")


def _rounded(pair: Pair, prompts: object) -> dict[int, Tensor]:
    return meta_run(pair, {0: by_points(pair, prompts)}, 0, reverse=False, exact=False)[0]  # type: ignore[arg-type]


def _filled(pair: Pair, prompts: object) -> dict[int, Tensor]:
    def fill(mask: Tensor, most: int) -> Tensor:
        outside, count = ndimage.label((mask[0, 0] <= 0).numpy(), np.ones((3, 3)))
        area = np.bincount(outside.ravel(), minlength=count + 1)
        hole = torch.from_numpy((outside > 0) & (area[outside] <= most))
        return torch.where(hole, 0.1, mask)

    with mock.patch("sam2.sam2_video_predictor.fill_holes_in_mask_scores", fill):
        return meta_run(pair, {0: by_points(pair, prompts)}, 0, reverse=False)[0]  # type: ignore[arg-type]


def replace_store(pair: Pair) -> Pair:
    """The same pair, whose features went through float16."""
    levels = pair.ours.encode(pair.images)
    kept = levels._replace(levels=tuple(level.half().float() for level in levels.levels))

    class Store:
        def select(self, rows: object, images: Tensor) -> object:
            return kept.select(torch.as_tensor(rows))

    return replace(pair, encoded=replace(pair.encoded, store=Store()))  # type: ignore[arg-type]


@torch.no_grad()
def main(edge: int) -> None:
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        pair = make_pair(Path(folder), edge, SLICES)
    logits = tracked(pair, pair.decode(0, pair.clicks(*ONE[0])))
    low, high = min(float(one.min()) for one in logits), max(float(one.max()) for one in logits)
    print(f"tiny, {edge} px, {SLICES} slices; logits from {low:.1f} to {high:.1f}\n")
    rules(pair)
    stays(pair)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 512)
