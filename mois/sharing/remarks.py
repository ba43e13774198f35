"""Remarks on figures: sentences for terminals, reports and cards, where a reader would have to compare figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COMPARED = ("right", "wrong", "no_exemplars")
MIN_FALL = 0.01
"""A smaller fall of the Dice is not reported."""

CLICKS_MAY_FALL = 0.02
"""A checkpoint whose clicked Dice fell by more is never the best one."""

_CURES = {
    "prompted_dice": "clicks are answered worse than before the training; give the adapter a lower "
    "model.optimisation.adapter_learning_rate or adapter_share, or take model.adapter=adapters.Frozen",
    "right": "with exemplars less is found than before the training; train on, or share the model as it was before",
}


def remarks(right: float | None, wrong: float | None, no_exemplars: float | None) -> list[str]:
    """Return remarks on the Dice with and without exemplars.

    Args:
        right: Dice on never-prompted lesions with exemplars of their own type; None if not measured.
        wrong: The same with exemplars of another type.
        no_exemplars: The same without exemplars.
    """
    sentences = []
    if exemplars_harm(right, no_exemplars):
        sentences.append(
            f"The exemplars do harm here: with those of their own type (right) Dice on the never-prompted lesions is "
            f"{right:.3f}, without any (no_exemplars) {no_exemplars:.3f}."
        )
    if right is not None and wrong is None:
        sentences.append(
            "wrong: not measured, there is one lesion class in each scan; compare right with no_exemplars "
            "(no better: the exemplars are not used)."
        )
    return sentences


def trained_on_remarks(names: Sequence[str]) -> list[str]:
    """Return the remark on tested scans (`names`) that the model was trained on; nothing if there are none."""
    return [f"The model was trained on {len(names)} of these scans: {', '.join(names[:10])}."] if names else []


def exemplars_harm(right: float | None, no_exemplars: float | None) -> bool:
    """Return whether the Dice with exemplars is lower than without, in three digits."""
    return right is not None and no_exemplars is not None and round(no_exemplars - right, 3) > 0


def clicks_spoilt(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Return whether a training made clicks worse by more than `CLICKS_MAY_FALL`, in three digits.

    Args:
        before: Figures of the validation before the first step, by name.
        after: Figures of a later validation on the same scans, by name.
    """
    old, new = before.get("prompted_dice"), after.get("prompted_dice")
    return old is not None and new is not None and round(old - new - CLICKS_MAY_FALL, 3) > 0


def made_worse(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> list[str]:
    """Return remarks on figures that a training made worse, each with a cure.

    Args:
        before: Figures of the validation before the first step, by name.
        after: Figures of a later validation on the same scans, by name.
    """
    sentences = []
    for name, cure in _CURES.items():
        old, new = before.get(name), after.get(name)
        if old is not None and new is not None and new < old - MIN_FALL:
            sentences.append(f"{name} fell from {old:.2f} (step 0) to {new:.2f}: {cure}.")
    return sentences


def stored_made_worse(provenance: Mapping[str, Any]) -> list[str]:
    """Return the remarks of `made_worse` in a provenance: of the training, or of the bundle's training."""
    training = provenance.get("training")
    stored = provenance.get("made_worse") or (training.get("made_worse") if isinstance(training, Mapping) else None)
    return [str(sentence) for sentence in stored or ()]
