"""With `inference.level=moderate`, levels of lesions that the model hardly knows have narrower bounds."""

from __future__ import annotations

import pytest
import torch

from mois.inference.lesion_maps import EVEN, LesionMaps, ScanRule
from tests.unit.inference.test_levels import Answers, _rule, _two_objects


def test_levels_of_unknown_lesions_have_narrower_bounds() -> None:
    # A quarter of a lesion has .5, the rest .2. From .25 to .4 all levels find the same, so the highest is taken.
    inside = torch.full((4, 4), 0.2)
    inside[0] = 0.5
    maps = LesionMaps(torch.tensor([0.5, 0.2, 0.2, 0.2] * 5 + [0.05] * 80).view(1, 10, 10))
    rule = _rule(Answers(inside, "moderate", alone=0.0), maps)
    # odds of 1 at a level of .4 are 1.5, so .6; less than .75, of which odds of 3 become 1.5
    assert rule == ScanRule(level=0.4, peak_level=pytest.approx(2 / 3))
    assert _rule(Answers(inside, "selective", alone=0.0), maps).level == 0.2
    sure = _rule(Answers(0.9, "moderate", alone=0.0), LesionMaps(torch.full((1, 10, 10), 0.9)))
    # odds of 9 at a level of .4 are 13.5; no peak must be above .84, of which odds of 5.25 become 1.5
    assert sure == ScanRule(level=0.4, peak_level=pytest.approx(3.5 / 4.5))


def test_lesions_of_which_nothing_is_found_leave_the_highest_level() -> None:
    maps = LesionMaps(torch.full((1, 10, 10), 0.01))
    assert _rule(Answers(0.01, "moderate", alone=0.0), maps).level == 0.4
    assert _rule(Answers(0.01, "selective", alone=0.0), maps).level == EVEN


def test_known_lesions_are_judged_as_by_selective() -> None:
    for second in (0.05, 0.2, 0.9):
        maps = _two_objects([second] * 10)
        of_known = [_rule(Answers(0.9, level, plain=0.9, alone=0.9), maps) for level in ("selective", "moderate")]
        assert of_known[0] == of_known[1]
