"""Points of the curves over a reader's actions, and the effect of one negative exemplar."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ActionPoint:
    """One point of a curve over actions, on the never-prompted lesions of `Figures.right`.

    Attributes:
        strategy: What the reader does: `random`, `suggested` or `corrects`.
        actions: Number of actions asked for.
        used: Number of actions made: fewer if nothing was left to do, or if the next step takes two.
        lesions: Number of lesions clicked or accepted: the positive exemplars.
        accepted: Number of accepted lesions among them.
        rejected: Number of rejected lesions: the negative exemplars.
        right: Dice of what the propagation answers with the exemplars of all actions so far.
        lesion_f1: Lesion F1 of this answer.
        lesion_precision: Lesion precision of this answer.
        lesion_recall: Lesion recall of this answer.
        false_lesions: Number of false lesions in this answer.
        shown_dice: Dice of what the session shows: rejected lesions are gone from the answer.
        shown_f1: Lesion F1 of what the session shows.
    """

    strategy: str
    actions: int
    used: float
    lesions: float
    accepted: float
    rejected: float
    right: float | None
    lesion_f1: float | None
    lesion_precision: float | None
    lesion_recall: float | None
    false_lesions: float | None
    shown_dice: float | None
    shown_f1: float | None


@dataclass(frozen=True)
class NegativePoint:
    """What one rejected false lesion changes, beside the exemplars of the random reader.

    The voxels of the rejected lesion are left out with a margin, before and after. So only other places count.

    Attributes:
        exemplars: Number of positive exemplars.
        right: Dice without the negative exemplar, as in `Figures.right`.
        right_after: Dice with the negative exemplar.
        false_lesions: Number of false lesions without the negative exemplar.
        false_after: Number of false lesions with the negative exemplar.
    """

    exemplars: int
    right: float | None
    right_after: float | None
    false_lesions: float | None
    false_after: float | None
