"""From a probability map to the lesions that a session did not know yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from mois.inference.encoded_volume import EncodedVolume
from mois.inference.segmenter import VolumeSegmenter
from mois.lesions import InstanceMap
from mois.session.masks import BoxMask
from mois.session.state import Lesion, Maybe, State
from mois.sharing.bank import Exemplar, measure_mask
from mois.sharing.calibration import Calibration

MAYBES = 50
"""How many unsure candidates are kept for suggestions."""


def find_lesions(
    segmenter: VolumeSegmenter,
    encoded: EncodedVolume,
    state: State,
    probability: Tensor,
    voxel_ml: float,
) -> tuple[list[tuple[BoxMask, float]], tuple[Maybe, ...]]:
    """Return what is found besides the lesions that are prompted, locked or rejected, and what is unsure.

    What lies by half or more in one of those is the same thing and is left out. Anything else keeps what they do not
    own; where that falls apart, as on both sides of a locked lesion, it is several lesions.

    Args:
        segmenter: The model.
        encoded: The scan.
        state: What is known.
        probability: (S, H, W) float32.
        voxel_ml: Volume of a voxel in millilitres.

    Returns:
        Masks with their highest probability, in the order of their first voxel; and what did not reach
        `peak_threshold`.
    """
    settings = segmenter.settings
    pieces = segmenter.candidates(probability, voxel_ml, encoded.grid.edges_mm).lesions
    taken, owned = np.zeros(pieces.shape, dtype=bool), np.zeros(pieces.shape, dtype=bool)
    for mask in (*state.owned(), *state.rejected.values()):
        mask.paint(taken, True)
    for mask in state.owned():
        mask.paint(owned, True)
    size = np.bincount(pieces.ravel())
    gone = 2 * np.bincount(pieces[taken], minlength=len(size)) >= size
    gone[0] = True
    pieces = np.where(owned | gone[pieces], 0, pieces).astype(np.int32)
    separate = cc3d.connected_components(pieces, connectivity=26, out_dtype=np.uint32).astype(np.int32)
    values = probability.numpy()
    least = segmenter.min_voxels(voxel_ml)
    sure: list[tuple[BoxMask, float]] = []
    unsure: list[Maybe] = []
    for number, where in enumerate(ndimage.find_objects(separate), start=1):
        if where is None:
            continue
        inside = separate[where] == number
        if inside.sum() < least:
            continue
        corner = tuple(part.start for part in where)
        there = np.where(inside, values[where], -1.0)
        peak = float(there.max())
        if peak >= settings.peak_threshold:
            sure.append((BoxMask((corner[0], corner[1], corner[2]), inside), peak))
        else:
            at = np.array(np.unravel_index(int(there.argmax()), there.shape)) + corner
            unsure.append(Maybe((int(at[0]), int(at[1]), int(at[2])), peak, int(inside.sum())))
    unsure.sort(key=lambda maybe: -maybe.peak)
    return sure, tuple(unsure[:MAYBES])


def keep_ids(
    old: Mapping[int, Lesion], found: Sequence[BoxMask], shape: tuple[int, int, int], next_id: int
) -> list[int]:
    """Return an id for each found lesion: that of the open one it shares most voxels with, else a new one."""
    before: InstanceMap = np.zeros(shape, dtype=np.int32)
    for number, lesion in old.items():
        if not lesion.owns:
            lesion.mask.paint(before, number)
    claims: list[tuple[int, int, int]] = []
    for place, mask in enumerate(found):
        ids, counts = np.unique(before[mask.region][mask.inside], return_counts=True)
        claims += [(-int(count), place, int(number)) for number, count in zip(ids, counts, strict=True) if number]
    given: dict[int, int] = {}
    for _, place, number in sorted(claims):
        if place not in given and number not in given.values():
            given[place] = number
    ids_found = []
    for place in range(len(found)):
        if place not in given:
            given[place], next_id = next_id, next_id + 1
        ids_found.append(given[place])
    return ids_found


@dataclass(frozen=True)
class Look:
    """How lesions look to the model, on the slice on which each is largest.

    Attributes:
        tokens: Name to (N, ...) float32, as in `Exemplars.tokens`, without B.
        area_mm2: (N,).
        mean_intensity: (N,), normalised.
    """

    tokens: dict[str, Tensor]
    area_mm2: list[float]
    mean_intensity: list[float]


def look_at(segmenter: VolumeSegmenter, encoded: EncodedVolume, masks: Sequence[BoxMask]) -> Look:
    """Describe lesions as if they were exemplars."""
    tokens: dict[str, list[Tensor]] = {}
    areas, means = np.zeros(len(masks)), np.zeros(len(masks))
    slices = np.array([mask.largest_slice() for mask in masks], dtype=np.int64)
    order = np.argsort(slices, kind="stable")  # neighbours share their tile
    step = segmenter.settings.batch_size
    for start in range(0, len(masks), step):
        some = order[start : start + step].tolist()
        items = [(int(slices[place]), outline(encoded, masks[place], int(slices[place]))) for place in some]
        described = segmenter.exemplars(encoded, items)
        for name, token in described.tokens.items():
            tokens.setdefault(name, []).append(token[0].float().cpu())
        for place, (index, shown) in zip(some, items, strict=True):
            areas[place], means[place], _ = measure_mask(encoded.pictures[index], shown, segmenter.settings.pixel_mm)
    back = torch.from_numpy(np.argsort(order))
    return Look({name: torch.cat(parts)[back] for name, parts in tokens.items()}, areas.tolist(), means.tolist())


def outline(encoded: EncodedVolume, mask: BoxMask, index: int) -> Tensor:
    """Return a lesion on a slice at the model's pixel size, (h, w) float 0 or 1, never empty."""
    size = encoded.pictures.shape[1:]
    plane = torch.from_numpy(mask.on_slice(index, encoded.grid.stack_shape[1:])).float()
    soft = torch.nn.functional.interpolate(
        plane[None, None], (int(size[0]), int(size[1])), mode="bilinear", antialias=True
    )[0, 0]
    return (soft >= soft.amax().clamp(min=1e-6, max=0.5)).float()


