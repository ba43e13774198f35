"""The model of the weights that ship with the package, for a command that was given no bundle, or the word shipped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mois.sharing.bundle_record import SHIPPED, is_shipped
from mois.sharing.lesion_model import LesionModel

PIXEL_MM = 1.5
"""Pixel size of the shipped model, unless another is asked for."""


def check_shipped_options(
    bundles: Iterable[str | Path], pixel_mm: float | None, backbone_weights: Path | None = None
) -> None:
    """Refuse options of the shipped model where there are bundles alone, and options of bundles with it alone.

    Args:
        bundles: Folders, or the word shipped; none means the shipped model.
        pixel_mm: Pixel size that was asked for; a bundle has its own.
        backbone_weights: Weights that were given; the shipped model has its own.

    Raises:
        ValueError: If one of them would do nothing.
    """
    shipped = [is_shipped(bundle) for bundle in bundles] or [True]
    if pixel_mm is not None and not any(shipped):
        raise ValueError(
            f"--pixel_mm={pixel_mm:g} is for the shipped model (--bundle {SHIPPED}); a bundle has its own pixel size, "
            "so leave it out."
        )
    if backbone_weights is not None and all(shipped):
        raise ValueError(
            f"--backbone_weights={backbone_weights} is for a bundle; the shipped model has its own weights, so leave "
            "it out."
        )


def served_model(
    bundle: str | Path | None,
    pixel_mm: float | None,
    device: str,
    trust: Sequence[str] = (),
    backbone_weights: Path | None = None,
) -> LesionModel:
    """Return the model of a bundle, or the shipped model, which finds look-alikes without any training.

    Args:
        bundle: Folder of the bundle; None or the word shipped is the shipped model.
        pixel_mm: Pixel size of the shipped model; None takes `PIXEL_MM`. A bundle has its own.
        device: Device such as cpu or cuda; auto takes an accelerator if there is one.
        trust: Modules of others whose classes the bundle may name.
        backbone_weights: File of the backbone's weights of a bundle, if it is not where it was in the training.
    """
    from mois.inference.execution import chosen_device
    from mois.sharing.bundle import Bundle

    if bundle is not None and not is_shipped(bundle):
        return Bundle.load(bundle, device, trust, backbone_weights).model()
    from mois.backbones import SAM2
    from mois.inference.segmenter import VolumeSegmenter
    from mois.inference.settings import InferenceSettings
    from mois.propagation import LearnedMatching

    backbone, propagation = SAM2(), LearnedMatching(weights="bundled-2")
    propagation.build(backbone)
    for module in (backbone, propagation):
        module.to(chosen_device(device)).eval()
    settings = InferenceSettings(
        pixel_mm=PIXEL_MM if pixel_mm is None else pixel_mm,
        overlap=0.25,
        threshold=0.5,
        peak_threshold=0.6,
        clicks="near",
        level="moderate",
        rejections="vetoes",
        split_prominence_mm=None,
    )
    return LesionModel.of(VolumeSegmenter(backbone, propagation, settings), follows_sessions=True)
