"""The adapters of configs/adapters, and their training by two ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import adapters
from mois.backbones.example_answers import answers
from mois.interfaces import Adapter, Backbone
from mois.propagation import Sam2Only
from mois.testing import nano_backbone
from tests.support.paths import ROOT

METHODS = {file.stem: file for file in sorted((ROOT / "configs" / "adapters").glob("*.yaml"))}
"""Configs of adapters, by name."""


def adapter_of(name: str) -> Adapter:
    """Return the adapter that a config in configs/adapters names."""
    spec = yaml.safe_load(METHODS[name].read_text(encoding="utf-8"))["model"]["adapter"]
    made: Adapter = getattr(adapters, spec["class_path"].removeprefix("adapters."))(**spec.get("init_args", {}))
    return made


class Total(nn.Module):
    """A number that depends on all that a backbone answers."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, weight: float) -> Tensor:
        """Return the number, times a weight."""
        return weight * torch.stack([each.square().mean() for each in answers(self.backbone)]).sum()


def train_by_two_ranks(folder: Path, names: Sequence[str]) -> None:
    """Train each adapter for two steps on two gloo ranks of one process group.

    Args:
        folder: Empty folder where the ranks meet.
        names: Names of configs in configs/adapters.

    Raises:
        Exception: If a rank fails, as with a tensor without gradient, or if the ranks end with other tensors.
    """
    torch.multiprocessing.spawn(_train_as_rank, (str(folder), list(names)), nprocs=2)


def _train_as_rank(rank: int, folder: str, names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name in names:
        torch.manual_seed(0)
        backbone = nano_backbone()
        adapter_of(name).attach(backbone, Sam2Only())
        trained = [tensor for tensor in backbone.parameters() if tensor.requires_grad]
        if not trained:
            continue
        ranked = DistributedDataParallel(Total(backbone))
        optimiser = torch.optim.SGD(trained, lr=1e-3)
        for _ in range(2):
            ranked(rank + 1.0).backward()
            optimiser.step()
            optimiser.zero_grad()
        ours = torch.cat([tensor.detach().flatten() for tensor in trained])
        theirs = ours.clone()
        distributed.broadcast(theirs, 0)
        if not torch.equal(ours, theirs):
            raise ValueError(f"{name}: the ranks end with other tensors")
    distributed.destroy_process_group()
