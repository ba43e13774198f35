"""Numbers that the host asks for now and reads later, so that the accelerator never stands still."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor


class PendingScalar:
    """A number on its way to the host.

    Reading waits for the computation of the number, but for no later work of the accelerator.

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


class PendingReduction:
    """The mean or the maximum of a number over all ranks. Only reading waits for it.

    Lightning's own (`sync_dist`) has all ranks wait for each other first, at every step: with NCCL the host, too. Every
    rank has to make the same reductions, in the same order.

    Args:
        value: One element, on the device of the training.
        of: Whether the mean or the maximum is wanted.
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
