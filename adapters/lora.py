"""LoRA and related adapters of peft. Each class holds the arguments of one peft configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapters.peft_adapter import PeftAdapter
from adapters.placement import Placement
from mois.sharing.old_settings import PLACEMENT, accepts_old_arguments

if TYPE_CHECKING:
    from peft import PeftConfig


def checked_rank(rank: int) -> int:
    """Return the rank.

    Raises:
        ValueError: If it is below 1.
    """
    if rank < 1:
        raise ValueError(f"model.adapter.init_args.rank={rank} must be at least 1.")
    return rank


class Lora(PeftAdapter):
    """Low-rank updates of weights. With `dora`, direction and length of a weight are learned apart.

    Args:
        rank: Rank of the update.
        alpha: The update is scaled by alpha / rank.
        dora: Decompose weights into length and direction (DoRA).
        placement: Where the adapter goes.

    Source: Hu et al., LoRA, arXiv 2106.09685; Liu et al., DoRA, arXiv 2402.09353.
    """

    @accepts_old_arguments(PLACEMENT)
    def __init__(
        self,
        rank: int = 8,
        alpha: int = 16,
        dora: bool = False,
        placement: Placement = Placement(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(placement)
        self.rank, self.alpha, self.dora = checked_rank(rank), alpha, dora

    def config(self, targets: list[str]) -> PeftConfig:
        """See `PeftAdapter.config`."""
        from peft import LoraConfig

        return LoraConfig(r=self.rank, lora_alpha=self.alpha, use_dora=self.dora, target_modules=targets)


class LoHa(PeftAdapter):
    """Element-wise products of two low-rank updates. They have a higher rank at the same size.

    Args:
        rank: Rank of each factor.
        alpha: The update is scaled by alpha / rank.
        placement: Where the adapter goes.

    Source: Hyeon-Woo et al., FedPara, arXiv 2108.06098.
    """

    @accepts_old_arguments(PLACEMENT)
    def __init__(
        self,
        rank: int = 4,
        alpha: int = 8,
        placement: Placement = Placement(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(placement)
        self.rank, self.alpha = checked_rank(rank), alpha

    def config(self, targets: list[str]) -> PeftConfig:
        """See `PeftAdapter.config`."""
        from peft import LoHaConfig

        return LoHaConfig(r=self.rank, alpha=self.alpha, target_modules=targets)


class LoKr(PeftAdapter):
    """Kronecker products of small matrices. They have the fewest parameters for a full rank.

    Args:
        rank: Rank of the larger factor.
        alpha: The update is scaled by alpha / rank.
        placement: Where the adapter goes.

    Source: Yeh et al., LyCORIS, arXiv 2309.14859.
    """

    @accepts_old_arguments(PLACEMENT)
    def __init__(
        self,
        rank: int = 8,
        alpha: int = 16,
        placement: Placement = Placement(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(placement)
        self.rank, self.alpha = checked_rank(rank), alpha

    def config(self, targets: list[str]) -> PeftConfig:
        """See `PeftAdapter.config`."""
        from peft import LoKrConfig

        return LoKrConfig(r=self.rank, alpha=self.alpha, target_modules=targets)


class IA3(PeftAdapter):
    """A learned scale for each output channel. This is the smallest adapter.

    Args:
        placement: Where the adapter goes.

    Source: Liu et al., Few-shot parameter-efficient fine-tuning, arXiv 2205.05638.
    """

    def config(self, targets: list[str]) -> PeftConfig:
        """See `PeftAdapter.config`."""
        from peft import IA3Config

        return IA3Config(target_modules=targets, feedforward_modules=[])
