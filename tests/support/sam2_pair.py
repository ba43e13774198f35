"""Meta's SAM 2.1 and ours with the same weights, before the same scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mois.backbones import SAM2
from mois.inference.encoded_volume import EncodedVolume, Tracked
from mois.inference.lesion_tracking import Limits, Seeds
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.propagation import Sam2Only
from mois.records import MaskPrediction, Prompts, Volume
from tests.support.meta_sam2 import bodies, full_precision, meta_model, meta_predictor, save_checkpoint, video_state


@dataclass(frozen=True)
class Pair:
    """Meta's model and ours, of the same checkpoint, and the scan that both look at."""

    meta: Any
    predictor: Any
    ours: SAM2
    images: Tensor  # (S, P, P)
    encoded: EncodedVolume

    @property
    def px(self) -> int:
        return self.ours.patch_px

    def places(self, *points: tuple[float, float]) -> Tensor:
        """Points as shares of the edge, (1, Q, 2) in pixels."""
        return torch.tensor([points]) * self.px

    def clicks(self, *points: tuple[float, float], labels: tuple[int, ...] = (1,)) -> Prompts:
        return Prompts(self.places(*points), torch.tensor([labels], dtype=torch.int32))

    def decode(self, index: int, prompts: Prompts) -> MaskPrediction:
        return self.ours.decode(self.encoded.select(np.array([index])), prompts)


def make_pair(folder: Path, px: int, slices: int, size: str = "tiny", presence: float = 3.0) -> Pair:
    """Return both models, whose object is there on all slices, or on none where `presence` is far below 0."""
    meta = meta_model(size, px)
    with torch.no_grad():
        meta.sam_mask_decoder.pred_obj_score_head.layers[-1].bias += presence
    ours = SAM2(size, str(save_checkpoint(meta, folder / "meta.pt")), patch_px=px)  # type: ignore[arg-type]
    stack = bodies(slices, px)
    affine = torch.diag(torch.tensor([-1.0, -1.0, 5.0, 1.0], dtype=torch.float64))
    image = stack.permute(2, 1, 0).contiguous()
    volume = Volume("scan", "scan", image, affine, torch.zeros(image.shape, dtype=torch.int32), {})
    settings = InferenceSettings(pixel_mm=1.0, air_level=0.0, half_features=False, precision="32")
    encoded = VolumeSegmenter(ours, Sam2Only(), settings).encode(volume)
    images = encoded.images(np.arange(slices)).clamp(0, 1)
    return Pair(meta, meta_predictor(size, px, meta.state_dict()), ours, images, encoded)


def apart(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


def meta_run(
    pair: Pair,
    ask: Mapping[int, Callable[[Any, int], None]],
    start: int,
    *,
    reverse: bool,
    steps: int = 99,
    exact: bool = True,
) -> tuple[dict[int, Tensor], Any]:
    """Low-resolution logits of every frame from a fresh state, and the state.

    Memories are kept in float32, or in bfloat16 (`exact=False`) as Meta does.
    """
    state = video_state(pair.predictor, pair.images)
    with full_precision() if exact else nullcontext():
        for index, prompt in ask.items():
            prompt(state, index)
        for _ in pair.predictor.propagate_in_video(state, start, steps, reverse):
            pass
    told = state["output_dict_per_obj"][0]
    frames = {**told["non_cond_frame_outputs"], **told["cond_frame_outputs"]}
    return {index: out["pred_masks"][0] for index, out in frames.items()}, state


def by_points(pair: Pair, prompts: Prompts) -> Callable[[Any, int], None]:
    def ask(state: Any, index: int) -> None:
        pair.predictor.add_new_points_or_box(state, index, 1, prompts.points[0], prompts.labels[0])

    return ask


def by_mask(pair: Pair, mask: Tensor) -> Callable[[Any, int], None]:
    return lambda state, index: pair.predictor.add_new_mask(state, index, 1, mask)


def limits(ours: SAM2) -> Limits:
    return Limits(range_mm=1e4, growth=1e9, rules=ours.tracking)


def seeds(answers: Mapping[int, MaskPrediction]) -> Seeds:
    parts = zip(*((answer.logits, answer.pointer, answer.presence) for answer in answers.values()), strict=True)
    return Seeds(np.array(list(answers)), *(torch.cat(part) for part in parts))


def by_slice(tracked: Tracked) -> dict[int, Tensor]:
    return dict(zip(tracked.rows.tolist(), tracked.logits.unsqueeze(1), strict=True))


def disc(px: int) -> Tensor:
    line = torch.arange(px) - 0.4 * px
    return line[:, None] ** 2 + line[None] ** 2 < (px / 8) ** 2
