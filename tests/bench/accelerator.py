"""What a GPU would be asked to do, and to hold, counted where there is none: operations, bytes, hits."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from adapters import Lora
from mois.backbones import SAM2
from mois.inference import window_tracking
from mois.inference.feature_store import GIB
from mois.inference.lesion_windows import Box
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.propagation import Sam2Only, Similarity
from mois.records import Prompts, Volume
from mois.testing import example_patches, nano_backbone
from mois.training.episode_step import EpisodeLearning, learn, names, pictures
from mois.training.feature_cache import FeatureCache
from tests.bench.measure import Measurement, Outcome
from tests.support.example_episodes import example_episode
from tests.support.pretended_gpu import counted_gpu

FREE = {
    "_unsafe_view", "alias", "detach", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty",
    "new_empty_strided", "scalar_tensor",
}  # fmt: skip
"""Operations that launch nothing: they name memory or ask for it."""


class Launches(TorchDispatchMode):
    """Counts operations that a device would be asked for, views and allocations left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace != "prim" and not func.is_view and name not in FREE:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def launches(episodes: int, *, bf16: bool = False) -> tuple[int, int]:
    """Return the operations of a step, forward and backward, and its images: Hiera-tiny, 512 px, LoRA, 4 corrections.

    Nothing is computed: tensors have a shape only.
    """
    backbone, propagation = SAM2("tiny", "random", patch_px=512), Similarity()
    propagation.build(backbone)
    Lora().attach(backbone, propagation)
    episode = example_episode(episodes, 5, 5, 512)  # 2 x 5 exemplars, a query, a clip of 5
    with FakeTensorMode(allow_non_fake_inputs=True):
        for _ in range(2):  # the first time, tables are made
            with Launches() as counter:
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    outcome = learn(backbone, names([propagation]), episode, EpisodeLearning(corrections=7), 3)
                    total = torch.stack(list(outcome.losses.values())).sum()
                total.backward()  # type: ignore[no-untyped-call]
    return sum(counter.counts.values()), len(pictures(backbone, episode))


def kernels(repeats: int) -> Outcome:
    """Aten operations of a training step, fake CPU tensors, forward and backward (Hiera-tiny, 512 px, 16 images)."""
    del repeats  # the same every time
    one, images = launches(1)
    return Outcome({"kernels_per_step": one}, {"images": images, "kernels_per_step_bf16": launches(1, bf16=True)[0]})


def answer_kernels(repeats: int) -> Outcome:
    """Aten operations of a click, a tracked slice and a searched tile, fake CPU tensors (Hiera-tiny, 512 px)."""
    del repeats  # the same every time
    backbone, propagation = SAM2("tiny", "random", patch_px=512), Similarity()
    propagation.build(backbone)
    click = Prompts(torch.full((1, 1, 2), 256.0), torch.ones(1, 1, dtype=torch.int32))
    images, masks = example_patches(1, 512)
    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True):
        features = backbone.encode(images)
        answer = backbone.decode(features, click)
        known = backbone.remember_slice(features, answer.logits, answer.pointer, answer.presence)
        exemplars = propagation.prepare(propagation.describe(features, masks, backbone))

        def track() -> None:
            memory = backbone.tracking.gather([(1, known)], [], slices=8)
            seen = backbone.decode(backbone.attend(features, memory), None)
            backbone.remember_slice(features, seen.logits, seen.pointer, seen.presence)

        work: dict[str, Callable[[], object]] = {
            "encoded_tile": lambda: backbone.encode(images),
            "click": lambda: backbone.decode(features, click),
            "tracked_slice": track,
            "searched_tile": lambda: propagation(features, exemplars, backbone),
        }
        counts = {f"kernels_per_{name}": float(_operations(one)) for name, one in work.items()}
    return Outcome({"kernels_per_tracked_slice": counts["kernels_per_tracked_slice"]}, counts)


def follow_launches(repeats: int) -> Outcome:
    """Operations a GPU is asked for, a tracked slice: 10 lesions over 14 slices, Hiera-tiny, 512 px, none computed."""
    del repeats  # the same every time
    whole, windows, again = (followed(window, grows=grows) for window, grows in FOLLOWED)
    details = {"follow_launches_whole_tiles": whole.launches, "follow_launches_if_all_grow": again.launches}
    details["follow_launches_bf16"] = followed("auto", precision="bf16").launches
    waits = {"follow_waits_per_step": windows.waits, "follow_waits_whole_tiles": whole.waits}
    return Outcome({"follow_launches_per_slice": windows.launches}, details | waits)


