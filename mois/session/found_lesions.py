"""From a probability map to found lesions: masks, ids, confidence, and the exemplar that each is most like."""

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
from mois.inference.lesion_maps import LesionMaps
from mois.inference.segmenter import VolumeSegmenter
from mois.lesions import InstanceMap
from mois.machine.steps import Steps, finish
from mois.session.masks import BoxMask
from mois.session.state import Lesion, State, UnsureLesion
from mois.sharing.bank import Exemplar, measure_mask
from mois.sharing.calibration import Calibration

MAX_UNSURE = 50
"""Number of unsure candidates that are kept for suggestions."""

FoundLesions = tuple[list[tuple[BoxMask, float]], tuple[UnsureLesion, ...]]
"""Found lesions, each a mask and its highest probability; and unsure candidates."""


def find_lesions(
    segmenter: VolumeSegmenter,
    encoded: EncodedVolume,
    state: State,
    answer: LesionMaps,
    voxel_ml: float,
) -> FoundLesions:
    """Return the found lesions and the unsure candidates of an answer.

    A candidate that lies by half or more in a prompted, locked or rejected lesion is left out. Any other candidate
    keeps the voxels that no prompted or locked lesion owns. If these voxels fall apart, each part is a lesion. A part
    is only a candidate if it does not reach `peak_threshold`, or if it is more like the rejected lesions: there, the
    model is surer on average if the exemplars change sides (`LesionMaps.margin`).

    Args:
        segmenter: The model.
        encoded: The scan.
        state: State before the propagation.
        answer: Where lesions like the exemplars are.
        voxel_ml: Volume of a voxel in millilitres.

    Returns:
        Found lesions, each a mask and its highest probability, in the order of their first voxel; and the candidates,
        the highest first.
    """
    return finish(find_lesions_steps(segmenter, encoded, state, answer, voxel_ml))


def find_lesions_steps(
    segmenter: VolumeSegmenter, encoded: EncodedVolume, state: State, answer: LesionMaps, voxel_ml: float
) -> Steps[FoundLesions]:
    """Do what `find_lesions` does, in steps."""
    settings = segmenter.settings
    candidates = yield from segmenter.candidates_steps(answer, voxel_ml, encoded.grid.edges_mm)
    yield None
    pieces = _free_voxels(candidates.lesions, state)
    yield None
    separate = cc3d.connected_components(pieces, connectivity=26, out_dtype=np.uint32).astype(np.int32)
    yield None
    values = answer.probability.numpy()
    margin = None if answer.margin is None else answer.margin.numpy()
    least = segmenter.min_voxels(voxel_ml)
    found: list[tuple[BoxMask, float]] = []
    unsure: list[UnsureLesion] = []
    for number, where in enumerate(ndimage.find_objects(separate), start=1):
        if where is None:
            continue
        yield None
        inside = separate[where] == number
        if inside.sum() < least:
            continue
        corner = tuple(part.start for part in where)
        within = np.where(inside, values[where], -1.0)
        peak = answer.at_peak_level(within.max(keepdims=True)).item()
        like_rejected = margin is not None and float(margin[where][inside].mean(dtype=np.float64)) < 0
        if peak >= settings.peak_threshold and not like_rejected:
            found.append((BoxMask((corner[0], corner[1], corner[2]), inside), peak))
        else:
            point = np.array(np.unravel_index(int(within.argmax()), within.shape)) + corner
            place = int(point[0]), int(point[1]), int(point[2])
            unsure.append(UnsureLesion(place, peak, int(inside.sum()), like_rejected))
    unsure.sort(key=lambda candidate: -candidate.peak)
    return found, tuple(unsure[:MAX_UNSURE])


def _free_voxels(candidates: InstanceMap, state: State) -> InstanceMap:
    """Return the candidates (S, H, W) without what prompted, locked and rejected lesions take; see `find_lesions`."""
    taken, owned = np.zeros(candidates.shape, dtype=bool), np.zeros(candidates.shape, dtype=bool)
    for mask in (*state.owned(), *state.rejected.values()):
        mask.paint(taken, True)
    for mask in state.owned():
        mask.paint(owned, True)
    inside = candidates > 0  # few of all voxels
    candidate = candidates[inside]
    size = np.bincount(candidate, minlength=1)
    gone = 2 * np.bincount(candidates[taken], minlength=len(size)) >= size
    free = np.zeros_like(candidates)
    free[inside] = np.where(owned[inside] | gone[candidate], 0, candidate)
    return free


