"""Loaders that can be resumed and that ranks share: episodes to train on, whole volumes to measure on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.episodes import collate
from mois.interfaces import Episode, Volume


class EpisodeBatches(Sampler[list[tuple[int, int]]]):
    """The (epoch, index) of the episodes of this rank's batches, one training epoch from batch `start` on.

    The episodes of an epoch are dealt to the ranks in turn, so that the batches of all ranks at one step hold what one
    process with a batch as large as all of theirs would see. Whoever goes on past the end of an epoch gets the next.

    Attributes:
        start: Number of the first batch, counted from the first epoch on.
        batches: In an epoch, on every rank.
        epoch: The one that Lightning is in.
        sampler: Itself, since Lightning looks here for `set_epoch`.
    """

    def __init__(self, episodes_per_epoch: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        if batch_size < 1:
            raise ValueError(f"data.init_args.batch_size={batch_size} must be 1 or more.")
        self.batches = episodes_per_epoch // (batch_size * world)
        if self.batches < 1:
            raise ValueError(
                f"data.init_args.episodes_per_epoch={episodes_per_epoch} is less than a batch of {batch_size} on "
                f"each of {world} processes; set it to {batch_size * world} or more."
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


class EpisodeLoader(DataLoader[Episode]):
    """Loads batches of episodes, and goes on where it was after `load_state_dict`, also in the middle of an epoch.

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
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.consumed = 0
        self.waited_s = 0.0
        self.order = EpisodeBatches(episodes_per_epoch, batch_size, rank, world)
        super().__init__(
            dataset,
            batch_sampler=self.order,
            collate_fn=collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=_one_thread,
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
        return {"consumed": self.consumed, "batch": self.order.batch_size * self.order.world}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that were consumed when the state was saved.

        Raises:
            ValueError: If a step would hold another number of episodes than before, so that it could not be exact.
        """
        now = self.order.batch_size * self.order.world
        if state["batch"] != now:
            raise ValueError(
                f"the checkpoint was trained with {state['batch']} episodes a step, this run has {now}; set "
                "data.init_args.batch_size so that batch_size x processes stays the same."
            )
        self.consumed = state["consumed"]


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


def place(trainer: Trainer | None) -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def _one_thread(worker: int) -> None:  # noqa: ARG001 - DataLoader passes it
    torch.set_num_threads(1)
