"""The rules of a plan, each a function from measures to one setting and the reason for it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mois.errors import counted
from mois.scans.dataset_facts import ScanFacts

EPISODES_A_LESION = 40
"""How often each lesion is a query in a training, about."""

STEPS = (100, 600)
"""Fewest and most steps of a training."""

PATCH_PX = 128
"""Edge of the patches that the bundled nano was trained with."""

BATCH = 4
"""Episodes in a step, with patches of `PATCH_PX`."""

EPOCHS = 4

SLAB = 0.25
"""Share of the slices that validate, where there are too few patients to spare one."""

SLAB_SLICES = 12
"""A scan with fewer slices gives no slab: a lesion would lie on both sides."""

SPARE_PATIENTS = 5
"""From so many patients on, a fifth of them validate."""

LORA_PATIENTS = 8
LORA_LESIONS = 100
"""With fewer patients or lesions, an adapter of the backbone can spoil the clicks (docs/results.md)."""

REPLAY = 0.5
FIRST_MASKS = 0.3
BACKGROUND = 0.4
"""Shares of a training on one lesion class: replayed episodes, exemplars described from the first click, and queries
anywhere on tissue. Nothing else shows there that the exemplars decide (docs/decisions/0051-one-class.md, and
0059-half-is-replayed.md)."""

AFFINE = 0.8
ZOOM = 0.5
"""Share of the patches that are turned and zoomed, and the largest zoom, where one lesion class trains: a further
patient may have larger or smaller lesions (docs/decisions/0053-zoomed-lesions.md)."""

MOST_EXEMPLARS = 3
MOST_PROMPTED = 5
LARGEST_MINIMUM = 30


class Split(NamedTuple):
    """Which scans validate.

    Attributes:
        fold: Fold of splits_final.json, or None.
        val_subjects: Names of the scans to validate on; empty for none.
        val_slab: Share of the slices of each training scan; 0 for none.
        reason: Where the choice comes from.
    """

    fold: int | None
    val_subjects: tuple[str, ...]
    val_slab: float
    reason: str


class Adaptation(NamedTuple):
    """What of the backbone is trained.

    Attributes:
        parts: Parts of the backbone that get low-rank adapters; none for a frozen backbone.
        reason: Where the choice comes from.
    """

    parts: tuple[str, ...]
    reason: str


def choose_split(scans: Sequence[ScanFacts], has_splits: bool) -> Split:
    """Return which scans validate: never a patient who trains, unless there are too few patients.

    Args:
        scans: The training scans.
        has_splits: Whether the dataset has a splits_final.json.
    """
    if has_splits:
        return Split(0, (), 0.0, "the dataset has a splits_final.json; fold says which of its folds")
    patients = Counter({scan.patient: 0 for scan in scans})
    for scan in scans:
        patients[scan.patient] += len(scan.classes)
    with_lesions = sorted(
        (patient for patient, count in patients.items() if count), key=lambda one: (patients[one], one)
    )
    if len(with_lesions) >= SPARE_PATIENTS:
        count = max(1, round(len(with_lesions) / 5))
        step = len(with_lesions) / count  # one from each part of the order, from few to many lesions
        chosen = {with_lesions[int((number + 0.5) * step)] for number in range(count)}
        names = tuple(scan.subject for scan in scans if scan.patient in chosen)
        return Split(None, names, 0.0, f"{count} of {len(with_lesions)} patients, with few to many lesions")
    if min(scan.slices for scan in scans) >= SLAB_SLICES:
        few = f"{counted(len(with_lesions), 'patient')} with lesions cannot spare one"
        return Split(None, (), SLAB, f"{few}: a quarter of the slices of each scan validates")
    if len(with_lesions) > 1:
        middle = with_lesions[len(with_lesions) // 2]
        names = tuple(scan.subject for scan in scans if scan.patient == middle)
        return Split(None, names, 0.0, f"scans have fewer than {SLAB_SLICES} slices: one patient validates")
    return Split(None, (), 0.0, "one patient with few slices: nothing validates, the last weights are delivered")


def choose_adaptation(patients: int, lesions: int, clip: int) -> Adaptation:
    """Return what of the backbone is trained: nothing with few data, else its late parts.

    Args:
        patients: Number of patients to train on.
        lesions: Number of their lesions.
        clip: Number of slices that a lesion is tracked over.
    """
    there = f"{counted(patients, 'patient')} with {lesions} lesions"
    if patients < LORA_PATIENTS or lesions < LORA_LESIONS:
        return Adaptation((), f"{there}: below {LORA_PATIENTS} patients or {LORA_LESIONS} lesions it can spoil clicks")
    parts = ("trunk", "memory_attention", "decoder") if clip > 1 else ("trunk", "decoder")
    return Adaptation(parts, f"{there} are enough for the late trunk and the decoder")


def has_one_class(scans: Sequence[ScanFacts]) -> bool:
    """Return whether all lesions of the scans are of one class."""
    return len({number for scan in scans for number in scan.classes.tolist()}) == 1


def choose_clip(lesion_slices: Sequence[int]) -> int:
    """Return over how many slices a lesion is tracked: 1 where most lesions show on one slice, else 3 or 5."""
    middle = float(np.median(lesion_slices))
    return 1 if middle < 2 else 3 if middle < 12 else 5


def choose_exemplars(scans: Sequence[ScanFacts]) -> int:
    """Return the number of exemplars of a group: what the median class of a scan has beside the query, 1 to 3."""
    return min(MOST_EXEMPLARS, max(1, math.floor(lesions_of_a_class(scans)) - 1))


def choose_prompted(scans: Sequence[ScanFacts], share: float) -> int:
    """Return how many lesions a validation prompts: at most half of the median class, so that others are left to find.

    Args:
        scans: The scans to validate on.
        share: Share of their slices that validates, above 0 to 1.
    """
    return min(MOST_PROMPTED, max(1, math.floor(lesions_of_a_class(scans) * share / 2)))


def lesions_of_a_class(scans: Sequence[ScanFacts]) -> float:
    """Return the median number of lesions of a class in a scan that has the class; 0 without lesions."""
    counts = [count for scan in scans for count in Counter(scan.classes.tolist()).values()]
    return float(np.median(counts)) if counts else 0.0


def choose_batch(patch_px: int) -> int:
    """Return the number of episodes in a step: about as many pixels as 4 patches of 128."""
    return max(1, round(BATCH * (PATCH_PX / patch_px) ** 2))


def choose_steps(lesions: int) -> int:
    """Return the number of steps: each lesion is asked for about 40 times, within limits."""
    return min(STEPS[1], max(STEPS[0], math.ceil(EPISODES_A_LESION * lesions / BATCH)))


def choose_min_voxels(scans: Sequence[ScanFacts]) -> int:
    """Return the smallest lesion to keep, in voxels: a twentieth of the annotated lesions is smaller."""
    voxels = np.concatenate([scan.volumes_ml / scan.voxel_ml for scan in scans])
    return int(np.clip(math.floor(np.quantile(voxels, 0.05)), 1, LARGEST_MINIMUM))


def choose_channel(contrasts: Mapping[int, Sequence[float]]) -> int:
    """Return the number of the channel in which lesions stand out most; of equal ones the first.

    Args:
        contrasts: Number of each channel, and its contrast in each scan with lesions (`lesion_contrast`).
    """
    return max(sorted(contrasts), key=lambda number: float(np.median(contrasts[number] or [0.0])))
