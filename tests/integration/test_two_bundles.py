"""Two bundles in one process, on one scan: each answers as if it were alone, and they share what they can."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters import Lora, Placement
from datamodules.phantoms.lesion_types import draw_lesion_types
from datamodules.phantoms.phantom import make_phantom
from datamodules.pretraining import as_volume
from mois.backbones import SAM2
from mois.inference.settings import InferenceSettings
from mois.propagation import Similarity
from mois.records import Volume
from mois.session import InteractiveSession
from mois.sharing.bundle import Bundle, ModelSpec, write_bundle

SWAP_S = 0.05


@pytest.fixture(scope="module")
def volume() -> Volume:
    """Return a phantom with lesions of two types."""
    rng = np.random.default_rng(3)
    return as_volume(make_phantom(rng, draw_lesion_types(rng, 2), shape=(12, 160, 112), lesions=(4, 4)), "phantom")


def adapted(folder: Path, seed: int, parts: list[str]) -> Path:
    """Write a bundle of the nano whose LoRA was moved away from its start, as a training does."""
    backbone, propagation = SAM2(), Similarity()
    propagation.build(backbone)
    adapter = Lora(placement=Placement(parts))  # type: ignore[arg-type]
    torch.manual_seed(seed)
    adapter.attach(backbone, propagation)
    with torch.no_grad():
        for tensor in backbone.parameters():
            if tensor.requires_grad:
                tensor.add_(0.02 * torch.randn_like(tensor))
    spec = ModelSpec.of(
        {
            "backbone": {"class_path": "mois.backbones.SAM2"},
            "adapter": {"class_path": "adapters.Lora", "init_args": {"placement": {"parts": parts}}},
            "propagation": {"class_path": "mois.propagation.Similarity"},
        }
    )
    settings = InferenceSettings(pixel_mm=2.0, precision="32")
    return write_bundle(folder / f"bundle_{seed}", spec, backbone, adapter, propagation, settings)


def click_and_find(session: InteractiveSession, volume: Volume, target: int) -> list[torch.Tensor]:
    """Click a lesion of a class and look for more; return both maps, and take both back."""
    lesion = next(number for number, kind in sorted(volume.classes.items()) if kind == target)
    place = torch.nonzero(volume.lesions == lesion).double().mean(0).round()
    point = volume.affine @ torch.cat([place, torch.ones(1)]).double()
    maps = []
    session.click((-float(point[0]), -float(point[1]), float(point[2])))
    maps.append(session.label_map() > 0)
    session.propagate()
    maps.append(session.label_map() > 0)
    session.undo()
    session.undo()
    return maps


def encoded(session: InteractiveSession, name: str) -> int:
    """Return how many tiles the features that a type uses were made of."""
    return session._types.of(name).encoded.store.encoded


@pytest.mark.ci
@pytest.mark.parametrize(("parts", "shared"), [(["memory_attention", "decoder"], True), (["trunk"], False)])
def test_each_answers_as_alone_and_a_shared_encoder_works_once(
    tmp_path: Path, volume: Volume, parts: list[str], *, shared: bool
) -> None:
    folders = {"first": adapted(tmp_path, 1, parts), "second": adapted(tmp_path, 2, parts)}
    alone, tiles = {}, {}
    for name, folder in folders.items():
        session = InteractiveSession(Bundle.load(folder, "cpu").model(), volume)
        alone[name] = click_and_find(session, volume, 1 if name == "first" else 2)
        tiles[name] = encoded(session, "")
    session = InteractiveSession(Bundle.load(folders["first"], "cpu").model(), volume)
    session.use("second", Bundle.load(folders["second"], "cpu"))
    for name, type_name, target in (("first", "", 1), ("second", "second", 2), ("first", "", 1)):
        session.use(type_name)
        together = click_and_find(session, volume, target)
        assert all(map(torch.equal, together, alone[name])), name
        assert together[0].any()
    assert not torch.equal(alone["first"][0], alone["second"][0])
    one, two = session._types.of(""), session._types.of("second")
    assert (one.encoded is two.encoded) == shared
    counts = [encoded(session, ""), encoded(session, "second")]
    assert counts == ([max(tiles.values())] * 2 if shared else [tiles["first"], tiles["second"]])


def test_a_swap_takes_no_time(tmp_path: Path, volume: Volume) -> None:
    parts = ["memory_attention", "decoder"]
    session = InteractiveSession(Bundle.load(adapted(tmp_path, 1, parts), "cpu").model(), volume, tmp_path / "session")
    session.use("second", Bundle.load(adapted(tmp_path, 2, parts), "cpu"))
    took = []
    for name in ("", "second") * 5:
        started = time.perf_counter()
        session.use(name)
        took.append(time.perf_counter() - started)
    assert min(took) <= SWAP_S
