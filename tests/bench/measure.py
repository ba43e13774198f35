"""Timing as ratios: arms of one comparison run in turn, and their medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rich.progress import Progress


@dataclass
class Outcome:
    """What a measurement found.

    Attributes:
        figures: The keys of bench.json: ratios, shares, bytes, by name.
        details: What they were worked out from, by name: seconds, bytes, counts.
    """

    figures: dict[str, float]
    details: dict[str, float] = field(default_factory=dict)


class Measurement(Protocol):
    """A function of a bench module; its docstring's first line is what the table says."""

    def __call__(self, repeats: int) -> Outcome:
        """Measure with so many repeats of every arm."""


def interleaved(
    arms: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Return the median seconds of every arm, which take turns so that a slow minute strikes all alike.

    Args:
        arms: What to time, by name; each runs once more beforehand, untimed.
        repeats: Timed runs of each.
        clock: CPU seconds of this process by default; `time.perf_counter` where other processes work too.
    """
    for arm in arms.values():
        arm()
    spent: dict[str, list[float]] = {name: [] for name in arms}
    with Progress(transient=True) as progress:
        for _ in progress.track(range(repeats), description=" / ".join(arms)):
            for name, arm in arms.items():
                start = clock()
                arm()
                spent[name].append(clock() - start)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}
