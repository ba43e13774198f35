"""Steps as CUDA graphs: what a replay gives is what a step computes. On a CPU a replay is played by the step itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from adapters import Full
from mois.propagation import Similarity
from mois.records import Episode
from mois.testing import nano_backbone
from mois.training import graphed_step
from mois.training.episode_step import EpisodeLearning, StepResult, learn
from mois.training.graphed_step import GraphedSteps
from mois.training.module import ExemplarSegmenter
from tests.support.example_episodes import example_episode


def _record(self: GraphedSteps, episode: Episode, step: int):
    """Compute the step at every replay, into the same tensors."""
    kept = Episode(*(tensor.clone() for tensor in episode))
    losses, figures, gradients, names = self._step(kept, step, self.parameters)

    def replay() -> None:
        with self._fresh_parameters() as parameters:
            new_losses, new_figures, new_gradients, _ = self._step(kept, step, parameters)
        for there, here in zip((losses, figures, *gradients), (new_losses, new_figures, *new_gradients), strict=True):
            if there is not None:
                there.copy_(here)

    return graphed_step._Recorded(SimpleNamespace(replay=replay), kept, losses, figures, gradients, *names)


def _total(result: StepResult) -> torch.Tensor:
    return torch.stack(list(result.losses.values())).sum()


def test_losses_and_gradients_are_those_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GraphedSteps, "_record", _record)
    backbone, propagation = nano_backbone(), Similarity()
    propagation.build(backbone)
    Full().attach(backbone, propagation)
    parameters = [p for m in (backbone, propagation) for p in m.parameters() if p.requires_grad]

    def step(episode: Episode, number: int) -> StepResult:
        return learn(backbone, {"": propagation}, episode, EpisodeLearning(corrections=2), number)

    graphed = GraphedSteps(step, torch.nn.ModuleList([backbone, propagation]), period=2)
    for number, seed in ((0, 0), (1, 1), (3, 2)):
        episode = example_episode(1, 2, 3, 64, seed=seed)
        expected = torch.autograd.grad(_total(step(episode, number)), parameters, allow_unused=True)
        result = graphed(episode, number)
        for parameter in parameters:
            parameter.grad = None
        (0.5 * _total(result)).backward()
        eager = step(episode, number)
        assert list(result.losses) == list(eager.losses)
        assert list(result.figures) == list(eager.figures)
        torch.testing.assert_close(result.losses, eager.losses)
        torch.testing.assert_close(result.figures, eager.figures, equal_nan=True)
        for parameter, gradient in zip(parameters, expected, strict=True):
            assert (parameter.grad is None) == (gradient is None)
            if gradient is not None:
                torch.testing.assert_close(parameter.grad, 0.5 * gradient)


def test_a_cpu_is_refused_in_one_line() -> None:
    module = ExemplarSegmenter(nano_backbone(), Full(), Similarity(), graphs=True)
    module._trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"model\.graphs=true needs a CUDA device \(trainer\.accelerator=gpu\); leave"):
        module._check_graphs()
