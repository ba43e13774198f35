"""Processes that share work: this process alone, or all processes that torchrun started."""

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

from mois.machine.system_calls import installed_memory_bytes

Item = TypeVar("Item")
LONGEST_WAIT_H = 24
"""Longest wait for the slowest process, in hours. In a continued evaluation, one process may have all the work. A
process that hangs looks like a slow process; a process that ends is noticed at once."""

LAUNCHER_S = 10.0
"""Time for torchrun to end the other processes and to name the failed process, in seconds."""


@dataclass(frozen=True)
class Processes:
    """Position of this process among all processes.

    Attributes:
        rank: Number of this process, from 0.
        world: Number of processes.
        local_rank: Number of this process on its machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process prints messages and writes the shared files."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the items for this process. Each item belongs to exactly one process."""
        return items[self.rank :: self.world]

    def wait(self) -> None:
        """Wait until all processes have called this method.

        Raises:
            SystemExit: If another process ended. Ranks 0 and 1 say so, unless torchrun ended them before.
        """
        if self.world == 1:
            return
        try:
            torch.distributed.barrier()
        except RuntimeError as error:
            if not lost_contact(error):
                raise
            time.sleep(LAUNCHER_S)
            reason = f"another process ended, or did not answer for {LONGEST_WAIT_H} hours, which ends all of them"
            cure = "see what it said, and start again: what is finished is not done again"
            prints_message = self.rank < 2  # rank 0 may be the process that ended
            raise SystemExit(f"error: {reason}; {cure}" if prints_message else 1) from error


def first_rank() -> bool:
    """Return whether this process is the first of a job, before the processes have connected.

    The launcher sets environment variables:

    - torchrun: RANK.
    - Lightning: LOCAL_RANK for all processes but the first. The user sets NODE_RANK, the number of the machine.
    - srun: SLURM_PROCID.
    """
    environment = os.environ
    if "RANK" in environment:
        return environment["RANK"] == "0"
    if "LOCAL_RANK" in environment or "NODE_RANK" in environment:
        return environment.get("LOCAL_RANK", "0") == environment.get("NODE_RANK", "0") == "0"
    return environment.get("SLURM_PROCID", "0") == "0"


@contextmanager
def joined() -> Iterator[Processes]:
    """Connect the processes that torchrun started. Without torchrun, this process is alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "MASTER_ADDR" not in os.environ:
        yield Processes()
        return
    # gloo: only barriers are needed, and they also work if several processes share a GPU
    torch.distributed.init_process_group("gloo", timeout=timedelta(hours=LONGEST_WAIT_H))
    try:
        yield Processes(torch.distributed.get_rank(), world, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        torch.distributed.destroy_process_group()


def lost_contact(error: BaseException) -> bool:
    """Return whether a collective operation failed because another process ended or did not answer."""
    words = r"Connection (closed|reset) by peer|Timed out waiting \d+ms|gloo/transport|Broken pipe"
    gloo = isinstance(error, RuntimeError) and re.search(words, str(error)) is not None
    return gloo or isinstance(error, torch.distributed.DistError)


def memory_bytes() -> int:
    """Return the memory of this machine, or of its container if that has less, in bytes."""
    machine_bytes = installed_memory_bytes()
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return machine_bytes
    return min(machine_bytes, int(limit)) if limit.isdigit() else machine_bytes
