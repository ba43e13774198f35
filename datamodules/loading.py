"""Loaders of episodes and of whole volumes. Ranks share them, and they can be resumed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.episodes import collate
from mois.errors import DataError
from mois.files.json_records import as_record
from mois.machine.system_calls import usable_cores
from mois.records import Episode, Volume

WORKERS = 4
"""Default number of processes that draw episodes for each GPU."""


class EpisodeBatches(Sampler[list[tuple[int, int]]]):
    """The (epoch, index) of the episodes in the batches of this rank, for one epoch of batches from `start` on.

    Episodes are dealt to the ranks in turn. So the batches of all ranks at a step hold the same episodes as one process
    with one large batch. After the end of an epoch, the next epoch follows. An epoch consists of whole steps: with
    accumulated gradients, a step has several batches.

    Attributes:
        start: Number of the first batch, counted from the first epoch.
        batches: Number of batches in an epoch, on each rank.
        a_step: Number of episodes in a step of the optimiser, on all ranks together.
        epoch: Present epoch of Lightning.
        sampler: This object: Lightning looks for `set_epoch` here.
    """

    def __init__(
        self, episodes_per_epoch: int, batch_size: int, rank: int = 0, world: int = 1, accumulate: int = 1
    ) -> None:
        check_counts(batch_size, episodes_per_epoch)
        self.a_step = batch_size * world * accumulate
        self.batches = episodes_per_epoch // self.a_step * accumulate
        if self.batches < 1:
            batches = "a batch" if accumulate == 1 else f"{accumulate} batches (trainer.accumulate_grad_batches)"
            raise ValueError(
                f"data.init_args.episodes_per_epoch={episodes_per_epoch} is less than {batches} of {batch_size} on "
                f"each of {world} processes; set it to {self.a_step} or more."
            )
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.start = self.epoch = 0
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Note the epoch. Lightning restores the state of a loader only in the middle of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        at_once = self.batch_size * self.world
        for number in range(self.start, self.start + self.batches):
            epoch, batch = divmod(number, self.batches)
            yield [(epoch, batch * at_once + j * self.world + self.rank) for j in range(self.batch_size)]


@dataclass(frozen=True)
class LoaderState:
    """State of an `EpisodeLoader` in a checkpoint.

    Attributes:
        consumed: Number of batches so far, counted from the first epoch.
        batch: Number of episodes in a batch, over all processes.
        accumulate: Number of batches in a step; 0 in checkpoints of earlier versions.
    """

    consumed: int
    batch: int
    accumulate: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.consumed < 2**40 and self.batch > 0 and self.accumulate >= 0):
            raise ValueError("a data loader counts batches of one episode or more")


class EpisodeLoader(DataLoader[Episode]):
    """Loads batches of episodes. After `load_state_dict` it goes on exactly, also in the middle of an epoch.

    Args:
        dataset: Episodes by (epoch, index).
        batch_size: Number of episodes in a batch, on each process.
        episodes_per_epoch: Number of episodes in an epoch, on all processes together.
        trainer: Trainer that knows rank and steps; None for a single process without a trainer.
        num_workers: Number of processes that draw episodes; None takes `workers_of`.

    Attributes:
        consumed: Number of batches so far, counted from the first epoch.
        waited_s: Seconds that the training waited for batches so far.
    """

    def __init__(
        self,
        dataset: Dataset[Episode],
        *,
        batch_size: int,
        episodes_per_epoch: int,
        trainer: Trainer | None = None,
        num_workers: int | None = None,
    ) -> None:
        self.consumed = 0
        self.waited_s = 0.0
        self.trainer = trainer
        self.accumulate = 1 if trainer is None else trainer.accumulate_grad_batches
        self.order = EpisodeBatches(episodes_per_epoch, batch_size, *rank_and_world(trainer), self.accumulate)
        num_workers = workers_of(trainer) if num_workers is None else num_workers
        super().__init__(
            dataset,
            batch_sampler=self.order,
            collate_fn=collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=on_gpu(trainer),  # without pinned memory, the host would wait for every copy to the device
            worker_init_fn=_begin_worker,
        )

    def __iter__(self) -> Iterator[Episode]:  # type: ignore[override]
        if not self.consumed:  # at the first start, or after the end of an epoch
            self.consumed = self.order.epoch * self.order.batches
        self.order.start = self.consumed
        asked = time.perf_counter()
        for batch in super().__iter__():
            self.waited_s += time.perf_counter() - asked
            self.consumed += 1
            yield batch
            asked = time.perf_counter()

    def state_dict(self) -> dict[str, int]:
        """Return the state for a checkpoint (`LoaderState`)."""
        batch = self.order.batch_size * self.order.world
        return {"consumed": self.consumed, "batch": batch, "accumulate": self.accumulate}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the steps of a saved state. A step may have more or fewer batches now.

        Raises:
            ValueError: If a step would hold another number of episodes than before.
        """
        loader_state = as_record(state, LoaderState, "the checkpoint's data loader", later=("accumulate",))
        before = loader_state.accumulate or self.accumulate  # 0 in checkpoints of earlier versions
        if (episodes := loader_state.batch * before) != self.order.a_step:
            raise ValueError(
                f"the checkpoint was trained with {episodes} episodes a step, this run has {self.order.a_step}; set "
                "data.init_args.batch_size and trainer.accumulate_grad_batches so that batch_size x processes x "
                "accumulate_grad_batches stays the same."
            )
        self.consumed = _batches(loader_state.consumed, before, self.accumulate)
        if self.trainer is not None and before != self.accumulate:
            progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress  # Lightning also counts batches
            for counts in (progress.total, progress.current):
                begun = counts.ready - counts.completed  # 1 if it was saved at the end of a batch
                counts.ready = counts.started = counts.processed = _batches(counts.ready, before, self.accumulate)
                counts.completed = counts.ready - begun


