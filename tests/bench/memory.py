"""GPU memory of a training step by backbone and patch, counted where there is no GPU: `python -m tests.bench.memory`.

Tensors have a shape and a device only. Counted are the bytes that are alive when the forward pass ends, which is when
most are: weights, what autograd keeps for the backward pass, the batch; and gradients and moments of what is trained.
Not counted are the work space of kernels, what the allocator leaves unused, and the CUDA context.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple
from unittest import mock

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adapters import Lora
from mois.backbones import SAM2
from mois.propagation import Similarity
from mois.records import Episode
from mois.training.episode_step import EpisodeLearning, learn, names
from tests.support.example_episodes import example_episode

SIZES = ("tiny", "base_plus", "large")
EDGES_PX = (512, 1024)
CORRECTIONS = 7  # the most that a step can have
GIB = 2**30


class StepMemory(NamedTuple):
    """Bytes of a step.

    Attributes:
        weights: Of all modules, in float32.
        optimiser: Gradients and two moments of the weights that are trained.
        forward: Alive when the forward pass ends, weights left out.
    """

    weights: int
    optimiser: int
    forward: int

    @property
    def gib(self) -> float:
        """All of them."""
        return sum(self) / GIB


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that were made under it and are still held, each memory once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self._held: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(answer):
            if isinstance(tensor, Tensor) and tensor.is_cuda:
                self._hold(tensor.untyped_storage())
        return answer

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._held:
            self._held.add(storage._cdata)
            self.bytes += storage.nbytes()
            weakref.finalize(storage, self._let_go, storage._cdata, storage.nbytes())

    def _let_go(self, name: int, size: int) -> None:
        self._held.discard(name)
        self.bytes -= size


def step_memory(
    size: str, patch_px: int, *, checkpoint_trunk: bool = False, corrections: int = CORRECTIONS
) -> StepMemory:
    """Return what a step of Hiera `size` holds: bfloat16, LoRA as it is by default, one episode of 16 images."""
    backbone = SAM2(size, "random", patch_px=patch_px, checkpoint_trunk=checkpoint_trunk)  # type: ignore[arg-type]
    propagation = Similarity()
    propagation.build(backbone)
    Lora().attach(backbone, propagation)
    weights = [*backbone.parameters(), *propagation.parameters()]
    with FakeTensorMode(allow_non_fake_inputs=True), _bfloat16(), Alive() as alive:
        backbone.to("cuda")
        propagation.to("cuda")
        here = alive.bytes
        example = example_episode(1, 5, 5, patch_px)  # 2 x 5 exemplars, a query, a clip of 5
        episode = Episode(*(tensor.to("cuda") for tensor in example))
        learning = EpisodeLearning(corrections=corrections)
        outcome = learn(backbone, names([propagation]), episode, learning, corrections - 1)
        total = torch.stack(list(outcome.losses.values())).sum()
        forward = alive.bytes - here
        del total, outcome
    trained = sum(weight.nbytes for weight in weights if weight.requires_grad)
    return StepMemory(sum(weight.nbytes for weight in weights), 3 * trained, forward)


@contextmanager
def _bfloat16() -> Iterator[None]:
    """Compute as CUDA's autocast does (`torch.autocast` asks for a GPU), attention without its table of scores."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        with mock.patch.object(functional, "scaled_dot_product_attention", _attention):
            yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    half = [tensor.to(torch.bfloat16) for tensor in (query, key, value)]
    bias = None if attn_mask is None else attn_mask.to(torch.bfloat16)
    return torch.ops.aten._scaled_dot_product_efficient_attention(*half, bias, compute_log_sumexp=True)[0]


def row_of(size: str, patch_px: int) -> list[str]:
    """Return a row of the table: Hiera, patch, GiB of weights and optimiser, GiB of all, plain and recomputing."""
    plain, lean = (step_memory(size, patch_px, checkpoint_trunk=given) for given in (False, True))
    fixed = (plain.weights + plain.optimiser) / GIB
    return [size, str(patch_px), *(f"{gib:.1f}" for gib in (fixed, plain.gib, lean.gib))]


def main() -> None:
    table = Table("Hiera", "patch, px", "weights and optimiser, GiB", "a step, GiB", "with checkpoint_trunk", box=None)
    for patch_px, size in track(list(product(EDGES_PX, SIZES)), "counting"):
        table.add_row(*row_of(size, patch_px))
    Console().print(table)


if __name__ == "__main__":
    main()
