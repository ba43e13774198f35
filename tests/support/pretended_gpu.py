"""A GPU that computes nothing, but notes what it is asked to do, and when a host would have to wait for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2")
"""Operations whose answer, or its size, the host needs."""
FREE = (
    "_unsafe_view", "alias", "detach", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty",
    "new_empty_strided", "resize_",
)  # fmt: skip
"""Operations that launch nothing: they name memory or ask for it."""
WHOLE = ("scaled_dot_product_attention", "upsample_bilinear2d", "_upsample_bilinear2d_aa")
"""Operations that a GPU has a kernel for, though they can be taken apart."""


@contextmanager
def pretended_gpu() -> Iterator[Counter[str]]:
    """Let tensors on `cuda` have a shape only, and come back from there as ones; those on the CPU stay real.

    Yields:
        How often the host waited, by the operation or the direction of a copy.
    """
    with counted_gpu() as gpu:
        yield gpu.waits


@contextmanager
def counted_gpu() -> Iterator[Gpu]:
    """Do what `pretended_gpu` does, and count the operations that the GPU is asked for, too. It knows bfloat16."""
    autocast_is_refused = "torch.cuda.amp.common.amp_definitely_not_available"
    knows = mock.patch.object(torch.cuda, "is_bf16_supported", return_value=True)
    with (
        mock.patch(autocast_is_refused, return_value=False),
        knows,
        FakeTensorMode(allow_non_fake_inputs=True),
        Gpu() as gpu,
    ):
        yield gpu


class Gpu(TorchDispatchMode):
    """Counts what a GPU is asked for.

    Attributes:
        waits: How often the host waited, by the operation or the direction of a copy.
        launches: How many operations the GPU was asked for, by their names. A copy to it or from it is one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        if not any(each.is_cuda for each in given) and torch.device(kwargs.get("device") or "cpu").type == "cpu":
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func.namespace == "prim":  # what a tensor is, such as its device
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name not in WHOLE:
            with self:  # inference mode leaves what is made of other operations whole
                answer = func.decompose(*args, **kwargs)
            if answer is not NotImplemented:
                return answer
        self.waits.update([name] if name in READS else [])
        self.launches.update([] if func.is_view or name in FREE else [name])
        if name == "_local_scalar_dense":
            return 1
        if name.startswith("index") and any(each is not None and not each.is_cuda for each in args[1]):
            self.waits["index"] += 1
        answer = func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            source, target = (args[0], answer) if name == "_to_copy" else (args[1], args[0])
            blocking = not (kwargs.get("non_blocking") or True in args[2:])
            if source.device != target.device and blocking:
                self.waits[f"{source.device.type} to {target.device.type}"] += 1
        with unset_fake_temporarily():
            return tree_map_only(Tensor, _come_back, answer)


def _come_back(answer: Tensor) -> Tensor:
    return answer if answer.is_cuda else torch.ones(answer.shape, dtype=answer.dtype)
