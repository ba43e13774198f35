"""Numbers that are computed now and read later, so that the GPU never waits for the host."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor


class PendingScalar:
    """A number that is being copied to the host.

    `read` waits until the number is computed. It does not wait for later work of the GPU.

    Args:
        value: A tensor of one element, on any device.
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
    """The mean or the maximum of a number over all ranks. Only `read` waits for it.

    `sync_dist` of Lightning lets all ranks wait for each other at every step; with NCCL the host waits too. Every rank
    must make the same reductions in the same order.

    Args:
        value: A tensor of one element, on the device of the training.
        of: The reduction: mean or maximum.
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
        """Return the number on its device. A GPU waits for it by itself; the host does not wait for the GPU."""
        if self._coming is not None:
            self._coming.wait()
            self._coming = None
        return self._value / self._ranks
