"""Attention with shared keys: what is read by hand, what negatives and weights do, and that it learns."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from datamodules.episodes import collate
from datamodules.pretraining import NewTypeEpisodes, PretrainDataModule
from mois.backbones import SAM2
from mois.propagation import Attention
from mois.propagation.exemplar_tokens import CORE, NEAR, TokenSet
from mois.propagation.shared_keys import CONTENT, FEATURES, MAPS, SIDES, SharedKeys
from mois.propagation.weights import save_propagation
from mois.records import Episode
from mois.testing import example_patches, nano_backbone
from mois.training.episode_step import EpisodeLearning, find


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    attention = Attention(keys="shared")
    attention.build(nano_backbone())
    return attention.eval()


def read(shared: SharedKeys, *, weight: float = 1.0, negative: bool = False) -> list[float]:
    """Return the maps of the first head at a cell that looks like the first of two tokens: inside, then outside."""
    with torch.no_grad():
        shared.key.zero_()
        shared.key[:, 0, 0] = 1.0  # the first feature alone is compared
        shared.sharpness.zero_()
    keys = torch.zeros(1, 2, FEATURES)
    keys[0, 1, 0] = 1.0  # squared distances of the cell to the tokens: 0 and 1
    tokens = TokenSet(
        keys,
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([CORE, NEAR]),
        torch.tensor([[negative, negative]]),
        torch.tensor([[weight, 1.0]]),
    )
    maps, content = shared._attend(torch.zeros(1, 1, FEATURES), keys, tokens)
    assert maps.shape == (1, 2 * MAPS, 1)
    assert content.shape == (1, 2 * CONTENT, 1)
    return maps[0, :MAPS, 0].tolist()


def test_a_cell_reads_the_mask_of_the_tokens_that_look_like_it(attention: Attention) -> None:
    alike = 1 / (1 + math.exp(-1))  # e^0 / (e^0 + e^-1) = .731
    expected = [alike, 1 - alike, 0, 0.5 * 1.0, (1 - alike) ** 2]  # log(.731 / .269) = 1
    assert read(attention.shared) == pytest.approx(expected, abs=1e-3)
    heavy = 2 / (2 + math.exp(-1))  # weight 2 counts as two tokens
    assert read(attention.shared, weight=2.0)[:SIDES] == pytest.approx([heavy, 1 - heavy, 0], abs=1e-4)


def test_tokens_of_negative_exemplars_have_nothing_inside(attention: Attention) -> None:
    assert read(attention.shared, negative=True)[:SIDES] == pytest.approx([0, 1, 0], abs=1e-4)


def test_a_negative_exemplar_takes_its_like_away(attention: Attention) -> None:
    """Bright discs are found by a bright exemplar. With the same exemplar as a negative too, fewer pixels are."""
    backbone = nano_backbone()
    images, masks = example_patches(2)
    with torch.no_grad():
        features = backbone.encode(images)
        one = attention.describe(features, masks, backbone).reshape(1, 2)
        both = one.map(negative=torch.tensor([[False, True]]))
        found, fewer = (attention(features.select(slice(0, 1)), some, backbone).drafts for some in (one, both))
    assert found is not None
    assert fewer is not None
    assert float(fewer.mean()) < float(found.mean())


def test_ten_of_each_are_answered_as_one_of_each(attention: Attention) -> None:
    backbone = nano_backbone()
    images, masks = example_patches(4, 64)
    with torch.no_grad():
        features = backbone.encode(images)
        exemplars = attention.describe(features, masks, backbone).reshape(1, 4)
        many = exemplars.each(lambda tensor: tensor.repeat_interleave(10, 1))
        few = attention.condense(attention.prepare(many), 4)
        assert few.count == 4
        assert float(few.weight.sum()) == 40
        query = features.select(slice(0, 1))
        plain, condensed = (attention(query, some, backbone).logits for some in (many, few))
    assert torch.allclose(plain, condensed, atol=1e-2)
    assert attention.condense(exemplars, 4) is exemplars
    assert attention.merges
    assert not Attention().merges


def test_memory_keys_are_as_before_where_no_keys_are_named(tmp_path: Path) -> None:
    """Bundled weights fit, and the answer is that of a propagation that names its keys, bit for bit."""
    backbone = SAM2("nano", "bundled").eval()
    images, masks = example_patches(2)
    features = backbone.encode(images)
    answers = []
    for attention in (Attention(weights="bundled"), Attention(False, "dense", weights="bundled", keys="memory")):
        attention.build(backbone)
        assert not any(name.startswith("shared") for name in attention.state_dict())
        with torch.no_grad():
            exemplars = attention.eval().describe(features, masks, backbone).reshape(1, 2)
            answers.append(attention(features.select(slice(0, 1)), exemplars, backbone))
    assert torch.equal(answers[0].logits, answers[1].logits)
    assert answers[0].drafts is None
    save_propagation(attention, tmp_path / "memory.safetensors", backbone.identity)
    with pytest.raises(ValueError, match=r"memory\.safetensors"):
        Attention(keys="shared", weights=str(tmp_path / "memory.safetensors")).build(backbone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotary_keys": True}, r"propagation\.rotary_keys=True needs propagation\.keys=memory"),
        ({"tokens": "foreground"}, r"propagation\.tokens=foreground needs propagation\.keys=memory"),
        ({"initial": "random"}, r"propagation\.initial=random needs propagation\.keys=memory"),
        ({"weights": "bundled"}, r"propagation\.weights=bundled are of keys=memory"),
    ],
)
def test_options_of_memory_keys_are_refused_with_shared_keys(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attention(keys="shared", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def episode() -> Episode:
    """Two episodes of phantoms in one batch."""
    data = PretrainDataModule(exemplars=2, patch_px=64, clip=1)
    drawn = NewTypeEpisodes(data.settings, slices=3, piece_px=128)
    return collate([drawn[0, 0], drawn[0, 3]])


def test_it_learns_to_ask_its_exemplars(attention: Attention, episode: Episode) -> None:
    """After 40 steps on two phantoms the loss is half, and the right exemplars give more than the wrong ones."""
    backbone = nano_backbone()
    with torch.no_grad():
        support = backbone.encode(episode.support_images.flatten(0, 2))
        query = backbone.encode(episode.query_images)
    shown = episode.support_masks.flatten(0, 2).float()
    optimiser = torch.optim.AdamW(attention.train().parameters(), lr=3e-3)
    totals = []
    for _ in range(40):
        result = find(backbone, attention, episode, query, support, shown, EpisodeLearning())
        total = torch.stack(list(result.losses.values())).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(float(total.detach()))
    assert "draft" in result.losses
    assert totals[-1] < 0.5 * totals[0]
    right, wrong = (float(result.figures[name].mean()) for name in ("right", "wrong"))
    assert right > wrong + 0.3
