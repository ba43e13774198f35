"""What a propagation says to questions on tiles: with exemplars, without them, and by a plain comparison."""

from __future__ import annotations

from torch import Tensor

from mois.inference.lesion_maps import TileAnswers
from mois.inference.settings import InferenceSettings
from mois.interfaces import Backbone, Propagation
from mois.records import Exemplars, Features


def opinions_on(
    features: Features,
    prepared: Exemplars,
    propagation: Propagation,
    backbone: Backbone,
    settings: InferenceSettings,
) -> TileAnswers:
    """Return everything that R prepared questions answer on T tiles.

    Args:
        features: Features of T tiles.
        prepared: R sets of exemplars, from `VolumeSegmenter.prepare`.
        propagation: The propagation.
        backbone: The backbone that made the features.
        settings: The options `inference.*`. With `level=mixed` or `pooled` the plain answer is there, if the
            propagation has one; with `pooled` also the answer without exemplars.
    """
    tiles, questions = len(features.image), len(prepared.valid)
    alone_too = settings.level == "pooled"
    asked = prepared.and_none(questions) if alone_too else prepared
    prediction = propagation(features, _on_each(asked, tiles), backbone)
    plain = None
    if settings.level in ("mixed", "pooled"):
        plain = propagation.plain_answer(features, _on_each(prepared, tiles))
    probability: Tensor = prediction.logits.float().sigmoid()
    if settings.weigh_by_presence:
        probability = probability * prediction.presence.float().sigmoid()[:, None, None]
    shape = (tiles, -1, *probability.shape[1:])
    probability = probability.view(shape).cpu()
    further = (None if p is None else p.float().sigmoid().view(shape).cpu() for p in (prediction.cores, plain))
    cores, plain = further
    return TileAnswers(
        probability[:, :questions],
        None if cores is None else cores[:, :questions],
        plain,
        probability[:, questions:].expand_as(probability[:, :questions]) if alone_too else None,
    )


def _on_each(questions: Exemplars, tiles: int) -> Exemplars:
    """Return R questions for each of T tiles: (R, K) to (T x R, K), a view where R = 1."""
    return questions.each(lambda tensor: tensor.expand(tiles, *tensor.shape).flatten(0, 1))