def keep_ids(
    old: Mapping[int, Lesion], found: Sequence[BoxMask], shape: tuple[int, int, int], next_id: int
) -> list[int]:
    """Return an id for each found lesion: the id of the open lesion with which it shares most voxels, or a new id.

    Args:
        old: Lesions before the propagation, by id.
        found: Masks of the found lesions.
        shape: Shape (S, H, W) of the stack.
        next_id: First new id.
    """
    before: InstanceMap = np.zeros(shape, dtype=np.int32)
    for number, lesion in old.items():
        if not lesion.owns:
            lesion.mask.paint(before, number)
    claims: list[tuple[int, int, int]] = []
    for index, mask in enumerate(found):
        ids, counts = np.unique(before[mask.region][mask.inside], return_counts=True)
        claims += [(-int(count), index, int(number)) for number, count in zip(ids, counts, strict=True) if number]
    given: dict[int, int] = {}
    for _, index, number in sorted(claims):
        if index not in given and number not in given.values():
            given[index] = number
    for index in range(len(found)):
        if index not in given:
            given[index], next_id = next_id, next_id + 1
    return [given[index] for index in range(len(found))]


@dataclass(frozen=True)
class LesionAppearance:
    """How N lesions look to the model, each on the slice on which it is largest.

    Attributes:
        tokens: Name -> (N, ...) float32, as in `Exemplars.tokens`, without the batch axis.
        area_mm2: Area in mm2, (N,).
        mean_intensity: Mean normalised intensity, (N,).
    """

    tokens: dict[str, Tensor]
    area_mm2: list[float]
    mean_intensity: list[float]


def describe_lesions_steps(
    segmenter: VolumeSegmenter, encoded: EncodedVolume, masks: Sequence[BoxMask]
) -> Steps[LesionAppearance]:
    """Describe N lesions as if they were exemplars, in steps."""
    tokens: dict[str, list[Tensor]] = {}
    areas, means = np.zeros(len(masks)), np.zeros(len(masks))
    slices = np.array([mask.largest_slice() for mask in masks], dtype=np.int64)
    order = np.argsort(slices, kind="stable")  # neighbours share their tile
    step = segmenter.settings.batch_size
    for start in range(0, len(masks), step):
        batch = order[start : start + step].tolist()
        items = [(int(slices[number]), outline(encoded, masks[number], int(slices[number]))) for number in batch]
        described = segmenter.exemplars(encoded, items)
        for name, token in described.tokens.items():
            tokens.setdefault(name, []).append(token[0].float().cpu())
        for number, (index, shape) in zip(batch, items, strict=True):
            areas[number], means[number], _ = measure_mask(encoded.pictures[index], shape, segmenter.settings.pixel_mm)
        yield None
    back = torch.from_numpy(np.argsort(order))
    return LesionAppearance(
        {name: torch.cat(parts)[back] for name, parts in tokens.items()}, areas.tolist(), means.tolist()
    )


def outline(encoded: EncodedVolume, mask: BoxMask, index: int) -> Tensor:
    """Return a lesion on slice `index` at the model's pixel size, (h, w) float, 0 or 1, never empty."""
    size = encoded.pictures.shape[1:]
    plane = torch.from_numpy(mask.on_slice(index, encoded.grid.stack_shape[1:])).float()
    soft = torch.nn.functional.interpolate(
        plane[None, None], (int(size[0]), int(size[1])), mode="bilinear", antialias=True
    )[0, 0]
    return (soft >= soft.amax().clamp(min=1e-6, max=0.5)).float()


def nearest_exemplars(
    appearance: LesionAppearance, exemplars: Sequence[Exemplar]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the positive exemplar that each lesion is most like, and its distance.

    Every token has the same weight, whatever its size and scale. The mean distance between exemplars is 1. With only
    one exemplar, the mean distance between all lesions and the exemplar is 1.

    Args:
        appearance: The N lesions.
        exemplars: The exemplars.

    Returns:
        Indices of the exemplars, (N,), -1 if no exemplar is positive; and distances, (N,).
    """
    count = len(appearance.area_mm2)
    use = [index for index, exemplar in enumerate(exemplars) if not exemplar.negative and exemplar.weight > 0]
    if not use or not count:
        return np.full(count, -1), np.zeros(count)
    parts = []
    for name, token in appearance.tokens.items():
        described = torch.stack([exemplars[index].tokens[name] for index in use])
        table = torch.cat([described.flatten(1), token.flatten(1)]).double()
        table = table - table.mean(0)
        parts.append(table / table.norm().clamp(min=1e-12))
    table = torch.cat(parts, 1)
    positives, lesions = table[: len(use)], table[len(use) :]
    among = torch.pdist(positives) if len(use) > 1 else torch.pdist(table)
    unit = float(among.mean()) if len(among) else 1.0
    distance = torch.cdist(lesions, positives, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distance.argmin(1)
    far = distance.gather(1, nearest[:, None])[:, 0] / max(unit, 1e-12)
    return np.array(use)[nearest.numpy()], far.numpy()


def confidence(calibration: Calibration | None, peaks: Sequence[float]) -> list[float]:
    """Return the confidence of found lesions from their peaks. Without a calibration, the peak is the confidence."""
    if calibration is None or not peaks:
        return list(peaks)
    return [float(value) for value in calibration.confidence(list(peaks))]
