"""Tracking: a clicked lesion is found on the neighbouring slices, until the evidence ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.inference.encoded_volume import EncodedVolume, Tracked
from mois.interfaces import Backbone, Memory, TrackingRules


@dataclass(frozen=True)
class Limits:
    """Where tracking ends.

    Attributes:
        range_mm: How far from the clicked slice a lesion is tracked.
        growth: A lesion that grows by more than this factor from one slice to the next has been lost.
        rules: Which clicked and which latest slices are remembered.
    """

    range_mm: float
    growth: float
    rules: TrackingRules


@dataclass(frozen=True)
class Seeds:
    """N lesions on the slices on which they were clicked.

    Attributes:
        rows: (N,) int64, rows of an `EncodedVolume`.
        logits: (N, P / 4, P / 4), what the clicks gave.
        pointer: (N, D).
        presence: (N,), logit that the lesion is there.
    """

    rows: npt.NDArray[np.int64]
    logits: Tensor
    pointer: Tensor
    presence: Tensor

    def __getitem__(self, part: slice) -> Seeds:
        return Seeds(self.rows[part], self.logits[part], self.pointer[part], self.presence[part])

    def remembered(self, backbone: Backbone, encoded: EncodedVolume) -> Memory:
        """Return the memory of the slices on which they were clicked."""
        return backbone.remember_slice(encoded.select(self.rows), self.logits, self.pointer, self.presence, hard=True)


@torch.inference_mode()
def track_lesions(backbone: Backbone, encoded: EncodedVolume, seeds: Seeds, limits: Limits, batch_size: int) -> Tracked:
    """Track N lesions in both directions, each from the one slice on which it was clicked.

    A lesion ends where the model sees none (presence not above 0, or an empty mask), where it grows too fast, at the
    end of the scan, in air, and at the end of the range.
    """
    found = [Tracked(np.arange(len(seeds.rows)), seeds.rows, seeds.logits.float())]
    chunk = max(1, batch_size // 2)
    for first in range(0, len(seeds.rows), chunk):
        part = seeds[first : first + chunk]
        count = len(part.rows)
        memory = part.remembered(backbone, encoded)
        both = np.tile(np.arange(count), 2)
        starts = Seeds(part.rows[both], *(_at(of, both) for of in (part.logits, part.pointer, part.presence)))
        direction = np.repeat([1, -1], count)
        steps = np.full(2 * count, int(limits.range_mm / encoded.grid.gap_mm))
        parts = _track(backbone, encoded, starts, _pick(memory, both), direction, steps, limits)
        found += [Tracked(both[tracked.lesion] + first, tracked.rows, tracked.logits) for tracked in parts]
    return _join(found)


@torch.inference_mode()
def track_one_lesion(backbone: Backbone, encoded: EncodedVolume, seeds: Seeds, limits: Limits) -> Tracked:
    """Track one lesion that was clicked on N slices of one tile. Each clicked slice is remembered on all slices.

    The masks on clicked slices stay. Between two clicked slices, each is tracked to the middle. Tracking does not start
    on a slice where the clicks left an empty mask, and it does not cross that slice.

    Args:
        backbone: The model.
        encoded: The scan.
        seeds: The clicked slices of one tile, ascending.
        limits: Where tracking ends.
    """
    places = encoded.places[seeds.rows][:, 0]
    reach = int(limits.range_mm / encoded.grid.gap_mm)
    memories = [seeds[n : n + 1].remembered(backbone, encoded) for n in range(len(places))]
    found = [Tracked(np.zeros(len(places), np.int64), seeds.rows, seeds.logits.float())]
    shown = (seeds.logits > 0).flatten(1).any(1).tolist()
    for n, place in enumerate(places.tolist()):
        if not shown[n]:
            continue
        for direction in (1, -1):
            steps = min(reach, _slices_until_next_click(places.tolist(), shown, n, direction))
            others = [
                (direction * (place - int(other)), memories[m]) for m, other in enumerate(places) if m != n and shown[m]
            ]
            found += _track(
                backbone,
                encoded,
                seeds[n : n + 1],
                memories[n],
                np.array([direction]),
                np.array([steps]),
                limits,
                others,
            )
    return _join(found)


def _slices_until_next_click(places: Sequence[int], shown: Sequence[bool], n: int, direction: int) -> int:
    """Return how many slices a clicked slice is tracked over before the part of the next clicked slice begins."""
    if not 0 <= n + direction < len(places):
        return 1 << 30
    gap = abs(places[n + direction] - places[n]) - 1
    if not shown[n + direction]:
        return gap
    return (gap + 1) // 2 if direction > 0 else gap // 2


def _track(
    backbone: Backbone,
    encoded: EncodedVolume,
    seeds: Seeds,
    clicked: Memory,
    direction: npt.NDArray[np.int64],
    steps: npt.NDArray[np.int64],
    limits: Limits,
    others: Sequence[tuple[int, Memory]] = (),
) -> list[Tracked]:
    """Track N lesions, each in one direction, slice by slice.

    Args:
        backbone: The model.
        encoded: The scan.
        seeds: Slices on which the tracks start.
        clicked: Memory of those slices.
        direction: (N,) 1 or -1.
        steps: (N,) longest length of each track, in slices.
        limits: Where tracking ends.
        others: Memories of further clicked slices (only where N = 1), each with its distance to the start, positive
            if it lies behind.

    Returns:
        The lesions after the start; `lesion` is the number of the track.
    """
    rows = encoded.shown_rows()
    recent: list[Memory] = []  # the latest slices, the last one first
    track = np.arange(len(seeds.rows))
    start, tile = encoded.places[seeds.rows].T
    area = (seeds.logits > 0).sum((1, 2)).float()  # in cells of 4 x 4 pixels
    found: list[Tracked] = []
    for step in range(1, int(steps.max(initial=0)) + 1):
        here = start + step * direction
        inside = (here >= 0) & (here < len(rows)) & (step <= steps)
        at_row = np.where(inside, rows[here.clip(0, len(rows) - 1), tile], -1)
        going = np.flatnonzero(at_row >= 0)
        if not len(going):
            break
        features = encoded.select(at_row[going])
        known = [(step, clicked), *((step + behind, memory) for behind, memory in others)]
        memory = limits.rules.gather(known, recent, slices=len(rows))
        if len(going) < len(track):
            memory = _pick(memory, going)
        answer = backbone.decode(backbone.attend(features, memory), None)
        new_area = (answer.logits > 0).sum((1, 2)).float()
        # + 4: a lesion of one or two cells may double without having been lost.
        alive = (answer.presence > 0) & (new_area > 0) & (new_area <= limits.growth * (_at(area, going) + 4))
        kept = np.flatnonzero(alive.cpu().numpy())  # the only wait of a step
        if not len(kept):
            break
        index = going[kept]
        kept_logits = _at(answer.logits, kept)
        found.append(Tracked(track[index], at_row[index], kept_logits.float()))
        seen = features if len(kept) == len(going) else features.select(_on(kept, kept_logits.device))
        latest = backbone.remember_slice(seen, kept_logits, _at(answer.pointer, kept), _at(answer.presence, kept))
        recent = limits.rules.keep(latest, [_pick(part, index) for part in recent])
        clicked = _pick(clicked, index)
        track, direction, steps = track[index], direction[index], steps[index]
        start, tile, area = start[index], tile[index], _at(new_area, kept)
    return found


def _join(parts: Sequence[Tracked]) -> Tracked:
    return Tracked(
        np.concatenate([part.lesion for part in parts]),
        np.concatenate([part.rows for part in parts]),
        torch.cat([part.logits for part in parts]).cpu(),
    )


def _at(tensor: Tensor, index: npt.NDArray[np.int64]) -> Tensor:
    """Return some rows of a tensor on any device."""
    return tensor[_on(index, tensor.device)]


def _on(index: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(index).to(device, non_blocking=True)


def _pick(memory: Memory, index: npt.NDArray[np.int64]) -> Memory:
    """Return the memory of some objects."""
    return memory.pick(_on(index, memory.maps.device))
