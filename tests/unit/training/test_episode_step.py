"""What one batch of episodes teaches."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from adapters import Frozen, Full, Lora, Placement
from adapters.placement import Part
from mois.backbones import SAM2
from mois.interfaces import Adapter
from mois.propagation import Attention, LearnedMatching, Similarity
from mois.records import NO_CORES, MaskPrediction
from mois.testing import nano_backbone
from mois.training import episode_step
from mois.training.episode_step import (
    EpisodeLearning,
    _shown_count,
    _shown_masks,
    learn,
    names,
    pictures,
)
from mois.training.prompted_masks import pooled_dice
from tests.support.example_episodes import example_episode


def _run(adapter: Adapter, step: int = 0, **settings: Any):
    backbone, propagations = nano_backbone(), [Similarity(), Attention()]
    for propagation in propagations:
        propagation.build(backbone)
    adapter.attach(backbone, propagations[0])
    result = learn(backbone, names(propagations), example_episode(), EpisodeLearning(**settings), step)
    return backbone, propagations, result


@pytest.mark.parametrize("adapter", [Frozen(), Full(), Lora(placement=Placement(get_args(Part)))])
def test_every_trainable_tensor_gets_gradient(adapter: Adapter) -> None:
    backbone, propagations, result = _run(adapter)
    torch.stack(list(result.losses.values())).sum().backward()
    for module in (backbone, *propagations):
        without = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
        assert without == []


@pytest.mark.parametrize(("step", "clicks"), [(0, 2), (6, 8)])
def test_every_click_is_supervised(monkeypatch: pytest.MonkeyPatch, step: int, clicks: int) -> None:
    answers: list[MaskPrediction] = []
    decode = SAM2.decode

    def listening(self: SAM2, features: Any, prompts: Any, dense: Any = None) -> MaskPrediction:
        answer = decode(self, features, prompts, dense)
        # the supports: 2 episodes, 2 groups, 3 exemplars; the first click is answered together with that of 2 clips
        if prompts is not None and len(features.image) in (12, 14):
            answer.candidates.retain_grad()
            answers.append(answer)
        return answer

    monkeypatch.setattr(SAM2, "decode", listening)
    backbone = nano_backbone()
    propagation = Similarity()
    propagation.build(backbone)
    Full().attach(backbone, propagation)
    result = learn(backbone, names([propagation]), example_episode(), EpisodeLearning(corrections=7), step)
    result.losses["click"].backward()
    assert len(answers) == clicks  # a first click, and 1 to 7 corrections
    for answer in answers:
        assert answer.candidates.grad is not None
        assert bool((answer.candidates.grad[:12] != 0).any())


def test_frozen_tensors_stay_as_they_are_to_the_byte() -> None:
    backbone, propagation = nano_backbone(), Similarity()
    propagation.build(backbone)
    Lora().attach(backbone, propagation)
    before = {name: p.detach().clone() for name, p in backbone.named_parameters() if not p.requires_grad}
    parameters = [p for module in (backbone, propagation) for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)
    for step in range(2):
        result = learn(backbone, names([propagation]), example_episode(seed=step), EpisodeLearning(), step)
        optimiser.zero_grad()
        torch.stack(list(result.losses.values())).sum().backward()
        optimiser.step()
    assert not backbone.training
    for name, parameter in backbone.named_parameters():
        assert name not in before or torch.equal(before[name], parameter)


def test_between_one_and_all_exemplars_are_shown() -> None:
    episode = example_episode(batch=2, exemplars=3)
    chance = episode.chance.clone()
    chance[0, 1], chance[1, 1] = 0.0, 0.99
    shown = _shown_count(episode._replace(chance=chance))
    assert shown.sum(1).tolist() == [1, 1, 3, 3]  # two groups of each episode


def test_padding_is_no_exemplar_whatever_is_predicted_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    episode = example_episode(batch=1, exemplars=3)
    valid = torch.tensor([[[True, False, False], [True, True, False]]])
    chance = torch.full_like(episode.chance, 0.99)  # all exemplars are shown, none of them as negative
    seen: list[torch.Tensor] = []
    forward = Similarity.forward

    def listening(self: Similarity, features: Any, exemplars: Any, backbone: Any) -> Any:
        seen.append(exemplars.valid)
        assert (
            {len(token) for token in exemplars.tokens.values()} == {len(exemplars.valid)} == {len(exemplars.negative)}
        )
        return forward(self, features, exemplars, backbone)

    monkeypatch.setattr(Similarity, "forward", listening)
    backbone, propagation = nano_backbone(), Similarity()
    propagation.build(backbone)
    padded = episode._replace(support_valid=valid, chance=chance)
    learn(backbone, names([propagation]), padded, EpisodeLearning(true_masks=0), 0)
    (asked,) = seen  # two groups, and the question without exemplars
    assert asked[:2, :3].tolist() == valid[0].tolist()
    assert not asked[:2, 3:].any()
    assert not asked[2].any()


def test_dice_is_pooled_over_pictures_and_nan_without_truth() -> None:
    found = torch.tensor([[[True, True]], [[True, False]]])
    truth = torch.tensor([[[True, False]], [[True, False]]])
    assert pooled_dice(found, truth, torch.tensor([True, True])).item() == pytest.approx(4 / 5)
    assert pooled_dice(found, truth, torch.tensor([False, True])).item() == 1
    assert pooled_dice(found, truth & False, torch.tensor([True, True])).isnan()


def test_shares_outside_zero_to_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model.learning.true_masks=1.5 is a share"):
        EpisodeLearning(true_masks=1.5)


def test_true_masks_first_answers_and_last_answers_describe_exemplars_by_their_shares() -> None:
    """Of four exemplars with chances 0.1, 0.4, 0.6 and 0.9, one is true, one the first answer, and two the last."""
    chance = torch.zeros(4, 9)
    chance[:, -1] = torch.tensor([0.1, 0.4, 0.6, 0.9])
    masks = torch.ones(4, 8, 8, dtype=torch.bool)
    first, last = torch.full((4, 2, 2), -50.0), torch.zeros(4, 2, 2)  # probabilities 0 and 0.5
    shown = _shown_masks(first, last, masks, chance, EpisodeLearning(true_masks=0.25, first_masks=0.25))
    assert shown[:, 0, 0].tolist() == pytest.approx([1, 0, 0.5, 0.5])
    with pytest.raises(ValueError, match=r"true_masks=0.7 and first_masks=0.4 are shares of one whole"):
        EpisodeLearning(true_masks=0.7, first_masks=0.4)


def test_propagations_are_told_apart_by_name() -> None:
    prefixes = list(names([Similarity(), Attention(), Attention(), Similarity()]))
    assert prefixes == ["", "attention/", "attention2/", "similarity/"]


def test_with_a_frozen_backbone_nothing_is_tracked_and_only_the_propagation_keeps_activations() -> None:
    backbone, propagation = nano_backbone(), Similarity()
    propagation.build(backbone)
    Frozen().attach(backbone, propagation)
    assert len(pictures(backbone, example_episode(batch=1))) == 7  # 2 groups of 3, and the query
    kept: list[str] = []

    def listening(name: str, of: Any) -> Any:
        def call(*inputs: Any, **named: Any) -> Any:
            packed: list[Any] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
                answer = of(*inputs, **named)
            kept.extend([name] * bool(packed))
            return answer

        return call

    backbone.encode = listening("encode", backbone.encode)  # type: ignore[method-assign]
    backbone.attend = listening("attend", backbone.attend)  # type: ignore[method-assign]
    clicks = episode_step.correct_clicks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(episode_step, "correct_clicks", listening("click", clicks))
        result = learn(backbone, names([propagation]), example_episode(batch=1), EpisodeLearning(), 0)
    assert kept == []
    assert "track" not in result.losses
    assert not result.losses["click"].requires_grad
    assert result.losses["semantic"].requires_grad


def test_a_late_adapter_keeps_activations_of_its_stages_alone() -> None:
    backbone, propagation = nano_backbone(), Similarity()
    propagation.build(backbone)
    Lora(placement=Placement(["trunk"], [4])).attach(backbone, propagation)
    *early, late = backbone.parts()["trunk"].blocks
    kept: dict[Any, int] = {}
    running: list[Any] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if running:
            kept[running[-1]] = kept.get(running[-1], 0) + tensor.nbytes
        return tensor

    for block in (*early, late):
        block.register_forward_pre_hook(lambda block, _: running.append(block))
        block.register_forward_hook(lambda *_: running.clear())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        learn(backbone, names([propagation]), example_episode(batch=1), EpisodeLearning(), 0)
    assert list(kept) == [late]


def test_cores_are_learned_from_the_lesions_of_each_question() -> None:
    """The loss of cores trains the second channel alone and what lies before it, never the mask through the core."""
    torch.manual_seed(0)
    backbone, propagation = nano_backbone(), LearnedMatching(cores=True)
    propagation.build(backbone)
    Full().attach(backbone, propagation)
    episode = example_episode()

    def loss(**change: Any) -> torch.Tensor:
        result = learn(backbone, names([propagation]), episode._replace(**change), EpisodeLearning(), 0)
        return result.losses.get("core", torch.zeros(()))

    right = loss()
    right.backward()
    last = propagation.final[2].weight.grad
    assert last is not None
    assert not bool(last[0].any())
    assert bool(last[1].any())
    outside, empty = (
        loss(query_cores=cores).item() for cores in (~episode.query_lesions, episode.query_lesions & False)
    )
    assert outside == pytest.approx(empty)
    assert loss(query_cores=NO_CORES).item() == 0


def test_a_propagation_without_cores_learns_as_before() -> None:
    backbone, propagation = nano_backbone(), Similarity()
    propagation.build(backbone)
    Full().attach(backbone, propagation)
    with_cores, without = (
        learn(backbone, names([propagation]), episode, EpisodeLearning(), 0).losses
        for episode in (example_episode(), example_episode()._replace(query_cores=NO_CORES))
    )
    assert with_cores.keys() == without.keys()
    assert "core" not in with_cores
    assert all(torch.equal(with_cores[name], without[name]) for name in without)


def test_a_negative_weight_of_a_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.learning\.core_weight=-1 must be at least 0"):
        EpisodeLearning(core_weight=-1)
