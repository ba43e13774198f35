"""What figures say where their reader would have to compare several: sentences for terminals, reports and cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COMPARED = ("right", "wrong", "no_exemplars")
FALL = 0.01
"""By how much a Dice has to fall before that is said."""

_CURES = {
    "prompted_dice": "clicks are answered worse than before the training; lower model.optimisation.learning_rate, or "
    "take model.adapter=adapters.Frozen",
    "right": "with exemplars less is found than before the training; train on, or share the model as it was before",
}


def remarks(right: float | None, wrong: float | None, no_exemplars: float | None) -> list[str]:
    """Return sentences on what Dice with and without exemplars says where its reader would have to compare figures.

    Args:
        right: On never-prompted lesions, with exemplars of their own type; None if not measured.
        wrong: The same, with exemplars of another type.
        no_exemplars: The same, without exemplars.
    """
    said = []
    if does_harm(right, no_exemplars):
        said.append(
            f"The exemplars do harm here: with those of their own type (right) Dice on the never-prompted lesions is "
            f"{right:.3f}, without any (no_exemplars) {no_exemplars:.3f}."
        )
    if right is not None and wrong is None:
        said.append(
            "wrong: not measured, there is one lesion class in each scan; compare right with no_exemplars "
            "(no better: the exemplars are not used)."
        )
    return said


def of_trained_on(names: Sequence[str]) -> list[str]:
    """Return what is to be said where a model is tested on scans (these) that it was trained on."""
    return [f"The model was trained on {len(names)} of these scans: {', '.join(names[:10])}."] if names else []


def does_harm(right: float | None, no_exemplars: float | None) -> bool:
    """Return whether less is found with exemplars than without, in figures of three digits."""
    return right is not None and no_exemplars is not None and round(no_exemplars - right, 3) > 0


def made_worse(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> list[str]:
    """Return sentences on what a training made worse, with the cure.

    Args:
        before: Figures of a validation before the first step, by name.
        after: Those of a later validation on the same scans.
    """
    said = []
    for name, cure in _CURES.items():
        old, new = before.get(name), after.get(name)
        if old is not None and new is not None and new < old - FALL:
            said.append(f"{name} fell from {old:.2f} (step 0) to {new:.2f}: {cure}.")
    return said


def told_worse(provenance: Mapping[str, Any]) -> list[str]:
    """Return the sentences of `made_worse` that a result's provenance holds: of its own training, or its bundle's."""
    training = provenance.get("training")
    held = provenance.get("made_worse") or (training.get("made_worse") if isinstance(training, Mapping) else None)
    return [str(sentence) for sentence in held or ()]
