"""Two bundles in one process, on one scan: each answers as if it were alone, and they share what they can."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.phantoms.lesion_types import draw_lesion_types
from datamodules.phantoms.phantom import make_phantom
from datamodules.pretraining import as_volume
from mois.records import Volume
from mois.session import InteractiveSession
from mois.sharing.bundle import Bundle
from tests.support.example_bundles import lora_bundle

SWAP_S = 0.05


@pytest.fixture(scope="module")
def volume() -> Volume:
    """Return a phantom with lesions of two types."""
    rng = np.random.default_rng(3)
    return as_volume(make_phantom(rng, draw_lesion_types(rng, 2), shape=(12, 160, 112), lesions=(4, 4)), "phantom")


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
    folders = {"first": lora_bundle(tmp_path, 1, parts), "second": lora_bundle(tmp_path, 2, parts)}
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
    session = InteractiveSession(
        Bundle.load(lora_bundle(tmp_path, 1, parts), "cpu").model(), volume, tmp_path / "session"
    )
    session.use("second", Bundle.load(lora_bundle(tmp_path, 2, parts), "cpu"))
    took = []
    for name in ("", "second") * 5:
        started = time.perf_counter()
        session.use(name)
        took.append(time.perf_counter() - started)
    assert min(took) <= SWAP_S
