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
        """Return the result of a step on a subject; it is made at the first call. Its seconds are added at each."""
        if (step, subject) not in self._made:
            took: dict[str, float] = {}
            with timed(took, step, segmenter):
                made = make()
            self._made[step, subject] = made, took[step]
        kept: tuple[Made, float] = self._made[step, subject]
        seconds[step] = seconds.get(step, 0.0) + kept[1]
        return kept[0]


@contextmanager
def timed(seconds: dict[str, float], step: str, segmenter: VolumeSegmenter) -> Iterator[None]:
    """Add the wall seconds of a step, the accelerator's work included."""
    start = time.perf_counter()
    try:
        yield
    finally:
        if segmenter.device.type == "cuda":
            torch.cuda.synchronize(segmenter.device)
        seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - start
