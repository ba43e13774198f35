"""What a propagation says to questions on tiles: with exemplars, without them, and by a plain comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mois.inference.encoded_volume import EncodedVolume
from mois.inference.lesion_maps import TileAnswers
from mois.inference.levels import Outlined, alone_inside, fewest_exemplars, finds
from mois.inference.settings import InferenceSettings
from mois.interfaces import Backbone, Propagation
from mois.machine.steps import Steps
from mois.records import Exemplars, Features

if TYPE_CHECKING:
    from mois.inference.segmenter import VolumeSegmenter


def answers_on(
    features: Features,
    prepared: Exemplars,
    propagation: Propagation,
    backbone: Backbone,
    settings: InferenceSettings,
    plain: Exemplars | None = None,
) -> TileAnswers:
    """Return what R prepared questions answer on T tiles.

    Args:
        features: Features of T tiles.
        prepared: R sets of exemplars, from `VolumeSegmenter.prepare`.
        propagation: The propagation.
        backbone: The backbone that made the features.
        settings: The options `inference.*`. With levels that use no plain answer, none is asked.
        plain: Those of the questions whose plain answer is read; None for no plain answer.
    """
    tiles = len(features.image)
    asked = _on_each(prepared, tiles)
    plain_of = None if plain is None or not settings.asks_plain else _on_each(plain, tiles)
    prediction, plain_logits = propagation.both_answers(features, asked, plain_of, backbone)
    probability: Tensor = prediction.logits.float().sigmoid()
    if settings.weigh_by_presence:
        probability = probability * prediction.presence.float().sigmoid()[:, None, None]
    shape = (tiles, -1, *probability.shape[1:])
    further = (None if p is None else p.float().sigmoid().view(shape).cpu() for p in (prediction.cores, plain_logits))
    return TileAnswers(probability.view(shape).cpu(), *further)


def alone_on(segmenter: VolumeSegmenter, encoded: EncodedVolume, rows: npt.NDArray[np.int64]) -> Tensor:
    """Return the answer without exemplars on T tiles, (T, 1, P, P) float32, on the CPU.

    It never changes, so it is kept with the features. Each tile is asked by itself: the bits of an answer do not depend
    on which tiles were asked before.
    """
    answers = []
    for row in rows.tolist():
        subject = segmenter.subject("alone", row)
        answer = encoded.store.answer(subject)
        if answer is None:
            answer = segmenter.ask(encoded, np.array([row]), segmenter.prepare([segmenter.no_exemplars(encoded)]))
            encoded.store.keep(subject, answer)
        answers.append(answer)
    return torch.cat(answers)


def pooled_steps(
    segmenter: VolumeSegmenter, encoded: EncodedVolume, exemplars: Exemplars, lesions: Outlined
) -> Steps[bool]:
    """Return whether `rule_steps` needs the answer without exemplars on the whole scan: only if it has a say."""
    positive = exemplars.positive
    settings = segmenter.settings
    if not settings.asks_alone or int(positive.sum()) < fewest_exemplars(settings.level):
        return False
    if bool(exemplars.present_negative.any()):
        return False
    return finds((yield from alone_inside(segmenter, encoded, lesions)), settings.level)


def _on_each(questions: Exemplars, tiles: int) -> Exemplars:
    """Return R questions for each of T tiles: (R, K) to (T x R, K), a view where R = 1."""
    return questions.each(lambda tensor: tensor.expand(tiles, *tensor.shape).flatten(0, 1))
