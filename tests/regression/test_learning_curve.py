"""The first steps of a training, against the losses that were stored when they were last looked at."""

from __future__ import annotations

import pytest
import torch

from adapters import Full
from datamodules.episodes import EpisodeSettings, collate
from datamodules.pretraining import NewTypeEpisodes
from datamodules.transforms import Augmentation
from mois.propagation import Similarity
from mois.testing import nano_backbone
from mois.training.episode_step import EpisodeLearning, learn, names

STORED = (9.342, 8.468, 6.859, 5.535, 6.119, 5.010, 4.430, 5.036)


@pytest.mark.slow
def test_the_first_steps_lose_what_they_lost_before() -> None:
    torch.manual_seed(0)
    backbone, propagation = nano_backbone(), Similarity()
    propagation.build(backbone)
    Full().attach(backbone, propagation)
    episodes = NewTypeEpisodes(
        EpisodeSettings(patch_px=64, exemplars=2, augmentation=Augmentation.none()), piece_px=160
    )
    parameters = [p for module in (backbone, propagation) for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    losses = []
    for step in range(8):
        batch = collate([episodes[(0, 2 * step + i)] for i in range(2)])
        outcome = learn(backbone, names([propagation]), batch, EpisodeLearning(corrections=2), step)
        loss = torch.stack(list(outcome.losses.values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses == pytest.approx(STORED, rel=0.02)
