"""What single things cost: the unit costs that docs/performance.md plans with."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from itertools import count

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from datamodules.episodes import EpisodeDataset, EpisodeSettings
from datamodules.phantoms.lesion_types import draw_lesion_types
from datamodules.phantoms.phantom import make_phantom, make_slab
from datamodules.pretraining import as_volume
from datamodules.subjects import PreparedSubject, prepare_volume
from mois.backbones import SAM2
from mois.propagation import Similarity
from mois.records import Features, Prompts
from mois.testing import example_patches, nano_backbone
from mois.training.episode_step import EpisodeLearning, learn, names
from tests.bench.measure import Measurement, Outcome, interleaved
from tests.support.example_episodes import example_episode


def encoder_units(repeats: int) -> Outcome:
    """One image through the encoder, by model and edge: CPU seconds and GFLOP."""
    found: dict[str, float] = {}
    for size, edge in (("nano", 128), ("nano", 512), ("tiny", 512), ("tiny", 1024), ("small", 1024)):
        backbone = SAM2(size, "random", patch_px=edge)  # type: ignore[arg-type]
        images, _ = example_patches(1, edge)

        def encode(backbone: SAM2 = backbone, images: torch.Tensor = images) -> Features:
            with torch.inference_mode():
                return backbone.encode(images)

        found[f"{size}_{edge}_gflop"] = gflop(encode)
        if size != "small":  # its seconds follow from its operations
            found[f"{size}_{edge}_s"] = interleaved({size: encode}, max(1, repeats // 2))[size]
    return Outcome({}, found)


def answer_units(repeats: int) -> Outcome:
    """One image through what comes after the encoder, Hiera-tiny at 512 px: CPU seconds and GFLOP."""
    backbone, propagation = SAM2("tiny", "random", patch_px=512), Similarity()
    propagation.build(backbone)
    images, masks = example_patches(1, 512)
    with torch.inference_mode():
        features = backbone.encode(images)
        click = Prompts(torch.full((1, 1, 2), 256.0), torch.ones(1, 1, dtype=torch.int32))
        answer = backbone.decode(features, click)
        memory = backbone.remember(features, answer.logits, answer.pointer)
        exemplars = propagation.describe(features, masks, backbone)
    arms: dict[str, Callable[[], object]] = {
        "click": lambda: backbone.decode(features, click),
        "remember": lambda: backbone.remember(features, answer.logits, answer.pointer),
        "attend": lambda: backbone.attend(features, memory),
        "semantic": lambda: propagation(features, exemplars, backbone),
    }
    with torch.inference_mode():
        seconds = interleaved(arms, repeats)
        found = {f"{name}_gflop": gflop(arm) for name, arm in arms.items()}
    return Outcome({}, found | {f"{name}_s": spent for name, spent in seconds.items()})


def scan_units(repeats: int) -> Outcome:
    """A scan of 44 x 1100 x 512 to prepare for training, and an episode of 10 patches of 512 pixels to draw from it."""
    rng = np.random.default_rng(0)
    types = draw_lesion_types(rng, 2)
    phantom = make_phantom(rng, types, shape=(44, 1100, 512), spacing_mm=(5.0, 0.7, 0.7), lesions=(60, 60))
    scan = as_volume(phantom, "large")

    def prepare() -> PreparedSubject:
        return prepare_volume(scan, pixel_mm=0.7, patch_px=512, slice_axis="auto")

    episodes = EpisodeDataset([prepare()], EpisodeSettings(patch_px=512))
    numbers = count()
    arms: dict[str, Callable[[], object]] = {
        "prepare_s": prepare,
        "ten_episodes_s": lambda: [episodes[0, next(numbers)] for _ in range(10)],
    }
    voxels = np.rint(500 * phantom.image).astype(np.int16).tobytes()
    sizes = {"megabytes": len(voxels) / 1e6, "compressed_megabytes": len(gzip.compress(voxels, 3)) / 1e6}
    return Outcome({}, interleaved(arms, max(1, repeats // 2)) | sizes)


def large_episodes(repeats: int) -> Outcome:
    """An episode of 10 patches of 1024 pixels to draw, the mean of 20 in turn: CPU seconds."""
    rng = np.random.default_rng(0)
    phantom = make_phantom(
        rng, draw_lesion_types(rng, 2), shape=(20, 1200, 1100), spacing_mm=(5.0, 0.7, 0.7), lesions=(30, 30)
    )
    scan = prepare_volume(as_volume(phantom, "large"), pixel_mm=0.7, patch_px=1024)
    episodes = EpisodeDataset([scan], EpisodeSettings(patch_px=1024))
    arms = {"twenty_episodes_s": lambda: [episodes[0, number] for number in range(20)]}
    spent = interleaved(arms, max(1, repeats // 2))
    return Outcome({"episode_cpu_s_1024": spent["twenty_episodes_s"] / 20}, spent)


def data_units(repeats: int) -> Outcome:
    """Phantoms to draw, and the nano's training step: CPU seconds."""
    rng = np.random.default_rng(0)
    types = draw_lesion_types(rng, 2)
    backbone, propagation = nano_backbone(), Similarity()
    propagation.build(backbone)
    episode = example_episode(batch=4)

    def step() -> None:
        outcome = learn(backbone, names([propagation]), episode, EpisodeLearning(), 0)
        torch.stack(list(outcome.losses.values())).sum().backward()

    arms: dict[str, Callable[[], object]] = {
        "slab_s": lambda: make_slab(rng, types),
        "phantom_s": lambda: make_phantom(rng, types),
        "nano_step_of_4_episodes_s": step,
    }
    return Outcome({}, interleaved(arms, max(1, repeats // 2)))


def gflop(action: Callable[[], object]) -> float:
    """Return the floating point operations of an action in thousand millions; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        action()
    return float(counter.get_total_flops()) / 1e9


MEASUREMENTS: list[Measurement] = [encoder_units, answer_units, scan_units, large_episodes, data_units]
