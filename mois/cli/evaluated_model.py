"""The model that `mois evaluate` and `mois forgetting` score: of a bundle, or the shipped one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mois.cli.choose_scans import ScanChoice, choose_scans
from mois.evaluation.evaluate_scans import Evaluation
from mois.evaluation.scored_systems import EvaluationOptions, Scans, evaluation_of_bundle, evaluation_of_shipped
from mois.serve.shipped_model import check_shipped_options, served_model
from mois.sharing.bundle import Bundle
from mois.sharing.bundle_record import is_shipped
from mois.sharing.lesion_model import LesionModel

EvaluatedModel = Bundle | LesionModel
"""A bundle, which knows what trained it; or the shipped model."""


def load_evaluated(
    bundle: str | Path,
    pixel_mm: float | None,
    device: str,
    trust: Sequence[str] | None = None,
    backbone_weights: Path | None = None,
) -> EvaluatedModel:
    """Load a bundle, or the shipped model; see `mois.serve.shipped_model.served_model`.

    Raises:
        ValueError: If an option would do nothing for this model, or the bundle cannot be loaded.
    """
    check_shipped_options([bundle], pixel_mm, backbone_weights)
    if is_shipped(bundle):
        return served_model(bundle, pixel_mm, device)
    return Bundle.load(bundle, device, trust or (), backbone_weights)


def channels_of(model: EvaluatedModel) -> tuple[str, ...]:
    """Return the names of the channels that a model sees; none for one image of any name."""
    return (model.inference if isinstance(model, Bundle) else model.segmenter.settings).channels


def evaluation_on(
    base: EvaluationOptions, data: Path, choice: ScanChoice, model: EvaluatedModel
) -> tuple[Scans, Evaluation]:
    """Return the chosen scans of a dataset, and the evaluation of a model on them.

    Args:
        base: Options of the evaluation.
        data: Dataset in nnU-Net's raw layout.
        choice: Which scans to take, with any channels.
        model: The model. Its channels are chosen.

    Raises:
        ValueError: If channels are named by number beside those of the model, or no scan is chosen; see `choose_scans`.
    """
    channels = channels_of(model)
    if channels and choice.channel:
        raise ValueError(
            f"--channel={choice.channel}: the model finds its channels by name ({', '.join(channels)}); leave the "
            "option out."
        )
    choice = choice._replace(channels=channels)
    if isinstance(model, Bundle):
        scans, trained_on = choose_scans(data, choice, model.provenance)
        return scans, evaluation_of_bundle(base, model, trained_on)
    scans, _ = choose_scans(data, choice, {})
    return scans, evaluation_of_shipped(base, model)
