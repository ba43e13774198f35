"""The processes that share a piece of work: this one alone, or those that torchrun started together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch

Item = TypeVar("Item")
PATIENCE = timedelta(days=1)
"""How long a process waits for the slowest one; where one dies, the others end at once."""


@dataclass(frozen=True)
class Processes:
    """Which of them this one is.

    Attributes:
        rank: Its number, from 0.
        world: How many there are.
        local_rank: Its number on this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks, and writes what there is one of."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's part of the work; together the parts are all of it, and none is in two."""
        return items[self.rank :: self.world]

    def wait(self) -> None:
        """Wait until all processes have come this far."""
        if self.world > 1:
            torch.distributed.barrier()

    def device(self) -> str:
        """Return the accelerator that this process computes on, or the CPU where there is none."""
        return f"cuda:{self.local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun started; without torchrun this one is alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "MASTER_ADDR" not in os.environ:
        yield Processes()
        return
    # gloo, since nothing but barriers goes through it, and these also work where several processes share a GPU
    torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(torch.distributed.get_rank(), world, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        torch.distributed.destroy_process_group()
