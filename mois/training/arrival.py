"""A number on its way from an accelerator to the host."""

from __future__ import annotations

import torch
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
