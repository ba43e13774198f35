"""Work in steps: other work can be done between two steps."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from math import prod
from typing import TypeVar

Result = TypeVar("Result")
Steps = Generator[float | None, None, Result]
"""Work in steps. A step yields the share of the work that is done, 0 to 1; None if it knows no share."""

STEP_VOXELS = 1 << 22
"""Voxels of a scan that are worked on in one step."""


def finish(steps: Steps[Result]) -> Result:
    """Do all steps, and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result


def some_slices(shape: Sequence[int]) -> Iterator[slice]:
    """Yield the slices of a stack of shape (S, H, W): as many at a time as hold `STEP_VOXELS` voxels, at least one.

    Examples:
        >>> list(some_slices((3, 2048, 1024)))
        [slice(0, 2, None), slice(2, 4, None)]
    """
    at_once = max(1, STEP_VOXELS // max(1, prod(shape[1:])))
    for start in range(0, shape[0], at_once):
        yield slice(start, start + at_once)
