"""Refusals of prompts that leave no voxel of a lesion."""

from __future__ import annotations

from mois.session.masks import BoxMask
from mois.session.state import Prompt


class NothingLeft(ValueError):  # noqa: N818 - a refusal, not a fault
    """A prompt would leave no voxel of its lesion."""

    @classmethod
    def of(cls, number: int, prompt: Prompt, answered: BoxMask) -> NothingLeft:
        """Return the refusal of a prompt.

        Args:
            number: The lesion.
            prompt: The prompt that was given last.
            answered: The answer of the model to all prompts of the lesion, other lesions not taken out.
        """
        if not prompt.positive:
            return cls(f"lesion {number}: nothing of it would be left; reject or remove it, or undo its prompts.")
        if not answered.voxels:
            return cls(f"the model sees no lesion under this {prompt.kind}; click in the lesion, or give its mask.")
        return cls(
            f"lesion {number}: all its voxels would belong to locked or prompted lesions; correct these lesions."
        )
