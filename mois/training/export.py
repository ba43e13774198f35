"""Files of a training to share: its bundle, and the weights of a pretraining in files that backbones load."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save_file

from mois.files.atomic import file_sha256, whole_file
from mois.intensities import Normalisation
from mois.interfaces import Backbone
from mois.propagation.weights import save_propagation
from mois.records import WeightsIdentity
from mois.sharing.bundle import write_bundle
from mois.sharing.bundle_record import ClassSpec, ModelSpec
from mois.sharing.calibration import Calibration
from mois.training.checkpoints.checkpoint_content import ValidationRecord
from mois.training.module import ExemplarSegmenter


class ExportWeights(Callback):
    """Writes NAME.safetensors and NAME_PROPAGATION.safetensors in half precision at the end of `fit`.

    Args:
        folder: Folder for the files; by default `weights` in the run's folder. Files that are copied to mois/weights
            are bundled.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files, on one rank.

        Raises:
            ValueError: If the model is no `ExemplarSegmenter`.
        """
        if not isinstance(pl_module, ExemplarSegmenter):
            raise ValueError(
                f"ExportWeights writes the weights of an ExemplarSegmenter, not of {type(pl_module).__name__}"
            )
        if trainer.is_global_zero:
            export_weights(pl_module, Path(self.folder or Path(trainer.default_root_dir) / "weights"))


@dataclass
class BundleSettings:
    """How a training becomes a bundle.

    Attributes:
        false_per_scan: Wanted number of false lesions per scan. `peak_threshold` is chosen for it on the validation
            scans. None keeps `model.inference.peak_threshold`.
    """

    false_per_scan: float | None = None

    def __post_init__(self) -> None:
        """Refuse a number below 0."""
        if self.false_per_scan is not None and self.false_per_scan < 0:
            raise ValueError(f"bundle.false_per_scan={self.false_per_scan} must be 0 or more, or null.")


def export_bundles(
    module: ExemplarSegmenter,
    folder: Path,
    config: Mapping[str, Any],
    validation: Mapping[str, Any],
    settings: BundleSettings,
    normalisation: Normalisation | None = None,
) -> None:
    """Write `bundle` into a run's folder, and `bundle_NAME` for each companion.

    Args:
        module: Model with the weights to share.
        folder: Folder of the run.
        config: Settings under `model`.
        validation: Record of the validation of these weights, by the prefix of a propagation; empty without validation.
        settings: How `peak_threshold` is chosen.
        normalisation: Rule by which the training's scans were normalised; None if the datamodule does not know it.
    """
    inference_of_training = module.inference.settled()
    if normalisation is not None:
        inference_of_training = replace(inference_of_training, normalisation=normalisation)
    specs = [config["propagation"], *(config.get("companions") or [])]
    for (prefix, propagation), spec in zip(module.propagations.items(), specs, strict=True):
        record = ValidationRecord(**validation[prefix]) if prefix in validation else None
        inference, calibration = inference_of_training, None
        if record is not None and record.peaks:
            calibration = Calibration.fit(record.peaks, record.hits)
            if settings.false_per_scan is not None:
                peak = Calibration.peak_for_budget(record.peaks, record.hits, record.scans, settings.false_per_scan)
                inference = replace(inference, peak_threshold=min(peak, math.nextafter(1.0, 0.0)))
        write_bundle(
            folder / "_".join(["bundle", prefix.strip("/")]).rstrip("_"),
            ModelSpec(ClassSpec.of(config["backbone"]), ClassSpec.of(config["adapter"]), ClassSpec.of(spec)),
            module.backbone,
            module.adapter,
            propagation,
            inference,
            calibration=calibration,
            provenance=module.record(prefix),
            figures=record.figures if record is not None else None,
        )


def export_weights(module: ExemplarSegmenter, folder: Path) -> None:
    """Write backbone and propagations as safetensors in half precision. Each propagation names its backbone."""
    backbone: Backbone = module.backbone
    name = backbone.identity.name
    path = folder / f"{name}.safetensors"
    tensors = {key: tensor.detach().cpu().half().contiguous() for key, tensor in backbone.weights().items()}
    with whole_file(path) as part:
        save_file(tensors, part)
    identity = WeightsIdentity(name, "bundled", file_sha256(path))
    for propagation in module.propagations.values():
        file = folder / f"{name}_{type(propagation).__name__.lower()}.safetensors"
        save_propagation(propagation, file, identity, torch.float16)