class VolumeLoader:
    """Yields the scans of this rank one by one, and reads each scan when it is needed. Each scan is on one rank.

    It is no DataLoader: Lightning would rebuild a DataLoader for `predict`, with other arguments. A rank without scans
    has the length 1 and yields no scan. With the length 0, Lightning would not start the validation on this rank, and
    the other ranks would wait for it without end.

    Args:
        readers: Functions that read the scans of all ranks.
        rank: Rank of this process.
        world: Number of processes.
    """

    def __init__(self, readers: Sequence[Callable[[], Volume]], rank: int = 0, world: int = 1) -> None:
        self.shortest = min(1, len(readers))
        self.readers = readers[rank::world]

    def __len__(self) -> int:
        return max(self.shortest, len(self.readers))

    def __iter__(self) -> Iterator[Volume]:
        return (read() for read in self.readers)


def check_counts(batch_size: int, episodes_per_epoch: int, num_workers: int | None = None) -> None:
    """Refuse numbers that no loader can use. A datamodule calls this before it reads a scan.

    Raises:
        ValueError: If a number is too small.
    """
    least = {"batch_size": (batch_size, 1), "episodes_per_epoch": (episodes_per_epoch, 1)}
    for name, (value, fewest) in (least | {"num_workers": (num_workers or 0, 0)}).items():
        if value < fewest:
            raise ValueError(f"data.init_args.{name}={value} must be {fewest} or more.")


def rank_and_world(trainer: Trainer | None) -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def on_gpu(trainer: Trainer | None) -> bool:
    """Return whether this process trains on a CUDA device."""
    strategy = getattr(trainer, "strategy", None)
    return strategy is not None and strategy.root_device.type == "cuda"


def workers_of(trainer: Trainer | None) -> int:
    """Return the default number of processes that draw episodes: WORKERS with a GPU, at most one for each core.

    On a CPU it is 0: training and drawing would compete for the cores.
    """
    return min(WORKERS, usable_cores()) if on_gpu(trainer) else 0


@contextmanager
def errors_of_all_ranks() -> Iterator[None]:
    """Let each rank check its share of the data. An error on one rank ends all ranks, with the message of the first.

    All ranks have to enter this context, also ranks without a share.

    Raises:
        DataError: If this rank or another rank found an error.
    """
    error: DataError | None = None
    try:
        yield
    except DataError as raised:
        error = raised
    said = [None if error is None else str(error)]
    if torch.distributed.is_initialized():
        said *= torch.distributed.get_world_size()
        torch.distributed.all_gather_object(said, said[0])
    for line in filter(None, said):
        raise DataError(line) from error


def _batches(count: int, before: int, now: int) -> int:
    """Convert a number of batches, from `before` batches in a step to `now` batches. Incomplete steps are dropped."""
    return count // before * now


def _begin_worker(worker: int) -> None:  # noqa: ARG001 - DataLoader passes it
    """Prepare a data worker, so that it ends with its training.

    A terminal, torchrun and SLURM send signals to all processes of a job. The training then ends its step, and needs
    its workers for that. So workers accept SIGTERM only from their training.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # other systems do not tell who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_as_the_training_asks, daemon=True).start()


def _end_as_the_training_asks() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
