"""A bundle of random weights, made in a second, which finds something in every scan."""

from __future__ import annotations

from pathlib import Path

import torch

from adapters import Frozen
from mois.backbones import SAM2
from mois.inference.settings import InferenceSettings
from mois.propagation import Similarity
from mois.sharing.bundle import write_bundle
from mois.sharing.bundle_record import ModelSpec
from mois.sharing.calibration import Calibration

PLAIN = {
    "backbone": {"class_path": "mois.backbones.SAM2", "init_args": {"weights": "random", "seed": 3}},
    "adapter": {"class_path": "adapters.Frozen"},
    "propagation": {"class_path": "mois.propagation.Similarity", "init_args": {"weights": "random"}},
}
EASY = InferenceSettings(pixel_mm=2.0, tile_px=64, threshold=0.02, peak_threshold=0.0, min_lesion_voxels=1)


def random_bundle(
    folder: Path, provenance: dict[str, object] | None = None, inference: InferenceSettings = EASY
) -> Path:
    """Write a bundle into a folder, and return the folder."""
    backbone, adapter = SAM2(weights="random", seed=3), Frozen()
    propagation = Similarity(weights="random")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        propagation.build(backbone)
        adapter.attach(backbone, propagation)
    sure = Calibration((0.1, 0.9), (0.2, 0.7), 4, 2)
    return write_bundle(
        folder, ModelSpec.of(PLAIN), backbone, adapter, propagation, inference, calibration=sure, provenance=provenance
    )
