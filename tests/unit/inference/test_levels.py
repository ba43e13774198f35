"""The level of a scan: what counts as a lesion, from how well exemplars find each other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from mois.inference.lesion_maps import LesionMaps
from mois.inference.levels import EVEN, LONE_LEVEL, Outlined, level_of, shifted
from mois.inference.segmenter import VolumeSegmenter
from mois.records import Exemplars

MASKS = torch.zeros(3, 4, 4)
MASKS[:, 1:3, 1:3] = 1
OUTLINED = Outlined(np.arange(3), np.arange(3), MASKS)


class Answers:
    """A segmenter whose exemplars find each lesion with the same probability; it notes who was asked."""

    def __init__(self, inside: float, level: str = "exemplars") -> None:
        self.settings = SimpleNamespace(level=level)
        self.inside = inside
        self.asked: list[list[bool]] = []

    def prepare(self, questions: list[Exemplars], *, merge: bool = True) -> Exemplars:
        assert not merge  # merged exemplars cannot be left out
        return questions[0]

    def ask(self, encoded: object, rows: np.ndarray, prepared: Exemplars) -> torch.Tensor:
        self.asked.append(prepared.valid[0].tolist())
        return self.inside * MASKS[rows].unsqueeze(1)


def _exemplars(count: int, negative: int = 0) -> Exemplars:
    valid = torch.ones(1, count, dtype=torch.bool)
    signs = torch.zeros_like(valid)
    signs[:, :negative] = True
    return Exemplars({}, valid, signs)


def _level(answers: Answers, probability: torch.Tensor, exemplars: Exemplars | None = None) -> float:
    segmenter = cast("VolumeSegmenter", answers)
    return level_of(segmenter, None, exemplars or _exemplars(3), OUTLINED, probability)  # type: ignore[arg-type]


def test_each_lesion_is_looked_for_without_its_own_exemplar() -> None:
    answers = Answers(0.4)
    _level(answers, torch.full((2, 4, 4), 0.4))
    assert answers.asked == [[False, True, True], [True, False, True], [True, True, False]]


def test_the_level_follows_unsure_exemplars_down_as_far_as_little_else_is_found() -> None:
    # a third of the scan at 0.4, where the exemplars find each other with 0.4; all else at 0.12
    dish = torch.cat([torch.full((100,), 0.4), torch.full((200,), 0.12)]).view(3, 10, 10)
    assert _level(Answers(0.4), dish) == 0.15  # the lowest of the levels that leave the background out


def test_sure_exemplars_leave_the_level_even() -> None:
    # recall is 1 at every level; the share of the scan falls up to 0.5
    body = torch.tensor([0.9] * 5 + [0.47] * 10 + [0.2] * 85).view(1, 10, 10)
    assert _level(Answers(0.9), body) == EVEN


def test_a_level_at_which_nothing_of_the_lesions_is_found_is_not_taken() -> None:
    # at 0.35 nothing of the lesions is left, though hardly anything of the scan is found there
    scan = torch.tensor([0.45] + [0.32] * 99).view(1, 10, 10)
    assert _level(Answers(0.32), scan) <= 0.3


def test_without_a_second_positive_exemplar_the_level_is_fixed() -> None:
    scan = torch.full((1, 4, 4), 0.3)
    assert _level(Answers(0.4), scan, _exemplars(3, negative=2)) == LONE_LEVEL
    assert _level(Answers(0.4), scan, _exemplars(3, negative=3)) == EVEN
    assert _level(Answers(0.4), scan, _exemplars(3).map(weight=torch.zeros(1, 3))) == EVEN
    assert _level(Answers(0.4, level="fixed"), scan) == EVEN
    assert _level(Answers(0.4), torch.zeros(1, 4, 4)) == EVEN
    assert _level(Answers(0.0), scan) == EVEN


@pytest.mark.parametrize("level", [0.1, 0.25, 0.45])
def test_a_shift_keeps_the_order_and_puts_the_level_at_one_half(level: float) -> None:
    before = torch.linspace(0, 1, 21)
    after = shifted(before, level)
    assert bool((after.diff() > 0).all())
    assert float(shifted(torch.tensor(level), level)) == pytest.approx(0.5)
    assert (float(after[0]), float(after[-1])) == (0, 1)


def test_cores_are_shifted_with_the_mask_and_keep_their_type() -> None:
    maps = LesionMaps(torch.full((1, 2, 2), 0.25), torch.full((1, 2, 2), 0.25).half())
    moved = maps.at_level(0.25)
    assert moved.cores is not None
    assert moved.cores.dtype == torch.float16
    assert torch.allclose(moved.probability, torch.tensor(0.5))
    assert torch.allclose(moved.cores.float(), torch.tensor(0.5))
    assert maps.at_level(EVEN) is maps
    assert LesionMaps(maps.probability).at_level(0.3).cores is None
