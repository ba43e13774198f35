"""A propagation in steps, so that other work can be done between two steps."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

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

    Args:
        segmenter: The model.
        encoded: The scan.
        questions: R sets of exemplars, B = 1 each and any K.
    """

    def __init__(self, segmenter: VolumeSegmenter, encoded: EncodedVolume, questions: Sequence[Exemplars]) -> None:
        self.segmenter = segmenter
        self.encoded = encoded
        self.questions = questions

    def whole(self) -> list[LesionMaps]:
        """Do all steps, and return one answer for each set."""
        return finish(self.steps())

    @torch.inference_mode()
    def steps(self, *, tile_by_tile: bool = False) -> Steps[list[LesionMaps]]:
        """Yield the share of the tiles that are done after each step, and return one answer for each set.

        Args:
            tile_by_tile: Also stop after each tile that had to be encoded. The answers do not depend on it.
        """
        segmenter, encoded, questions = self.segmenter, self.encoded, self.questions
        prepared = segmenter.prepare(questions)
        blended = BlendedAnswers(encoded, len(questions))
        batch_size = segmenter.settings.batch_size
        asked = len(questions) + (segmenter.settings.level == "pooled")  # and the question without exemplars
        most = max(1, tiles_at_once(segmenter.device, encoded.tile_px, batch_size) // asked)
        done, all_tiles = 0, max(1, encoded.shown)
        for slices, rows in encoded.groups(batch_size):
            opinions: list[TileAnswers] = []
            for part in np.array_split(rows, ceil(len(rows) / most)) if len(rows) else ():
                for row in part if tile_by_tile else ():
                    if int(row) not in encoded.store:
                        encoded.select(np.array([row]))
                        yield done / all_tiles
                opinions.append(segmenter.opinions(encoded, part, prepared))
                done += len(part)
                yield done / all_tiles
            if opinions:
                blended.add(slices, rows, TileAnswers.cat(opinions))
        return (yield from blended.restored_steps())