def likeness(look: Look, exemplars: Sequence[Exemplar]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return which positive exemplar each lesion is most like, and how far it is from it.

    Every token counts alike, whatever its size and scale; a distance of 1 is the mean one between exemplars, or between
    all that is compared where there is only one exemplar.

    Returns:
        (N,) places among the exemplars, -1 where none is positive, and (N,) distances.
    """
    count = len(look.area_mm2)
    use = [place for place, exemplar in enumerate(exemplars) if not exemplar.negative and exemplar.weight > 0]
    if not use or not count:
        return np.full(count, -1), np.zeros(count)
    parts = []
    for name, token in look.tokens.items():
        known = torch.stack([exemplars[place].tokens[name] for place in use])
        table = torch.cat([known.flatten(1), token.flatten(1)]).double()
        table = table - table.mean(0)
        parts.append(table / table.norm().clamp(min=1e-12))
    table = torch.cat(parts, 1)
    known, seen = table[: len(use)], table[len(use) :]
    among = torch.pdist(known) if len(use) > 1 else torch.pdist(table)
    unit = float(among.mean()) if len(among) else 1.0
    distance = torch.cdist(seen, known, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distance.argmin(1)
    far = distance.gather(1, nearest[:, None])[:, 0] / max(unit, 1e-12)
    return np.array(use)[nearest.numpy()], far.numpy()


def confidence(calibration: Calibration | None, peaks: Sequence[float]) -> list[float]:
    """Return the confidence of found lesions: calibrated where there is a calibration, else the peak itself."""
    if calibration is None or not peaks:
        return list(peaks)
    return [float(value) for value in calibration.confidence(list(peaks))]
