"""The processes that share a piece of work: this one alone, or those that torchrun started together."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch

Item = TypeVar("Item")
PATIENCE_H = 24
"""How long a process waits for the slowest one, which may have all the work where an evaluation goes on. Nothing tells
one that hangs from a slow one; one that dies is noticed at once."""

LAUNCHER_S = 10.0
"""How long torchrun has, after a process ended with an error, to end the others and to say which one is to blame."""


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
        """Wait until all processes have come this far.

        Raises:
            SystemExit: If one of them is gone; whoever was not ended by torchrun in the meantime says so.
        """
        if self.world == 1:
            return
        try:
            torch.distributed.barrier()
        except RuntimeError as error:
            if not lost_contact(error):
                raise
            time.sleep(LAUNCHER_S)
            reason = f"another process ended, or did not answer for {PATIENCE_H} hours, which ends all of them"
            cure = "see what it said, and start again: what is finished is not done again"
            speaks = self.rank < 2  # 0 may be the one that is gone
            raise SystemExit(f"error: {reason}; {cure}" if speaks else 1) from error


def first_rank() -> bool:
    """Tell, before the processes of a job have met, whether this is the first, which writes what there is one of.

    Who starts them says so in the environment: torchrun the rank; Lightning the local rank of all but the first, and
    the user the number of the machine; srun a number for each.
    """
    given = os.environ
    if "RANK" in given:
        return given["RANK"] == "0"
    if "LOCAL_RANK" in given or "NODE_RANK" in given:
        return given.get("LOCAL_RANK", "0") == given.get("NODE_RANK", "0") == "0"
    return given.get("SLURM_PROCID", "0") == "0"


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun started; without torchrun this one is alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "MASTER_ADDR" not in os.environ:
        yield Processes()
        return
    # gloo, since nothing but barriers goes through it, and these also work where several processes share a GPU
    torch.distributed.init_process_group("gloo", timeout=timedelta(hours=PATIENCE_H))
    try:
        yield Processes(torch.distributed.get_rank(), world, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        torch.distributed.destroy_process_group()


def lost_contact(error: BaseException) -> bool:
    """Tell whether an error of a collective operation came of another process's end or silence."""
    words = r"Connection (closed|reset) by peer|Timed out waiting \d+ms|gloo/transport|Broken pipe"
    gloo = isinstance(error, RuntimeError) and re.search(words, str(error)) is not None
    return gloo or isinstance(error, torch.distributed.DistError)


def memory_bytes() -> int:
    """Return how much memory this machine, or the container that we are in, has."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return there
    return min(there, int(limit)) if limit.isdigit() else there
