"""Checkpoints of a backbone: every tensor or none, and no code."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mois.backbones import SAM2
from mois.propagation import Attention, Similarity
from mois.propagation.weights import save_propagation
from mois.testing import example_patches, nano_backbone


@pytest.fixture
def official(tmp_path: Path) -> tuple[Path, SAM2]:
    """Return a checkpoint in the official format, and the model that it was written from."""
    model = nano_backbone(seed=1)
    torch.save({"model": model.sam.state_dict()}, tmp_path / "sam2.1_hiera_nano.pt")
    return tmp_path / "sam2.1_hiera_nano.pt", model


def test_an_official_checkpoint_loads_to_the_bit(official: tuple[Path, SAM2]) -> None:
    path, source = official
    loaded = SAM2("nano", str(path))
    images, _ = example_patches(1)
    assert torch.equal(loaded.encode(images).levels[-1], source.encode(images).levels[-1])
    assert loaded.identity.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.identity.source == "sam2.1_hiera_nano.pt"


@pytest.mark.slow
def test_a_checkpoint_of_an_official_size_loads(tmp_path: Path) -> None:
    tiny = SAM2("tiny", "random", patch_px=64)
    torch.save({"model": tiny.sam.state_dict()}, tmp_path / "sam2.1_hiera_tiny.pt")
    assert SAM2("tiny", str(tmp_path / "sam2.1_hiera_tiny.pt"), patch_px=128).identity.name == "tiny"


def test_half_precision_safetensors_load(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in nano_backbone(seed=1).sam.state_dict().items()}
    save_file(state, tmp_path / "nano.safetensors")
    loaded = SAM2("nano", str(tmp_path / "nano.safetensors"))
    assert next(loaded.parameters()).dtype == torch.float32


def test_missing_tensors_stop_the_load_and_are_listed(official: tuple[Path, SAM2]) -> None:
    path, model = official
    state = model.sam.state_dict()
    del state["no_mem_embed"]
    state["extra"] = torch.zeros(1)
    torch.save({"model": state}, path)
    with pytest.raises(ValueError, match=r"1 missing: no_mem_embed; 1 unknown: extra\."):
        SAM2("nano", str(path))


def test_a_tensor_of_another_shape_stops_the_load(official: tuple[Path, SAM2]) -> None:
    path, model = official
    torch.save({"model": {**model.sam.state_dict(), "no_mem_embed": torch.zeros(1, 1, 32)}}, path)
    with pytest.raises(ValueError, match=r"1 of another shape: no_mem_embed \(1, 1, 32\) instead of \(1, 1, 64\)"):
        SAM2("nano", str(path))


class _Shell:
    """What a hostile checkpoint would hold."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pickle_was_executed",)


def test_a_pickle_is_refused_and_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": _Shell()}, "hostile.pt")
    with pytest.raises(ValueError, match=r"hostile.pt is refused: it does not load as plain tensors"):
        SAM2("nano", "hostile.pt")
    assert not Path("pickle_was_executed").exists()


@pytest.mark.parametrize(
    ("size", "weights", "message"),
    [
        ("tiny", "bundled", "bundled exists for size nano only, got size tiny"),
        ("nano", "nowhere.pt", "backbone.weights=nowhere.pt is no file, nor bundled, bundled-2, random or a hub id"),
        ("nano", "https://a.b/c.pt", "backbone.weights=https://a.b/c.pt is an address; download the file"),
        ("b+", "random", "backbone.size=b+ is none; choose one of nano, tiny, small, base_plus, large."),
    ],
)
def test_weights_that_are_not_there(size: str, weights: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SAM2(size, weights)  # type: ignore[arg-type]


@pytest.mark.parametrize(("given", "near"), [(100, 96), (0, 32), (-64, 32), (31, 32)])
def test_a_patch_that_is_no_multiple_of_32(given: int, near: int) -> None:
    with pytest.raises(ValueError, match=rf"backbone\.patch_px={given} is no multiple of 32; choose {near}\."):
        SAM2("nano", "random", patch_px=given)


def test_propagation_weights_go_with_their_backbone(tmp_path: Path) -> None:
    backbone, other = nano_backbone(), nano_backbone(seed=1)
    first = Similarity()
    first.build(backbone)
    save_propagation(first, tmp_path / "similarity.safetensors", backbone.identity)
    second = Similarity(weights=str(tmp_path / "similarity.safetensors"))
    second.build(backbone)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    with pytest.raises(ValueError, match=r"were trained with backbone sha256"):
        Similarity(weights=str(tmp_path / "similarity.safetensors")).build(other)
    with pytest.raises(ValueError, match=r"does not fit the model"):
        Attention(weights=str(tmp_path / "similarity.safetensors")).build(backbone)


def test_recomputing_the_trunk_gives_the_same_gradient() -> None:
    images, _ = example_patches(1)
    gradients = []
    for checkpoint_trunk in (False, True):
        backbone = SAM2("nano", "random", checkpoint_trunk=checkpoint_trunk)
        backbone.requires_grad_(True)
        backbone.encode(images).levels[-1].square().mean().backward()
        gradients.append(backbone.sam.image_encoder.trunk.patch_embed.proj.weight.grad)
    torch.testing.assert_close(*gradients)
