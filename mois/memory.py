"""Memory of an object while it is tracked from slice to slice, and rules for what a slice attends to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """Memory of N objects that are tracked together: memory maps of T slices and pointers of R slices.

    Attributes:
        maps: (N, T, M, h, w), M = `Backbone.memory_width`, on the coarsest grid.
        position: (N, T, M, h, w), spatial position code.
        pointers: (N, R, D).
        distance: T numbers of slices from the remembered slice to the attending slice, positive in tracking direction.
        clicked: T flags, True for a prompted slice. A prompted slice counts as near at any distance.
        pointer_distance: R numbers like `distance`; None if the pointers belong to the same slices as the maps.
        slices: Number of slices of the scan; None if unknown.
    """

    maps: Tensor
    position: Tensor
    pointers: Tensor
    distance: tuple[int, ...] = (1,)
    clicked: tuple[bool, ...] = (True,)
    pointer_distance: tuple[int, ...] | None = None
    slices: int | None = None

    @property
    def pointer_steps(self) -> tuple[int, ...]:
        """R numbers of slices, from the slice of each pointer to the attending slice."""
        return self.distance if self.pointer_distance is None else self.pointer_distance

    def repeat(self, times: int) -> Memory:
        """Return the memory of every object `times` times in a row, (N * times, ...)."""
        return self._each(lambda part: part.repeat_interleave(times, 0))

    def pick(self, index: Tensor) -> Memory:
        """Return the memory of the objects at `index` (int64)."""
        return self._each(lambda part: part[index])

    def at(self, distance: int, *, clicked: bool) -> Memory:
        """Return this memory of one slice with another distance to the attending slice."""
        maps, pointers = self.maps.shape[1], self.pointers.shape[1]
        steps = None if maps == pointers else (distance,) * pointers
        return self._replace(distance=(distance,) * maps, clicked=(clicked,) * maps, pointer_distance=steps)

    def without_map(self) -> Memory:
        """Return this memory of one slice without its map."""
        steps = self.pointer_steps
        return self._replace(
            maps=self.maps[:, :0], position=self.position[:, :0], distance=(), clicked=(), pointer_distance=steps
        )

    def without_pointer(self) -> Memory:
        """Return this memory of one slice without its pointer."""
        return self._replace(pointers=self.pointers[:, :0], pointer_distance=())

    @staticmethod
    def cat(parts: Sequence[Memory]) -> Memory:
        """Join memories of the same objects along T and R."""
        apart = any(part.pointer_distance is not None for part in parts)
        return Memory(
            torch.cat([part.maps for part in parts], dim=1),
            torch.cat([part.position for part in parts], dim=1),
            torch.cat([part.pointers for part in parts], dim=1),
            tuple(step for part in parts for step in part.distance),
            tuple(flag for part in parts for flag in part.clicked),
            tuple(step for part in parts for step in part.pointer_steps) if apart else None,
            parts[0].slices,
        )

    def part(self, number: int) -> Memory:
        """Return the memory of one object, N = 1."""
        return self.part_of(slice(number, number + 1))

    def part_of(self, some: slice) -> Memory:
        """Return the memory of some objects in a row, without a copy."""
        return self._each(lambda part: part[some])

    @staticmethod
    def stack(parts: Sequence[Memory]) -> Memory:
        """Join memories of the same slices along N."""
        maps, position, pointers = (torch.cat(part) for part in zip(*(part[:3] for part in parts), strict=True))
        return parts[0]._replace(maps=maps, position=position, pointers=pointers)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Memory:
        maps, position, pointers = (change(part) for part in self[:3])
        return self._replace(maps=maps, position=position, pointers=pointers)


@dataclass(frozen=True)
class TrackingRules:
    """Rules for which earlier slices a slice attends to during tracking. Clicked slices are always remembered.

    Attributes:
        maps: Number of latest slices that are remembered as maps.
        pointers: Number of latest slices that are remembered as pointers; None: the slices with maps.
        past_pointers: Leave out the pointers of clicked slices that lie ahead. Needs a number of pointers.
        masks_alone: A mask that a reader gave is described without memory of other slices.
    """

    maps: int = 1
    pointers: int | None = None
    past_pointers: bool = False
    masks_alone: bool = False

    def gather(
        self, clicked: Iterable[tuple[int, Memory]], latest: Iterable[Memory], slices: int | None = None
    ) -> Memory:
        """Return the memory that a slice attends to.

        Args:
            clicked: Memories of clicked slices, each with the number of slices from the clicked slice to this slice in
                tracking direction. The number is negative if the clicked slice lies ahead.
            latest: Memories of the slices before this slice, newest first, as `keep` returned them.
            slices: Number of slices of the scan; None if unknown.
        """
        parts = []
        for distance, memory in clicked:
            part = memory.at(distance, clicked=True)
            parts.append(part.without_pointer() if self.past_pointers and distance < 0 else part)
        parts += [memory.at(distance, clicked=False) for distance, memory in enumerate(latest, start=1)]
        return Memory.cat(parts)._replace(slices=slices)

    def keep(self, last: Memory, latest: Sequence[Memory]) -> list[Memory]:
        """Return the memories of the latest slices after one more slice, newest first.

        Args:
            last: Memory of the new slice.
            latest: Memories of the slices before it, newest first.
        """
        pointers = self.maps if self.pointers is None else self.pointers
        kept = []
        for age, memory in enumerate([last, *latest][: max(self.maps, pointers)], start=1):
            if age > self.maps:
                memory = memory.without_map()
            kept.append(memory.without_pointer() if age > pointers else memory)
        return kept
