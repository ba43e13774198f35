"""Following lesions through slices: ours against the video predictor of Meta, with the same random weights.

Both follow the same lesions from the same clicks. Encoding is included.

python -m tests.bench.follow [--lesions 20]        # ten minutes with 10 lesions
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import sam2.sam2_video_predictor as video
import torch
from rich.console import Console
from sam2.build_sam import build_sam2_video_predictor
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from mois.backbones import SAM2
from mois.inference.encoded_volume import EncodedVolume, Tracked
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.propagation import Sam2Only
from mois.records import Features, MaskPrediction, Prompts, Volume
from tests.bench.measure import Outcome, interleaved
from tests.bench.run import show
from tests.support.meta_sam2 import CONFIGS, meta_model, save_checkpoint, video_state

EDGE, SLICES, LESIONS = 512, 14, 10
CLICKED = SLICES // 2
RADIUS = 16.0
"""Pixels. A lesion of this radius covers about 13 cells of the coarsest level."""


@dataclass(frozen=True)
class _Follow:
    """Both models, the scan that both look at, and the clicks (x, y) on its middle slice."""

    theirs: Any
    ours: SAM2
    images: Tensor  # (S, P, P), 0 to 1
    clicks: Tensor  # (L, 2)

    @classmethod
    def of(cls, folder: Path, lesions: int = LESIONS, edge: int = EDGE, slices: int = SLICES) -> _Follow:
        model = meta_model("tiny", edge)
        with torch.no_grad():
            model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias += 3.0  # every slice shows every lesion
        ours = SAM2("tiny", str(save_checkpoint(model, folder / "meta.pt")), patch_px=edge)
        extra = [f"++model.image_size={edge}"]
        theirs = build_sam2_video_predictor(CONFIGS["tiny"], device="cpu", hydra_overrides_extra=extra)
        theirs.load_state_dict(model.state_dict())
        return cls(theirs, ours, *_scan(lesions, edge, slices))

    @property
    def volume(self) -> Volume:
        affine = torch.diag(torch.tensor([-1.0, -1.0, 5.0, 1.0], dtype=torch.float64))
        image = self.images.permute(2, 1, 0).contiguous()
        return Volume("scan", "scan", image, affine, torch.zeros(image.shape, dtype=torch.int32), {})

    @contextmanager
    def told_masks(self, bright: float) -> Iterator[None]:
        """Let every answer be the largest bright disc in sight: masks of random weights cover half a tile."""
        decode = self.ours.decode

        def tell(features: Features, prompts: Prompts | None, dense: Tensor | None = None) -> MaskPrediction:
            answer = decode(features, prompts, dense)
            if prompts is None:
                shades = functional.avg_pool2d(features.image, 4)[:, 0]
                discs = torch.stack([_largest(shade > bright) for shade in shades])
            else:
                discs = _discs(prompts.points[:, 0] / 4, answer.logits.shape[-1], RADIUS / 4)
            return answer._replace(logits=torch.where(discs, 5.0, -5.0).to(answer.logits.dtype))

        with mock.patch.object(self.ours, "decode", tell):
            yield

    def segmenter(self, window: Literal["off", "auto"] = "off") -> VolumeSegmenter:
        settings = InferenceSettings(
            pixel_mm=1.0, air_level=0.0, half_features=False, precision="32", track_mm=1e4, track_growth=1e9
        )
        settings = replace(settings, window=window)
        return VolumeSegmenter(self.ours, Sam2Only(), settings)

    def by_theirs(self, images: Tensor) -> dict[tuple[int, int], Tensor]:
        """Return the masks (P / 4, P / 4) of each lesion and slice, as Meta's predictor follows them."""
        state = video_state(self.theirs, images)
        label = torch.ones(1, dtype=torch.int32)
        with mock.patch.object(video, "tqdm", lambda order, **_: order):  # no bars of progress
            for lesion, click in enumerate(self.clicks):
                self.theirs.add_new_points_or_box(state, CLICKED, lesion, click[None], label)
            for reverse in (False, True):
                for _ in self.theirs.propagate_in_video(state, CLICKED, reverse=reverse):
                    pass
        found: dict[tuple[int, int], Tensor] = {}
        for lesion, told in state["output_dict_per_obj"].items():
            for kind in ("non_cond_frame_outputs", "cond_frame_outputs"):
                found |= {(lesion, index): out["pred_masks"][0, 0] > 0 for index, out in told[kind].items()}
        return found

    def by_ours(self, segmenter: VolumeSegmenter) -> tuple[EncodedVolume, Tracked]:
        """Return the scan, and the masks of each lesion and slice, as we follow them."""
        encoded = segmenter.encode(self.volume)
        rows = np.full(len(self.clicks), encoded.row(CLICKED, 0))
        prompts = Prompts(self.clicks[:, None], torch.ones(len(self.clicks), 1, dtype=torch.int32))
        answer = segmenter.answer(encoded, rows, prompts)
        return encoded, segmenter.track(encoded, rows, answer)


