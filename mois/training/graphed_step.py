"""A training step as a CUDA graph: its kernels are recorded once, and are then started together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from mois.records import Episode
from mois.training.episode_step import StepResult

WARM_UPS = 3
"""Steps before the recording. They fill caches and choose algorithms, which a recording must not do."""

Learn = Callable[[Episode, int], StepResult]
"""Computes losses and figures of a batch, given the number of the step."""


class GraphedSteps:
    """Computes losses and gradients of a batch by replaying recorded kernels.

    A small backbone waits for Python: thousands of kernels of a few microseconds each make a step. A CUDA graph starts
    all of them with one call. Every number of clicks has a graph of its own. All are recorded at the first step.
    All batches have the same shape.

    Args:
        learn: Computes the losses of a batch. It must not wait for the device.
        module: What is trained. The storage of its parameters must stay where it is.
        period: Number of steps after which the numbers of clicks repeat.
    """

    def __init__(self, learn: Learn, module: Module, period: int) -> None:
        self.learn = learn
        self.module = module
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.period = period
        self.recorded: list[_Recorded] = []

    def __call__(self, episode: Episode, step: int) -> StepResult:
        """Return losses and figures. The backward pass of their sum gives the recorded gradients."""
        if not self.recorded:
            self.recorded = [self._record(episode, number) for number in range(self.period)]
        recorded = self.recorded[step % self.period]
        for there, here in zip(recorded.episode, episode, strict=True):
            there.copy_(here, non_blocking=True)
        recorded.graph.replay()
        total = _Gradients.apply(recorded.losses.sum(), recorded.gradients, *self.parameters)
        parts = recorded.losses.clone()
        losses = dict(zip(recorded.loss_names, (parts + (total - total.detach()) / len(parts)).unbind(), strict=True))
        return StepResult(losses, dict(zip(recorded.figure_names, recorded.figures.clone().unbind(), strict=True)))

    def _record(self, episode: Episode, step: int) -> _Recorded:
        """Record a step forward and backward."""
        kept = Episode(*(tensor.clone() for tensor in episode))
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with self._fresh_parameters() as parameters:
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    self._step(kept, step, parameters)
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            # other threads pin memory for the next batches meanwhile
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                losses, figures, gradients, names = self._step(kept, step, parameters)
        return _Recorded(graph, kept, losses, figures, gradients, *names)

    @contextmanager
    def _fresh_parameters(self) -> Iterator[list[Parameter]]:
        """Give the module other parameters with the same storage, in the order of `parameters`.

        Autograd ties a parameter to the stream of its first use, which may be another one than that of the recording.
        """
        fresh = {parameter: Parameter(parameter.detach()) for parameter in self.parameters}
        places = [
            (part._parameters, name, parameter)
            for part in self.module.modules()
            for name, parameter in part._parameters.items()
            if parameter is not None and parameter in fresh
        ]
        for owner, name, parameter in places:
            owner[name] = fresh[parameter]
        try:
            yield list(fresh.values())
        finally:
            for owner, name, parameter in places:
                owner[name] = parameter

    def _step(
        self, episode: Episode, step: int, parameters: Sequence[Parameter]
    ) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...], Any]:
        result = self.learn(episode, step)
        losses = torch.stack([loss.float() for loss in result.losses.values()])
        figures = torch.stack([figure.float() for figure in result.figures.values()])
        gradients = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
        return losses.detach(), figures.detach(), gradients, (list(result.losses), list(result.figures))


class _Recorded(NamedTuple):
    """A graph, the tensors that it reads, and the tensors that it writes."""

    graph: torch.cuda.CUDAGraph
    episode: Episode
    losses: Tensor
    figures: Tensor
    gradients: tuple[Tensor | None, ...]
    loss_names: list[str]
    figure_names: list[str]


class _Gradients(torch.autograd.Function):
    """Passes a loss on, and gives the parameters the gradients that were computed with it."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: tuple[Tensor | None, ...], *parameters: Tensor) -> Tensor:
        """Return the loss."""
        del parameters
        ctx.gradients = gradients
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *scale: Tensor) -> Any:
        """Return the gradients times the gradient of the loss."""
        return None, None, *(g if g is None else g * scale[0] for g in ctx.gradients)
