"""How a training learns: learning rates of adapter and propagation, their schedule, and when the adapter stops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Optimisation:
    """AdamW with a linear warm-up, then a cosine down to a hundredth of the learning rate.

    Attributes:
        learning_rate: Learning rate at the end of the warm-up.
        weight_decay: Weight decay of matrices and kernels; biases, norms and tokens have none.
        warm_up: Share of all steps, 0 to 1.
        adapter_learning_rate: Learning rate of the adapter, which is what is trained of the backbone; None takes
            `learning_rate`.
        adapter_share: Share of all steps in which the adapter learns, 0 to 1. Then its weights stay as they are.

    Raises:
        ValueError: If a rate or the weight decay is negative or infinite, or a share is not between 0 and 1.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warm_up: float = 0.05
    adapter_learning_rate: float | None = None
    adapter_share: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "adapter_learning_rate"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < math.inf:
                raise ValueError(f"model.optimisation.{name}={rate} must be a number of at least 0.")
        for name in ("warm_up", "adapter_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"model.optimisation.{name}={getattr(self, name)} must be between 0 and 1.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"model.optimisation.weight_decay={self.weight_decay} must be at least 0.")

    def groups(self, adapter: Sequence[Tensor], others: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Return the groups of an optimiser: matrices and vectors, and the adapter apart if its rate differs.

        Args:
            adapter: Trained tensors of the backbone.
            others: Trained tensors of the propagations.
        """
        rate = self.adapter_learning_rate
        apart: list[tuple[Sequence[Tensor], float]] = [([*adapter, *others], self.learning_rate)]
        apart = apart if rate is None else [(adapter, rate), (others, self.learning_rate)]
        groups = [
            {"params": [p for p in tensors if (p.ndim > 1) == matrices], "weight_decay": decay, "lr": lr}
            for tensors, lr in apart
            for matrices, decay in ((True, self.weight_decay), (False, 0.0))
        ]
        return [group for group in groups if group["params"]]

    def of_adapter(self) -> str:
        """Return the settings that are for the adapter alone, as they are given; empty if none is."""
        given = {"adapter_learning_rate": (self.adapter_learning_rate, None), "adapter_share": (self.adapter_share, 1)}
        return ", ".join(f"model.optimisation.{name}={a}" for name, (a, default) in given.items() if a != default)

    def adapter_learns(self, step: int, steps: int) -> bool:
        """Return whether the adapter still learns at a step, of a training with `steps` steps."""
        return step < round(self.adapter_share * steps)

    def factor(self, step: int, steps: int) -> float:
        """Return the factor of the learning rate at a step, of a training with `steps` steps.

        Examples:
            >>> optimisation = Optimisation(warm_up=0.2)
            >>> [round(optimisation.factor(step, steps=10), 2) for step in (0, 1, 2, 10)]
            [0.5, 1.0, 1.0, 0.01]
        """
        warm_up = max(1, round(self.warm_up * steps))
        if step < warm_up:
            return (step + 1) / warm_up
        along = min(1.0, (step - warm_up) / max(1, steps - warm_up))
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * along))
