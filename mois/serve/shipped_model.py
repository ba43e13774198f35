"""The model of the weights that ship with the package, for a server that was given no bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mois.sharing.lesion_model import LesionModel


def served_model(bundle: Path | None, pixel_mm: float, device: str, trust: Sequence[str] = ()) -> LesionModel:
    """Return the model of a bundle, or the shipped model, which finds look-alikes without any training.

    Args:
        bundle: Folder of the bundle, or None.
        pixel_mm: Pixel size of the shipped model. A bundle has its own.
        device: Device such as cpu or cuda; auto takes an accelerator if there is one.
        trust: Modules of others whose classes the bundle may name.
    """
    from mois.inference.execution import chosen_device
    from mois.sharing.bundle import Bundle

    if bundle is not None:
        return Bundle.load(bundle, device, trust).model()
    from mois.backbones import SAM2
    from mois.inference.segmenter import VolumeSegmenter
    from mois.inference.settings import InferenceSettings
    from mois.propagation import LearnedMatching

    backbone, propagation = SAM2(), LearnedMatching(weights="bundled-2")
    propagation.build(backbone)
    for module in (backbone, propagation):
        module.to(chosen_device(device)).eval()
    settings = InferenceSettings(
        pixel_mm=pixel_mm,
        overlap=0.25,
        threshold=0.5,
        peak_threshold=0.6,
        clicks="followed",
        level="selective",
        split_prominence_mm=None,
    )
    return LesionModel.of(VolumeSegmenter(backbone, propagation, settings))