FOLLOWED: tuple[tuple[Literal["off", "auto"], bool], ...] = (("off", False), ("auto", False), ("auto", True))


class Followed(NamedTuple):
    """Operations a tracked slice, and how often the host waits for each step of all lesions."""

    launches: float
    waits: float


def followed(
    window: Literal["off", "auto"],
    *,
    grows: bool = False,
    precision: Literal["32", "bf16"] = "32",
    lesions: int = 10,
    slices: int = 14,
    patch_px: int = 512,
) -> Followed:
    """Follow lesions of 2 x 2 cells from the middle slice in both directions on a pretended GPU, and count.

    Args:
        window: As `inference.window`.
        grows: Whether every answer reaches the border of its first window, so that every slice is asked twice.
        precision: As `inference.precision`.
        lesions: Number of lesions.
        slices: Number of slices.
        patch_px: Edge of the tile in pixels.
    """
    middle, calls = slices // 2, 0
    settings = InferenceSettings(
        pixel_mm=1.0, air_level=0.0, half_features=False, precision=precision, track_mm=1e4, window=window
    )

    def boxes(logits: Tensor) -> list[Box | None]:
        nonlocal calls
        logits.amax().cpu()  # the wait that is counted
        row, calls = (0 if grows and calls % 2 else 5), calls + 1
        return [(row, 5, 6, 6)] * len(logits)

    with counted_gpu() as gpu:
        segmenter = VolumeSegmenter(SAM2("tiny", "random", patch_px=patch_px).to("cuda"), Sam2Only(), settings)
        image = torch.rand(patch_px, patch_px, slices) + 0.1
        affine = torch.diag(torch.tensor([-1.0, -1.0, 5.0, 1.0], dtype=torch.float64))
        scan = Volume("scan", "scan", image, affine, torch.zeros(image.shape, dtype=torch.int32), {})
        encoded = segmenter.encode(scan)
        rows = np.full(lesions, encoded.row(middle, 0))
        clicks = Prompts(torch.full((lesions, 1, 2), 90.0), torch.ones(lesions, 1, dtype=torch.int32))
        answer = segmenter.answer(encoded, rows, clicks)
        with mock.patch.object(window_tracking, "boxes_of", boxes):
            for _ in range(2):  # the first time, tables are made and copied
                gpu.launches.clear()
                gpu.waits.clear()
                tracked = segmenter.track(encoded, rows, answer)
    steps = max(middle, slices - 1 - middle)
    return Followed(sum(gpu.launches.values()) / (len(tracked.rows) - lesions), sum(gpu.waits.values()) / steps)


def _operations(work: Callable[[], object]) -> int:
    work()  # tables are made
    with Launches() as counter:
        work()
    return sum(counter.counts.values())


def position_codes(repeats: int) -> Outcome:
    """Bytes of position codes after 32 images against those after one (nano)."""
    del repeats
    return Outcome({"position_code_bytes_32_vs_1": code_bytes(32) / code_bytes(1)}, {"one_bytes": code_bytes(1)})


def code_bytes(count: int) -> int:
    """Return the bytes that position codes of so many images hold, once they were encoded and remembered."""
    backbone = nano_backbone()
    images, _ = example_patches(count, 64)
    features = backbone.encode(images)
    backbone.remember(features, torch.zeros(count, 16, 16), torch.zeros(count, backbone.width))
    codes = [features.position]
    for module in backbone.modules():
        kept: dict[Any, Any] = getattr(module, "cache", {})
        codes += [code for code in kept.values() if isinstance(code, Tensor)]
    return sum({code.untyped_storage().data_ptr(): code.untyped_storage().nbytes() for code in codes}.values())


def cache_hits(repeats: int) -> Outcome:
    """Share found in a feature cache with room for half of what an epoch reads in turn, from the second epoch on."""
    del repeats
    keys = [hashlib.blake2b(number.to_bytes(2, "little"), digest_size=20).hexdigest() for number in range(400)]
    entry = (torch.zeros(4096, dtype=torch.float16),)
    size = len(save({"0": entry[0]}, {"digest": "0" * 40}))
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder), gib=len(keys) / 2 * size / GIB)
        shares = []
        for _ in range(4):
            found = 0
            for key in keys:
                if cache.read(key) is None:
                    cache.write(key, entry)
                else:
                    found += 1
            shares.append(found / len(keys))
    return Outcome({"cache_hits_half_room": min(shares[1:])}, {f"epoch_{n}": share for n, share in enumerate(shares)})


MEASUREMENTS: list[Measurement] = [kernels, answer_kernels, follow_launches, position_codes, cache_hits]
