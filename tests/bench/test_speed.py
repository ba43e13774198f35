"""`make bench`: CPU milliseconds of what a training and a scan are made of, on one thread. Nothing can fail here."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from datamodules.phantom import draw_lesion_types, make_phantom, make_slab
from mois.propagation import Attention, Prototype, Similarity
from mois.testing import example_episode, example_patches, nano_backbone
from mois.training.episode_step import EpisodeLearning, learn, names

pytestmark = pytest.mark.bench


def cpu_ms(action: Callable[[], object], times: int = 5) -> float:
    """Return the least CPU time of some runs, after one that warms up."""
    action()
    spent = []
    for _ in range(times):
        start = time.process_time()
        action()
        spent.append(1000 * (time.process_time() - start))
    return min(spent)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("patch_px", [128, 256, 512])
def test_encoder(patch_px: int) -> None:
    backbone, (images, _) = nano_backbone(), example_patches(1, patch_px)
    with torch.no_grad():
        print(f"\nnano encoder, {patch_px} px: {cpu_ms(lambda: backbone.encode(images)):.1f} CPU-ms")


@pytest.mark.parametrize("kind", [Similarity, Attention, Prototype])
def test_propagation(kind: type[Similarity | Attention | Prototype]) -> None:
    backbone, propagation = nano_backbone(), kind()
    propagation.build(backbone)
    images, masks = example_patches(8, 128)
    with torch.no_grad():
        features = backbone.encode(images)
        exemplars = propagation.describe(features, masks, backbone).reshape(1, 8)
        query = features.select(slice(0, 1))
        spent = cpu_ms(lambda: propagation(query, exemplars, backbone))
    print(f"\n{kind.__name__}, 8 exemplars, 128 px: {spent:.1f} CPU-ms, {exemplars.bytes_per_exemplar()} bytes each")


def test_training_step() -> None:
    backbone, propagation = nano_backbone(), Similarity()
    propagation.build(backbone)
    episode = example_episode(batch=4)

    def step() -> None:
        outcome = learn(backbone, names([propagation]), episode, EpisodeLearning(), 0)
        torch.stack(list(outcome.losses.values())).sum().backward()

    print(f"\ntraining step, 4 episodes, forward and backward: {cpu_ms(step, times=3):.0f} CPU-ms")


def test_phantoms() -> None:
    rng = np.random.default_rng(0)
    types = draw_lesion_types(rng, 2)
    print(f"\nslab of 3 slices: {cpu_ms(lambda: make_slab(rng, types)):.0f} CPU-ms")
    print(f"whole phantom: {cpu_ms(lambda: make_phantom(rng, types), times=2):.0f} CPU-ms")
