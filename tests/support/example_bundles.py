"""Bundles made in a second: of random weights, which find something in every scan, or of the nano with LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adapters import Frozen, Lora, Placement
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
    folder: Path,
    provenance: dict[str, object] | None = None,
    inference: InferenceSettings = EASY,
    spec: Mapping[str, Any] = PLAIN,
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
        folder, ModelSpec.of(spec), backbone, adapter, propagation, inference, calibration=sure, provenance=provenance
    )


def lora_bundle(folder: Path, seed: int, parts: list[str]) -> Path:
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
