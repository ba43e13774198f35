"""Where the random numbers of an episode come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from datamodules.assembly import CHANCES


def draw_chance(rng: np.random.Generator) -> Tensor:
    """Draw the random numbers of an episode for the training step, (64,) float32. They are drawn first."""
    return torch.from_numpy(rng.random(CHANCES, np.float32))


@contextmanager
def torch_seeded_by(rng: np.random.Generator) -> Iterator[None]:
    """Seed torch's global generator from `rng` within this context. TorchIO draws from this generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**62)))
        yield
