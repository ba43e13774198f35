"""What watches a training: the cost table at its start, a seed for every step, and the stop at the first NaN."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mois.interfaces import Backbone
from mois.tracking import Tracker


class CostTable(Callback):
    """Shows at the start of a training how many parameters each part has, and how many of them are trained."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table and record it."""
        rows = count_parameters(pl_module)
        total, trained = rows[-1][1:]
        if trainer.is_global_zero:
            table = Table("part")
            table.add_column("parameters", justify="right")
            table.add_column("trained", justify="right")
            for name, count, count_trained in rows:
                table.add_row(name, f"{count:,}", f"{count_trained:,}", style="bold" if name == "all" else None)
            console = Console(stderr=True)
            console.print(table, f"{100 * trained / max(total, 1):.2f} % of {total:,} parameters are trained")
        Tracker.of(trainer).table("parameters", ["part", "parameters", "trained"], rows, trainer.global_step)


def count_parameters(module: nn.Module) -> list[tuple[str, int, int]]:
    """Return (part, parameters, trained parameters) for the backbone's parts and the module's other children.

    The last row is "all". Parameters that two parts share count once, for the first of them.
    """
    backbone = getattr(module, "backbone", None)
    inner = backbone.parts() if isinstance(backbone, Backbone) else {}
    parts = {f"backbone.{name}": part for name, part in inner.items()} | dict(module.named_children())
    seen: set[int] = set()
    rows = []
    for name, part in parts.items():
        name = "backbone.rest" if inner and name == "backbone" else name
        own = [p for p in part.parameters() if id(p) not in seen]
        seen |= {id(p) for p in own}
        if own:
            rows.append((name, sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad)))
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    return rows


class StopAtNaN(Callback):
    """Stops the training at the first loss that is not finite, before it reaches the weights, and names it."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Look at the loss of every step, and only where it is not finite for its parts.

        Raises:
            ValueError: If the loss is not finite.
        """
        if is_finite(loss):
            return
        logged = trainer.callback_metrics
        losses = [name for name, value in logged.items() if name.startswith("train/loss_") and not is_finite(value)]
        weights = [name for name, value in pl_module.named_parameters() if value.requires_grad and not is_finite(value)]
        culprit = f"; weights that are not finite either: {', '.join(weights[:3])}" if weights else ""
        raise ValueError(
            f"{', '.join(losses) or 'train/loss'} is not finite at step {trainer.global_step}{culprit}; lower "
            "model.optimisation.learning_rate or set trainer.precision=32-true, and go on with --ckpt_path last"
        )


class SeedEachStep(Callback):
    """Seeds every random draw of a step by (seed, epoch, batch, rank), so that a resumed run repeats it exactly."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed torch, NumPy and Python."""
        del pl_module, batch
        seed = step_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)


def step_seed(*numbers: int) -> int:
    """Return a seed of 63 bits that belongs to these numbers alone."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1


def is_finite(value: Tensor) -> bool:
    """Tell whether a tensor holds no NaN and no infinity."""
    return bool(torch.isfinite(value.detach()).all())