def _scan(lesions: int, edge: int, slices: int) -> tuple[Tensor, Tensor]:
    """Return pictures (S, P, P), 0 to 1, of discs that move through smooth noise, and their places (L, 2)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(slices, 1, edge // 8, edge // 8, generator=generator)
    pictures = 0.6 * functional.interpolate(noise, (edge, edge), mode="bilinear").squeeze(1)
    columns = 5
    line = torch.arange(edge, dtype=torch.float32)
    clicks = []
    for lesion in range(lesions):
        row, column = divmod(lesion, columns)
        x, y = edge * (column + 0.5) / columns, edge * (row + 0.5) / -(-lesions // columns)
        clicks.append((x, y))
        for index in range(slices):
            shift = 2.0 * (index - CLICKED)
            away = (line[:, None] - y - shift) ** 2 + (line[None] - x) ** 2
            pictures[index] += 0.4 * (away < RADIUS**2)
    return pictures.clamp(0, 1), torch.tensor(clicks)


def _discs(places: Tensor, edge: int, radius: float) -> Tensor:
    """Return discs (N, edge, edge) bool around places (N, 2), x then y."""
    line = torch.arange(edge, dtype=torch.float32)
    x, y = places.T[:, :, None]
    return ((line - y) ** 2)[:, :, None] + ((line - x) ** 2)[:, None] < radius**2


def _largest(mask: Tensor) -> Tensor:
    """Return the largest component of a mask (h, w)."""
    parts, count = ndimage.label(mask.numpy())
    if not count:
        return mask
    return torch.from_numpy(parts == 1 + int(np.bincount(parts.flat)[1:].argmax()))


def agreement(one: dict[tuple[int, int], Tensor], other: dict[tuple[int, int], Tensor]) -> dict[str, float]:
    """Return the mean and the lowest Dice of masks of the same lesions and slices. A missing mask counts as empty."""
    scores = []
    for key in one.keys() | other.keys():
        nothing = torch.zeros_like(next(iter(one.values())))
        a, b = one.get(key, nothing), other.get(key, nothing)
        total = int(a.sum() + b.sum())
        scores.append(2 * int((a & b).sum()) / total if total else 1.0)
    return {"dice": sum(scores) / len(scores), "least_dice": min(scores)}


def masks_of(encoded: EncodedVolume, tracked: Tracked) -> dict[tuple[int, int], Tensor]:
    """Return the masks (P / 4, P / 4) of each lesion and slice."""
    slices = encoded.places[tracked.rows][:, 0]
    keys = zip(tracked.lesion.tolist(), slices.tolist(), strict=True)
    return {key: logits > 0 for key, logits in zip(keys, tracked.logits, strict=True)}


def follow(repeats: int, lesions: int = LESIONS) -> Outcome:
    """10 lesions over 14 slices from one click each, encoding included, against Meta's predictor (tiny, 512 px)."""
    with tempfile.TemporaryDirectory() as folder:
        pair = _Follow.of(Path(folder), lesions)
    segmenter = pair.segmenter()
    images = segmenter.encode(pair.volume, lazy=True).images(np.arange(SLICES)).clamp(0, 1)  # as ours are normalised
    bright = float(images[CLICKED][_discs(pair.clicks, EDGE, RADIUS).any(0)].quantile(0.35))  # noise is less bright
    found: dict[str, dict[tuple[int, int], Tensor]] = {}

    def theirs() -> None:
        found["theirs"] = pair.by_theirs(images)

    def ours() -> None:
        found["ours"] = masks_of(*pair.by_ours(segmenter))

    def told() -> None:
        with pair.told_masks(bright):
            pair.by_ours(pair.segmenter("auto"))

    with torch.inference_mode():
        seconds = interleaved({"theirs": theirs, "ours": ours, "windows": told}, repeats)
    details = {f"follow_{name}_s": spent for name, spent in seconds.items()}
    details |= {f"follow_{name}": value for name, value in agreement(found["theirs"], found["ours"]).items()}
    details["follow_masks_share_of_tile"] = float(torch.stack(list(found["ours"].values())).float().mean())
    figures = {
        "follow_vs_sam2": seconds["theirs"] / seconds["ours"],
        "follow_windows_vs_sam2": seconds["theirs"] / seconds["windows"],
    }
    return Outcome(figures, details)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lesions", type=int, default=LESIONS)
    torch.set_num_threads(1)
    outcome = follow(1, parser.parse_args().lesions)
    show(Console(), outcome, {})
