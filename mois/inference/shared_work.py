"""Work on a scan that several propagations of one backbone share, and the seconds that each step takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from mois.inference.segmenter import VolumeSegmenter

Made = TypeVar("Made")


class SharedWork:
    """Features, answers to clicks and tracked lesions of a scan, shared by all propagations of one backbone."""

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[Any, float]] = {}

    def once(
        self,
        seconds: dict[str, float],
        segmenter: VolumeSegmenter,
        step: str,
        subject: Hashable,
        make: Callable[[], Made],
    ) -> Made:
        """Return the result of a step on a subject. The first call computes it; later calls return the stored result.

        Args:
            seconds: Seconds by step. Every call adds the seconds of the first computation.
            segmenter: The model that computes.
            step: Name of the step.
            subject: What the step works on.
            make: Computes the result.
        """
        if (step, subject) not in self._made:
            took: dict[str, float] = {}
            with timed(took, step, segmenter):
                made = make()
            self._made[step, subject] = made, took[step]
        result: tuple[Made, float] = self._made[step, subject]
        seconds[step] = seconds.get(step, 0.0) + result[1]
        return result[0]


@contextmanager
def timed(seconds: dict[str, float], step: str, segmenter: VolumeSegmenter) -> Iterator[None]:
    """Add the wall-clock seconds of the block to a step, including the work of the GPU."""
    with on_clock(seconds, step):
        try:
            yield
        finally:
            if segmenter.device.type == "cuda":
                torch.cuda.synchronize(segmenter.device)


@contextmanager
def on_clock(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Add the wall-clock seconds of the block to a step."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - start
