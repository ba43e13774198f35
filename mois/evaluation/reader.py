"""The simulated reader of an evaluation: which lesions are prompted, and with which clicks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from mois.errors import check_choices
from mois.records import Prompts

Strategy = Literal["random", "largest", "spread", "suggested", "corrects"]
Slices = Literal["largest", "any"]

LEAST_AREA = 0.3
"""A slice may be clicked if it shows a lesion with at least this share of its area on its largest slice."""


@dataclass(frozen=True)
class Reader:
    """A simulated reader of whole volumes: which lesions are prompted, and which never are.

    Attributes:
        strategy: `random`; `largest` first; `spread`: evenly over the lesions' sizes, the middle one first; `suggested`
            or `corrects`: the lesions that `SessionReader` clicks or accepts, in its order.
        seed: Seed of every choice. The same seed and lesions give the same choice.
        noise_mm: Distance by which clicks miss their aim, in plane: standard deviation along rows and along columns.
        miss: Share of the promptable lesions that the reader overlooks; the reader sees at least one.
        slices: Where a lesion is clicked. `largest`: on the slice on which it is largest. `any`: on a slice on which it
            has at least 30 % of that area; the seed chooses which.
    """

    strategy: Strategy = "random"
    seed: int = 0
    noise_mm: float = 0.0
    miss: float = 0.0
    slices: Slices = "largest"

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_choices(self, "reader")
        if not self.noise_mm >= 0:
            raise ValueError(f"reader.noise_mm={self.noise_mm} must be 0 or more.")
        if not 0 <= self.miss < 1:
            raise ValueError(f"reader.miss={self.miss} must be at least 0 and below 1.")

    def choose_slice(self, lesion: int, area: npt.NDArray[np.int64]) -> int:
        """Return the slice on which a lesion is clicked.

        Args:
            lesion: Id of the lesion. Each lesion has a choice of its own.
            area: (S,), pixels of the lesion on each slice of the scan.
        """
        if self.slices == "largest":
            return int(area.argmax())
        shown = np.flatnonzero(area >= LEAST_AREA * area.max())
        return int(np.random.default_rng([self.seed, 5, lesion]).choice(shown))

    def shake(self, prompts: Prompts, pixel_mm: float, patch_px: int, generator: torch.Generator) -> Prompts:
        """Return the prompts with the last click of each image moved by the reader's error.

        Args:
            prompts: Q clicks on each of N images, in pixels.
            pixel_mm: Edge of a pixel.
            patch_px: Edge of the patch; no click leaves it.
            generator: Source of the error; unused if `noise_mm` is 0.
        """
        if self.noise_mm == 0:
            return prompts
        off = torch.randn(len(prompts.points), 2, generator=generator) * (self.noise_mm / pixel_mm)
        points = prompts.points.clone()
        points[:, -1] = (points[:, -1] + off.to(points.device)).round().clamp(0, patch_px - 1)
        return prompts._replace(points=points)

    def hold_out(self, volumes_ml: Mapping[int, float]) -> tuple[list[int], list[int]]:
        """Split the lesions of a class into promptable lesions and never-prompted lesions.

        Lesions are paired by size. A coin decides which of each pair is never prompted. So both halves hold large and
        small lesions. The split depends on the seed and on the lesions, not on how many of them are prompted.

        Args:
            volumes_ml: Lesion id to volume in millilitres.

        Returns:
            Ids of the promptable and of the never-prompted lesions, ascending. A single lesion is promptable.
        """
        rng = np.random.default_rng([self.seed, 1])
        by_size = sorted(volumes_ml, key=lambda lesion: (-volumes_ml[lesion], lesion))
        promptable: list[int] = []
        never: list[int] = []
        for start in range(0, len(by_size) - 1, 2):
            pair = by_size[start : start + 2]
            chosen = int(rng.integers(2))
            promptable.append(pair[chosen])
            never.append(pair[1 - chosen])
        if len(by_size) % 2:
            (promptable if len(by_size) == 1 or rng.integers(2) else never).append(by_size[-1])
        return sorted(promptable), sorted(never)

    def choose_lesions(self, volumes_ml: Mapping[int, float], count: int) -> list[int]:
        """Return the ids of the lesions to prompt, in the order in which they are prompted.

        A choice of fewer lesions is always the beginning of a choice of more. So the points of a curve can be
        compared. The order of `suggested` and `corrects` depends on what the model finds; here it is that of `random`.

        Args:
            volumes_ml: Lesion id to volume in millilitres, of the promptable lesions.
            count: Number of lesions; the reader may see fewer.
        """
        volumes_ml = self._seen(volumes_ml)
        by_size = sorted(volumes_ml, key=lambda lesion: (-volumes_ml[lesion], lesion))
        match self.strategy:
            case "largest":
                order = by_size
            case "spread":
                order = [by_size[rank] for rank in _middle_first(len(by_size))]
            case _:
                order = [sorted(by_size)[i] for i in np.random.default_rng([self.seed, 2]).permutation(len(by_size))]
        return order[:count]

    def _seen(self, volumes_ml: Mapping[int, float]) -> Mapping[int, float]:
        """Return the lesions that the reader does not overlook."""
        overlooked = min(round(self.miss * len(volumes_ml)), len(volumes_ml) - 1)
        if overlooked <= 0:
            return volumes_ml
        order = np.random.default_rng([self.seed, 3]).permutation(sorted(volumes_ml))
        return {int(lesion): volumes_ml[int(lesion)] for lesion in order[overlooked:]}


def _middle_first(count: int) -> list[int]:
    """Return 0..count-1 so that every beginning is spread out: the middle, then the middles of both sides, ..."""
    order: list[int] = []
    spans = [(0, count)]
    while spans:
        following: list[tuple[int, int]] = []
        for start, stop in spans:
            if start < stop:
                middle = (start + stop) // 2
                order.append(middle)
                following += [(start, middle), (middle + 1, stop)]
        spans = following
    return order
