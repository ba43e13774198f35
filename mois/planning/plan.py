"""The plan of a training: every setting that follows from the dataset, with the reason for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mois.errors import DataError
from mois.planning import rules
from mois.planning.rules import Adaptation, Split
from mois.scans.dataset_description import DatasetDescription
from mois.scans.dataset_facts import Proposal, ScanFacts, is_crowded, proposal_for, size_bins, surface_tolerance


class DatasetFacts(NamedTuple):
    """What a plan needs to know of a dataset.

    Attributes:
        root: Folder of the dataset.
        description: Classes and channels.
        scans: The training scans, one or more, with their lesions.
        contrasts: Number of each channel that all scans have, and its contrast in each scan with lesions.
        held_out: Number of scans in imagesTs.
        has_splits: Whether there is a splits_final.json.
    """

    root: Path
    description: DatasetDescription
    scans: Sequence[ScanFacts]
    contrasts: Mapping[int, Sequence[float]]
    held_out: int
    has_splits: bool


@dataclass(frozen=True)
class Plan:
    """The settings of a training that follow from a dataset.

    Attributes:
        root: Folder of the dataset.
        scans: Number of scans to train and validate on.
        channel: Number of the image that is used, if no channels are named.
        sizes: Edge of a pixel in mm, and edge of patches and tiles in pixels.
        clip: Number of slices that a lesion is tracked over.
        exemplars: Number of exemplars of a group.
        batch_size: Episodes in a step.
        episodes_per_epoch: Episodes in each of `epochs`.
        epochs: Number of epochs; each ends with a validation.
        adaptation: What of the backbone is trained.
        split: Which scans validate.
        prompted: Number of lesions that a validation prompts.
        min_lesion_voxels: Smallest lesion that is kept.
        surface_mm: Tolerance of the surface Dice; None for the usual one.
        bins_ml: Volumes between size bins; None for the usual ones.
        one_class: Whether all lesions are of one class, so that other episodes have to show that the exemplars decide.
        reasons: Name of a setting, and from what it was derived.
        channels: Names of the channels that are used together; none for the image `channel` alone.
    """

    root: Path
    scans: int
    channel: int
    sizes: Proposal
    clip: int
    exemplars: int
    batch_size: int
    episodes_per_epoch: int
    epochs: int
    adaptation: Adaptation
    split: Split
    prompted: int
    min_lesion_voxels: int
    surface_mm: float | None
    bins_ml: list[float] | None
    one_class: bool
    reasons: dict[str, str]
    channels: tuple[str, ...] = ()

    def seeing(self, channels: Sequence[str], reason: str) -> Plan:
        """Return the plan for a model that sees these channels, by name.

        Args:
            channels: Names of the channels; none leaves the plan as it is.
            reason: Where they come from.
        """
        if not channels:
            return self
        return replace(self, channels=tuple(channels), reasons={**self.reasons, "channel": reason})

    @property
    def steps(self) -> int:
        """Number of steps of the whole training."""
        return self.epochs * self.episodes_per_epoch // self.batch_size

    def summary(self) -> list[str]:
        """Return lines that tell the plan: each setting with its reason."""
        adapter = f"low-rank adapters in {', '.join(self.adaptation.parts)}" if self.adaptation.parts else "frozen"
        seen = f"channels {', '.join(self.channels)}" if self.channels else f"channel {self.channel}"
        said = (
            (seen, self.reasons["channel"]),
            (f"pixel {self.sizes.pixel_mm:g} mm", self.reasons["pixel_mm"]),
            (f"patches and tiles {self.sizes.patch_px} px", self.reasons["patch_px"]),
            (f"{self.steps} steps", self.reasons["steps"]),
            (f"backbone {adapter}", self.adaptation.reason),
            (f"clip {self.clip}", self.reasons["clip"]),
            ("validation", self.split.reason),
        )
        return [f"{what}: {why}" for what, why in said]


def make_plan(facts: DatasetFacts) -> Plan:
    """Return the plan of a training on a dataset.

    Raises:
        DataError: If no training scan has a lesion, or no channel is there for all scans.
    """
    scans = facts.scans
    lesions = sum(len(scan.classes) for scan in scans)
    if not lesions:
        raise DataError(f"{facts.root}: no training scan has a lesion (voxels above 0); annotate some.")
    if not facts.contrasts:
        raise DataError(f"{facts.root}: no channel is there for every scan; add the missing images.")
    split = rules.choose_split(scans, facts.has_splits)
    training = [scan for scan in scans if scan.subject not in split.val_subjects]
    validating = [scan for scan in scans if scan.subject in split.val_subjects] or scans
    own = round(sum(len(scan.classes) for scan in training) * (1 - split.val_slab))
    sizes, clip = (
        proposal_for(scans),
        rules.choose_clip(np.concatenate([scan.lesion_slices for scan in scans]).tolist()),
    )
    batch = rules.choose_batch(sizes.patch_px)
    return Plan(
        root=facts.root,
        scans=len(scans),
        channel=rules.choose_channel(facts.contrasts),
        sizes=sizes,
        clip=clip,
        exemplars=rules.choose_exemplars(training),
        batch_size=batch,
        episodes_per_epoch=rules.choose_steps(own) * batch // rules.EPOCHS,
        epochs=rules.EPOCHS,
        adaptation=rules.choose_adaptation(len({scan.patient for scan in training if len(scan.classes)}), own, clip),
        split=split,
        prompted=rules.choose_prompted(validating, split.val_slab or 1.0),
        min_lesion_voxels=rules.choose_min_voxels(scans),
        surface_mm=surface_tolerance(_diameters(scans), max(scan.spacing_mm[1] for scan in scans)),
        bins_ml=size_bins(np.concatenate([scan.volumes_ml for scan in scans])),
        one_class=rules.has_one_class(scans),
        reasons=_reasons(facts, sizes, own),
    )


def _diameters(scans: Sequence[ScanFacts]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    diameters: np.ndarray[tuple[int], np.dtype[np.float64]] = np.concatenate([scan.diameters_mm for scan in scans])
    return diameters


def _reasons(facts: DatasetFacts, sizes: Proposal, own: int) -> dict[str, str]:
    scans = facts.scans
    middle = float(np.median(_diameters(scans)))
    across = f"lesions are {middle:.3g} mm across in the median, {middle / sizes.pixel_mm:.0f} pixels"
    large = float(np.quantile(_diameters(scans), 0.9))
    shown = float(np.median(np.concatenate([scan.lesion_slices for scan in scans])))
    return {
        "channel": _channel_reason(facts),
        "pixel_mm": across + ("; many touch, and gaps are thin" if is_crowded(scans) else ""),
        "patch_px": f"nine of ten lesions are below {large:.3g} mm, {large / sizes.pixel_mm:.0f} pixels",
        "clip": f"a lesion shows on {shown:.3g} slices in the median",
        "exemplars": f"a class has {rules.lesions_of_a_class(scans):.3g} lesions in a scan, in the median",
        "steps": f"{own} lesions to learn from, each asked for about {rules.EPISODES_A_LESION} times, within limits",
        "prompted": "at most half of the lesions that validate, so that others are left to find",
        "min_lesion_voxels": "a twentieth of the annotated lesions is smaller",
        "one_class": "one lesion class: its scans alone do not show that the exemplars decide",
        "protocol": "the usual measures do not fit lesions of this size",
    }


def _channel_reason(facts: DatasetFacts) -> str:
    names = facts.description.channels
    if len(facts.contrasts) < 2:
        name = names.get(next(iter(facts.contrasts)), "") or "the only image of a scan"
        return f"{name}, the only one that every scan has" if len(names) > 1 else name
    seen = ", ".join(
        f"{names.get(number, number)} {np.median(values or [0.0]):.2g}" for number, values in facts.contrasts.items()
    )
    return f"lesions stand out most in it ({seen}); or name up to three together in channels"
