"""A propagation in steps, so that other work can be done between two steps."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from mois.inference.encoded_volume import EncodedVolume
from mois.inference.execution import tiles_at_once
from mois.inference.lesion_maps import BlendedAnswers, LesionMaps, TileAnswers
from mois.machine.steps import Steps, finish
from mois.records import Exemplars

if TYPE_CHECKING:
    from mois.inference.segmenter import VolumeSegmenter


class Search:
    """Finds lesions like R sets of exemplars in a whole scan, step by step.

    A set without exemplars is asked apart from the others: no comparison is computed for it. With
    `inference.level=pooled` or `known` its answer is needed for every question. It never changes, so it is kept with
    the features of the scan.

    Args:
        segmenter: The model.
        encoded: The scan.
        questions: R sets of exemplars, B = 1 each and any K.
        pooled: Whether the answer without exemplars may have a say (`mois.inference.opinions.pooled_steps`). Without
            a say it is not asked.
        plain: Whether the plain answer to each question is read (`mois.inference.levels.reads_plain`). What nobody
            reads is not asked. None: all are read.
    """

    def __init__(
        self,
        segmenter: VolumeSegmenter,
        encoded: EncodedVolume,
        questions: Sequence[Exemplars],
        *,
        pooled: bool = True,
        plain: Sequence[bool] | None = None,
    ) -> None:
        self.segmenter = segmenter
        self.encoded = encoded
        self.questions = questions
        self.plain = [True] * len(questions) if plain is None else plain
        self.pooled = pooled and segmenter.settings.asks_alone

    def whole(self) -> list[LesionMaps]:
        """Do all steps, and return one answer for each set."""
        return finish(self.steps())

    @torch.inference_mode()
    def steps(self, *, tile_by_tile: bool = False) -> Steps[list[LesionMaps]]:
        """Yield the share of the tiles that are done after each step, and return one answer for each set.

        Args:
            tile_by_tile: Also stop after each tile that had to be encoded. The answers do not depend on it.
        """
        empty = [question.count == 0 for question in self.questions]
        pooled = self.pooled and not all(empty)
        subject = self.segmenter.subject("alone")
        alone = self.encoded.store.answer(subject) if pooled else None
        with_exemplars = [number for number, nothing in enumerate(empty) if not nothing]
        plain = [place for place, number in enumerate(with_exemplars) if self.plain[number]]
        asked = {}
        if with_exemplars:
            asked[False] = self._asked([self.questions[number] for number in with_exemplars], plain)
        if any(empty) or (pooled and alone is None):
            asked[True] = self._asked([self.segmenter.no_exemplars(self.encoded)])
        yield from self._ask(list(asked.values()), tile_by_tile)
        if pooled and alone is None:
            alone = yield from asked[True].blended.halved_steps()
            self.encoded.store.keep(subject, alone)
        answers = {}
        for nothing, each in asked.items():
            if nothing in empty:
                answers[nothing] = yield from each.blended.restored_steps()
        found = iter(maps._replace(alone=alone) for maps in answers.get(False, ()))
        return [answers[True][0] if nothing else next(found) for nothing in empty]

    def _asked(self, questions: Sequence[Exemplars], plain: Sequence[int] = ()) -> _Asked:
        batch_size = self.segmenter.settings.batch_size
        at_once = tiles_at_once(self.segmenter.device, self.encoded.tile_px, batch_size) // len(questions)
        prepared = self.segmenter.prepare(questions)
        asked_plainly = None
        if plain:
            every = len(plain) == len(questions)
            asked_plainly = prepared if every else prepared.each(lambda tensor: tensor[list(plain)])
        return _Asked(prepared, asked_plainly, BlendedAnswers(self.encoded, len(questions), plain), max(1, at_once))

    def _ask(self, asked: Sequence[_Asked], tile_by_tile: bool) -> Steps[None]:
        """Ask all tiles, and blend the answers."""
        encoded, done = self.encoded, 0
        all_tiles = max(1, encoded.shown * len(asked))
        for slices, rows in encoded.groups(self.segmenter.settings.batch_size):
            for each in asked if len(rows) else ():
                answers: list[TileAnswers] = []
                for part in np.array_split(rows, ceil(len(rows) / each.at_once)):
                    for row in part if tile_by_tile else ():
                        if int(row) not in encoded.store:
                            encoded.select(np.array([row]))
                            yield done / all_tiles
                    answers.append(self.segmenter.tile_answers(encoded, part, each.prepared, each.plain))
                    done += len(part)
                    yield done / all_tiles
                each.blended.add(slices, rows, TileAnswers.cat(answers))


class _Asked(NamedTuple):
    """Questions that are asked together.

    Attributes:
        prepared: The prepared exemplars.
        plain: Those of the questions whose plain answer is read, prepared; None for none.
        blended: Their answers.
        at_once: Tiles that are asked at once.
    """

    prepared: Exemplars
    plain: Exemplars | None
    blended: BlendedAnswers
    at_once: int
