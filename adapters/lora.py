"""Short names for four adapters of peft. Each class holds the arguments of one peft configuration."""

from __future__ import annotations

from adapters.peft_methods import Peft
from adapters.placement import Placement
from mois.sharing.old_settings import PLACEMENT, accepts_old_arguments


def checked_rank(rank: int) -> int:
    """Return the rank.

    Raises:
        ValueError: If it is below 1.
    """
    if rank < 1:
        raise ValueError(f"model.adapter.init_args.rank={rank} must be at least 1.")
    return rank


class Lora(Peft):
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
        settings = {"r": checked_rank(rank), "lora_alpha": alpha, "use_dora": dora}
        super().__init__({"class_path": "peft.LoraConfig", "init_args": settings}, placement)


class LoHa(Peft):
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
        settings = {"r": checked_rank(rank), "alpha": alpha}
        super().__init__({"class_path": "peft.LoHaConfig", "init_args": settings}, placement)


class LoKr(Peft):
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
        settings = {"r": checked_rank(rank), "alpha": alpha}
        super().__init__({"class_path": "peft.LoKrConfig", "init_args": settings}, placement)


class IA3(Peft):
    """A learned scale for each output channel. This is the smallest adapter.

    Args:
        placement: Where the adapter goes.

    Source: Liu et al., Few-shot parameter-efficient fine-tuning, arXiv 2205.05638.
    """

    @accepts_old_arguments(PLACEMENT)
    def __init__(self, placement: Placement = Placement()) -> None:  # noqa: B008 (frozen)
        super().__init__({"class_path": "peft.IA3Config", "init_args": {"feedforward_modules": []}}, placement)
