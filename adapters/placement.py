"""Where an adapter goes: parts of the backbone, stages of its trunk, and whether the propagation is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Part = Literal["trunk", "neck", "memory_attention", "memory_encoder", "decoder"]
Training = Literal["full", "frozen"]

STAGES = (1, 2, 3, 4)
"""Stages of the trunk, from the finest features to the coarsest."""
_KEY = "model.adapter.init_args.placement"


@dataclass(frozen=True)
class Placement:
    """Where an adapter goes.

    Attributes:
        parts: Parts of the backbone that get an adapter.
        stages: Stages of the trunk that get an adapter, 1 (finest) to 4. With stages 3 and 4 alone, the early stages
            need no backward pass, and no memory for it.
        propagation: Whether the propagation is trained (`full`) or not (`frozen`).

    Raises:
        ValueError: If a part or a stage does not exist, or there is none.

    Examples:
        >>> Placement(parts=["trunk"], stages=[4])
        Placement(parts=('trunk',), stages=(4,), propagation='full')

        The same in a configuration::

            model:
              adapter:
                class_path: adapters.Lora
                init_args:
                  placement: {parts: [trunk], stages: [4]}
    """

    parts: Sequence[Part] = ("trunk", "memory_attention", "decoder")
    stages: Sequence[int] = (3, 4)
    propagation: Training = "full"

    def __post_init__(self) -> None:
        """Check every field."""
        for field in ("parts", "stages"):
            given = getattr(self, field)
            if isinstance(given, str) or not isinstance(given, Sequence):
                raise ValueError(f"{_KEY}.{field}={given!r} must be a list.")
            object.__setattr__(self, field, tuple(given))
        if not self.parts:
            raise ValueError(f"{_KEY}.parts is empty; name a part, or set model.adapter=adapters.Frozen.")
        for part in self.parts:
            if part not in get_args(Part):
                raise ValueError(f"{_KEY}.parts holds {part!r}; allowed are {', '.join(sorted(get_args(Part)))}.")
        for stage in self.stages:
            if stage not in STAGES:
                raise ValueError(f"{_KEY}.stages holds {stage!r}; allowed are 1 (finest) to 4.")
        if "trunk" in self.parts and not self.stages:
            raise ValueError(f"{_KEY}.stages is empty; name a stage, or leave trunk out of {_KEY}.parts.")
        if self.propagation not in get_args(Training):
            raise ValueError(f"{_KEY}.propagation={self.propagation!r}; allowed are full and frozen.")
