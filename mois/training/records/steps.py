"""What loggers get of the steps of a training: learning rates, gradient norms, and where the time went."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from mois.machine.pending_scalar import PendingScalar

PARTS = ("data", "forward", "backward", "optimiser", "validation")
"""Parts of the time of a training. Their shares add up to 1."""


class StepRecord(Callback):
    """Logs learning rates, gradient norms and the shares of the time, at the steps that log.

    - `train/learning_rate`, and `train/learning_rate_adapter` if the adapter has its own.
    - `train/gradient_norm` over all trained tensors before clipping, and of adapter and propagations apart.
    - `time/PART` for each of `PARTS`: shares of the time since the last log, on the first process. A GPU works while
      its host goes on, so that the host's waiting for it counts where it waits.
    """

    def __init__(self) -> None:
        self._spent_s = dict.fromkeys(PARTS, 0.0)
        self._since_s: float | None = None
        self._step = 0
        self._norms: dict[str, PendingScalar] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.__init__()  # type: ignore[misc]
        self._since_s, self._step = time.perf_counter(), trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End the wait for the batch."""
        self._pass("data")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """End the forward pass."""
        self._pass("forward")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the backward pass."""
        self._pass("backward")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Ask for the norms of the gradients at a step that logs; they are read later, so that nothing waits."""
        if not _logs(trainer, trainer.global_step + 1):
            return
        backbone = getattr(pl_module, "backbone", None)
        own = {id(tensor) for tensor in backbone.parameters()} if isinstance(backbone, torch.nn.Module) else set()
        learned = [parameter for parameter in pl_module.parameters() if parameter.grad is not None]
        parts = {
            "": learned,
            "_adapter": [parameter for parameter in learned if id(parameter) in own],
            "_propagation": [parameter for parameter in learned if id(parameter) not in own],
        }
        self._norms = {
            f"train/gradient_norm{part}": PendingScalar(get_total_norm([one.grad for one in tensors]))  # type: ignore[misc]
            for part, tensors in parts.items()
            if tensors
        }

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the step; log at the steps that log."""
        self._pass("optimiser")
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if not (stepped and _logs(trainer, trainer.global_step)):
            return
        total = sum(self._spent_s.values()) or 1.0
        figures = {f"time/{part}": spent / total for part, spent in self._spent_s.items()}
        figures |= {name: norm.read() for name, norm in self._norms.items()} | learning_rates(trainer, pl_module)
        for name, value in figures.items():
            pl_module.log(name, value, batch_size=1)
        self._spent_s, self._norms = dict.fromkeys(PARTS, 0.0), {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End what was before the validation."""
        self._pass("data")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the validation."""
        self._pass("validation")

    def _pass(self, part: str) -> None:
        """Count the time since the last event for a part. Before the first step, nothing is counted."""
        if self._since_s is not None:
            now_s = time.perf_counter()
            self._spent_s[part] += now_s - self._since_s
            self._since_s = now_s


def learning_rates(trainer: Trainer, module: LightningModule) -> dict[str, float]:
    """Return the learning rate of the propagations, and that of the adapter if it differs."""
    backbone = getattr(module, "backbone", None)
    own = {id(tensor) for tensor in backbone.parameters()} if isinstance(backbone, torch.nn.Module) else set()
    groups = [group for optimiser in trainer.optimizers for group in optimiser.param_groups]
    rates = {all(id(tensor) in own for tensor in group["params"]): float(group["lr"]) for group in groups}
    figures = {"train/learning_rate": rates.get(False, rates.get(True, 0.0))}
    if True in rates and rates[True] != figures["train/learning_rate"]:
        figures["train/learning_rate_adapter"] = rates[True]
    return figures


def _logs(trainer: Trainer, step: int) -> bool:
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and step % every == 0
