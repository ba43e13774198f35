"""Two bundles in one process on one scan: what it costs to go from one to the other."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from datamodules.phantoms.lesion_types import draw_lesion_types
from datamodules.phantoms.phantom import make_phantom
from datamodules.pretraining import as_volume
from mois.records import Volume
from mois.session import InteractiveSession
from mois.sharing.bundle import Bundle
from tests.bench.measure import Measurement, Outcome, interleaved
from tests.support.example_bundles import lora_bundle

BEHIND_THE_TRUNK = ["memory_attention", "decoder"]


def swap_bundles(repeats: int) -> Outcome:
    """Two bundles of the nano with one frozen trunk, on one encoded scan: milliseconds of a swap, encoder calls."""
    rng = np.random.default_rng(0)
    volume = as_volume(make_phantom(rng, draw_lesion_types(rng, 2)), "phantom")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, two = (Bundle.load(lora_bundle(folder, seed, BEHIND_THE_TRUNK), "cpu") for seed in (1, 2))
        session = InteractiveSession(one.model(), volume, folder / "session", type="one", models={"two": two.model()})
        first, second = (_inside(volume, lesion) for lesion in (1, 2))
        store = session._types.of("one").encoded.store
        session.click(first)
        session.propagate()
        encoded = store.encoded
        arms = {kind: lambda kind=kind: session.use(kind) for kind in ("two", "one")}
        spent = interleaved(arms, 10 * repeats, time.perf_counter)
        session.use("two")
        session.click(second)
        session.propagate()
        after = session._types.of("two").encoded.store
        tiles, calls = float(encoded), float(after.encoded - encoded)
        session.close()
    details = {"tiles": tiles, "encoder_calls_after_swap": calls, **{f"to_{name}_s": s for name, s in spent.items()}}
    return Outcome({"swap_bundle_ms": 1000 * max(spent.values())}, details)


def _inside(volume: Volume, lesion: int) -> tuple[float, float, float]:
    """Return the middle voxel of a lesion, in LPS mm."""
    voxels = (volume.lesions == lesion).nonzero()
    x, y, z, _ = (volume.affine.double() @ torch.cat([voxels[len(voxels) // 2], torch.ones(1)]).double()).tolist()
    return -x, -y, z


MEASUREMENTS: list[Measurement] = [swap_bundles]
