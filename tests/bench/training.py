"""What a frozen backbone and late adapters save of a training step, in time and in memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from adapters import Frozen, Full, Lora, Placement
from adapters.placement import Part
from datamodules.episodes import EpisodeDataset, EpisodeSettings, collate
from datamodules.phantoms.lesion_types import draw_lesion_types
from datamodules.phantoms.phantom import make_phantom
from datamodules.pretraining import as_volume
from datamodules.subjects import prepare_volume
from mois.backbones import SAM2
from mois.interfaces import Adapter, Propagation
from mois.propagation import LearnedMatching, Similarity
from mois.records import Episode
from mois.training.cost import step_cost
from mois.training.episode_step import EpisodeLearning, learn, pictures
from mois.training.feature_cache import CacheSettings
from mois.training.module import ExemplarSegmenter
from tests.bench.measure import Measurement, Outcome, interleaved

PATCH_PX = 512
PIXEL_MM = 0.75
CLIP_PX = 192
STEP = 1  # of those that the number of clicks cycles through: a first click and two corrections
ALL: tuple[Part, ...] = get_args(Part)


def late_lora() -> Adapter:
    """LoRA in the trunk's last stage."""
    return Lora(placement=Placement(("trunk",), (4,)))


def speed(repeats: int) -> Outcome:
    """Training episodes per CPU-second as a multiple of full fine-tuning's, caches warm (Hiera-tiny, 512 px)."""
    dataset = episodes()
    with tempfile.TemporaryDirectory() as folder:
        arms = {
            "full": step_of(model(Full()), dataset),
            "late_lora": step_of(model(late_lora()), dataset),
            "late_lora_cached": step_of(model(late_lora(), folder), dataset),
            "frozen_cached": step_of(model(Frozen(), folder), dataset),
        }
        seconds = interleaved(arms, repeats)
    return Outcome(
        {
            "train_frozen_cached_vs_full": seconds["full"] / seconds["frozen_cached"],
            "train_late_lora_vs_full": seconds["full"] / seconds["late_lora_cached"],
        },
        {"train_late_lora_uncached_vs_full": seconds["full"] / seconds["late_lora"]}
        | {f"{arm}_episodes_per_cpu_s": 1 / spent for arm, spent in seconds.items()},
    )


def memory(repeats: int) -> Outcome:
    """Parameters, gradients, optimiser and saved activations as a share of full fine-tuning's (Hiera-tiny, 512 px)."""
    del repeats  # bytes are the same every time
    episode = collate([episodes()[(0, 0)]])
    arms: dict[str, Adapter] = {
        "full": Full(),
        "dora_all_layers": Lora(dora=True, placement=Placement(ALL, (1, 2, 3, 4))),
        "lora_all_layers": Lora(placement=Placement(ALL, (1, 2, 3, 4))),
        "late_lora": late_lora(),
        "frozen": Frozen(),
    }
    mib, details = {}, {}
    for name, adapter in arms.items():
        module, start = model(adapter), time.process_time()
        mib[name] = sum(cost.mib for cost in step_cost(module, episode))
        spent = (time.process_time() - start) / 2  # the steps that are made, of which one warms up
        details |= {f"{name}_mib": mib[name], f"{name}_cpu_s": spent}
    return Outcome({f"memory_{name}_vs_full": mib[name] / mib["full"] for name in ("frozen", "late_lora")}, details)


def clips(repeats: int) -> Outcome:
    """Training episodes per CPU-second with clips cut to 192 px, as a multiple of those with whole clips (512 px).

    It is not part of `make bench`: `python -m tests.bench.training` prints it.
    """
    dataset = episodes(exemplars=3, clip=5)
    lora = Lora(rank=8, placement=Placement(stages=(3, 4)))  # as in configs/sam2.yaml
    arms = {
        name: step_of(model(lora, propagation=LearnedMatching(width=96), clip_px=side), dataset)
        for name, side in (("whole_clips", None), ("cut_clips", CLIP_PX))
    }
    seconds = interleaved(arms, repeats)
    return Outcome(
        {"train_cut_clips_vs_whole": seconds["whole_clips"] / seconds["cut_clips"]},
        {f"{arm}_episodes_per_cpu_s": 1 / spent for arm, spent in seconds.items()},
    )


def episodes(exemplars: int = 1, clip: int = 1) -> EpisodeDataset:
    """Return augmented episodes of a phantom that come again in every epoch.

    By default of an exemplar a group, and without a clip: a frozen backbone leaves tracking out, which full
    fine-tuning would have to pay for.

    Args:
        exemplars: Number of exemplars in a group.
        clip: Number of slices of a clip.
    """
    rng = np.random.default_rng(0)
    scan = as_volume(make_phantom(rng, draw_lesion_types(rng, 2)), "phantom")
    prepared = prepare_volume(scan, pixel_mm=PIXEL_MM, patch_px=PATCH_PX)
    return EpisodeDataset([prepared], EpisodeSettings(PATCH_PX, exemplars=exemplars, clip=clip), views=1)


def model(
    adapter: Adapter, cache: str | None = None, propagation: Propagation | None = None, clip_px: int | None = None
) -> ExemplarSegmenter:
    """Return what is trained, maybe with a feature cache."""
    settings = CacheSettings(None if cache is None else Path(cache))
    backbone, learning = SAM2("tiny", "random", patch_px=PATCH_PX), EpisodeLearning(clip_px=clip_px)
    return ExemplarSegmenter(backbone, adapter, propagation or Similarity(), learning=learning, cache=settings)


def step_of(module: ExemplarSegmenter, dataset: EpisodeDataset) -> Callable[[], None]:
    """Return a whole training step: draw and augment an episode, forward, backward, optimiser."""
    trained = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-5)

    def step() -> None:
        episode: Episode = collate([dataset[(0, 0)]])
        encode = None
        if module.encoder is not None:
            encode = partial(module.encoder, keys=module.encoder.keys(pictures(module.backbone, episode)))
        outcome = learn(module.backbone, module.propagations, episode, module.learning, STEP, encode)
        torch.stack(list(outcome.losses.values())).sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


MEASUREMENTS: list[Measurement] = [speed, memory]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(clips(repeats=3))
