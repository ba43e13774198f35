"""Loaders that can be resumed and that ranks share: episodes to train on, whole volumes to measure on."""

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
from mois.records import Episode, Volume

WORKERS = 4
"""Processes that draw episodes for each GPU, by default."""


class EpisodeBatches(Sampler[list[tuple[int, int]]]):
    """The (epoch, index) of the episodes of this rank's batches, one training epoch from batch `start` on.

    The episodes of an epoch are dealt to the ranks in turn, so that the batches of all ranks at one step hold what one
    process with a batch as large as all of theirs would see. Whoever goes on past the end of an epoch gets the next.
    An epoch is whole steps: where gradients are accumulated, each is of as many batches.

    Attributes:
        start: Number of the first batch, counted from the first epoch on.
        batches: In an epoch, on every rank.
        a_step: Episodes of an optimiser's step, on all ranks together.
        epoch: The one that Lightning is in.
        sampler: Itself, since Lightning looks here for `set_epoch`.
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
        """Note the epoch; Lightning says it before each, but gives a loader its state back only within one."""
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
    """What a checkpoint says of an `EpisodeLoader`.

    Attributes:
        consumed: Batches handed out, counted from the first epoch on.
        batch: Episodes in a batch, of all processes.
        accumulate: Batches in a step; 0 where an older checkpoint does not say.
    """

    consumed: int
    batch: int
    accumulate: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.consumed < 2**40 and self.batch > 0 and self.accumulate >= 0):
            raise ValueError("a data loader counts batches of one episode or more")


class EpisodeLoader(DataLoader[Episode]):
    """Loads batches of episodes, and goes on where it was after `load_state_dict`, also in the middle of an epoch.

    Args:
        dataset: Takes (epoch, index).
        batch_size: Episodes in a batch, on each process.
        episodes_per_epoch: On all processes together.
        trainer: Whose process gets its share, and whose steps are counted; None for a process that is alone.
        num_workers: Processes that draw episodes; None decides (`workers_of`).

    Attributes:
        consumed: Number of batches handed out, counted from the first epoch on.
        waited_s: Seconds that whoever asked for a batch waited for it, in all.
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
            pin_memory=on_gpu(trainer),  # or the host would wait for every copy to the device
            worker_init_fn=_begin_worker,
        )

    def __iter__(self) -> Iterator[Episode]:  # type: ignore[override]
        if not self.consumed:  # at the very start, or going on from the end of an epoch
            self.consumed = self.order.epoch * self.order.batches
        self.order.start = self.consumed
        asked = time.perf_counter()
        for batch in super().__iter__():
            self.waited_s += time.perf_counter() - asked
            self.consumed += 1
            yield batch
            asked = time.perf_counter()

    def state_dict(self) -> dict[str, int]:
        """Return what Lightning saves in a checkpoint."""
        batch = self.order.batch_size * self.order.world
        return {"consumed": self.consumed, "batch": batch, "accumulate": self.accumulate}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the steps that were made when the state was saved, maybe of more or fewer batches each now.

        Raises:
            ValueError: If a step would hold another number of episodes than before, so that it could not be exact.
        """
        loader_state = as_record(state, LoaderState, "the checkpoint's data loader", later=("accumulate",))
        before = loader_state.accumulate or self.accumulate  # older checkpoints do not say
        if (episodes := loader_state.batch * before) != self.order.a_step:
            raise ValueError(
                f"the checkpoint was trained with {episodes} episodes a step, this run has {self.order.a_step}; set "
                "data.init_args.batch_size and trainer.accumulate_grad_batches so that batch_size x processes x "
                "accumulate_grad_batches stays the same."
            )
        self.consumed = _batches(loader_state.consumed, before, self.accumulate)
        if self.trainer is not None and before != self.accumulate:
            progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress  # Lightning counts an epoch's batches too
            for counts in (progress.total, progress.current):
                begun = counts.ready - counts.completed  # 1 where it was saved at the end of a batch
                counts.ready = counts.started = counts.processed = _batches(counts.ready, before, self.accumulate)
                counts.completed = counts.ready - begun


class VolumeLoader:
    """This rank's scans, one at a time, read when their turn comes; every scan is on one rank only, and none twice.

    No DataLoader, since Lightning builds those anew for `predict`, with arguments of its own. A rank without scans says
    that it has one and yields none: Lightning does not even start validation on a rank whose length is 0, and the
    others would wait for it forever.
    """

    def __init__(self, readers: Sequence[Callable[[], Volume]], rank: int = 0, world: int = 1) -> None:
        self.shortest = min(1, len(readers))
        self.readers = readers[rank::world]

    def __len__(self) -> int:
        return max(self.shortest, len(self.readers))

    def __iter__(self) -> Iterator[Volume]:
        return (read() for read in self.readers)


def check_counts(batch_size: int, episodes_per_epoch: int, num_workers: int | None = None) -> None:
    """Refuse numbers that no loader can work with; a datamodule's constructor asks before any scan is read.

    Raises:
        ValueError: With the first one.
    """
    least = {"batch_size": (batch_size, 1), "episodes_per_epoch": (episodes_per_epoch, 1)}
    for name, (value, fewest) in (least | {"num_workers": (num_workers or 0, 0)}).items():
        if value < fewest:
            raise ValueError(f"data.init_args.{name}={value} must be {fewest} or more.")


def rank_and_world(trainer: Trainer | None) -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def on_gpu(trainer: Trainer | None) -> bool:
    """Tell whether this process trains on a CUDA device."""
    strategy = getattr(trainer, "strategy", None)
    return strategy is not None and strategy.root_device.type == "cuda"


def workers_of(trainer: Trainer | None) -> int:
    """Return how many processes draw episodes where nobody said so: WORKERS beside a GPU, as far as there are cores.

    On a CPU there are none: training and drawing would take each other's cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(WORKERS, cores) if on_gpu(trainer) else 0


@contextmanager
def errors_of_all_ranks() -> Iterator[None]:
    """Check a share of the data on each rank: what one of them cannot use ends all, with the line of the first rank.

    Every rank has to come here, also one without a share.

    Raises:
        DataError: Of this rank, or in the words of another.
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
    """Return a number of batches, `before` of which made a step, as if `now` made one; what began no step is left."""
    return count // before * now


def _begin_worker(worker: int) -> None:  # noqa: ARG001 - DataLoader passes it
    """Set a data worker up, which ends when its training does.

    A terminal, torchrun and SLURM signal to all processes of a job. The training goes on to the end of its step, for
    which it needs its workers; they heed SIGTERM only where it comes from their training.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere nothing tells who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_as_the_training_asks, daemon=True).start()


def _end_as_the_training_asks() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
