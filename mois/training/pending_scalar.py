"""Numbers on their way from an accelerator, or from all ranks, to the host."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch import Tensor


class Arrival:
    """A number that the host reads later, waiting for what made it, but for nothing that was asked for since.

    Args:
        value: One element, on any device.
    """

    def __init__(self, value: Tensor) -> None:
        self._value = value.detach().to("cpu", non_blocking=value.is_cuda, copy=True)  # into pinned memory
        self._copied: torch.cuda.Event | None = None
        if value.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def read(self) -> float:
        """Return the number."""
        if self._copied is not None:
            self._copied.synchronize()
        return float(self._value)


class Reduction:
    """The mean or the largest of a number of all ranks, which nobody waits for until it is read.

    Lightning's own (`sync_dist`) has all ranks wait for each other first, at every step: with NCCL the host, too. Every
    rank has to make the same reductions, in the same order.

    Args:
        value: One element, on the device of the training.
        of: What is made of the ranks' numbers.
    """

    def __init__(self, value: Tensor, of: Literal["mean", "max"] = "mean") -> None:
        self._value = value.detach().clone()
        self._ranks = 1
        self._coming: Any = None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            kinds = torch.distributed.ReduceOp
            self._ranks = torch.distributed.get_world_size() if of == "mean" else 1
            self._coming = torch.distributed.all_reduce(
                self._value, kinds.SUM if of == "mean" else kinds.MAX, async_op=True
            )

    def read(self) -> Tensor:
        """Return the number, on its device, which waits for it; the host does not where that is a GPU."""
        if self._coming is not None:
            self._coming.wait()
            self._coming = None
        return self._value / self._ranks


def logs_now(trainer: Trainer) -> bool:
    """Tell whether the present batch ends a step whose figures are logged."""
    loop, every = trainer.fit_loop.epoch_loop, trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and not loop._should_accumulate() and (loop._batches_that_stepped + 1) % every == 0
