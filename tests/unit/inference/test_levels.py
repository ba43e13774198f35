"""The level of a scan: what counts as a lesion, from how well exemplars find each other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from mois.inference.lesion_maps import (
    EVEN,
    NO_SHARES,
    LesionMaps,
    ScanRule,
    Shares,
    TileAnswers,
    mixed,
    shifted,
)
from mois.inference.levels import (
    ALONE_HALF,
    BARELY,
    LONE_LEVEL,
    PLAIN_HALF,
    POOLED,
    POOLED_WITHOUT_PLAIN,
    Inside,
    Outlined,
    _best,
    rule_of,
)
from mois.inference.segmenter import VolumeSegmenter
from mois.machine.steps import finish
from mois.records import Exemplars
from tests.support.session_fakes import make_segmenter

MASKS = torch.zeros(3, 4, 4)
MASKS[:, 1:3, 1:3] = 1
OUTLINED = Outlined(np.arange(3), np.arange(3), MASKS)


class Answers:
    """A segmenter whose exemplars find each lesion with the same probability; it notes who was asked."""

    def __init__(
        self,
        inside: float | torch.Tensor,
        level: str = "exemplars",
        plain: float | None = None,
        alone: float | torch.Tensor | None = None,  # (3, 1, 1) for one value a lesion
    ) -> None:
        self.settings = SimpleNamespace(level=level, split_prominence_mm=0.0)
        self.inside = inside
        self.plain = plain
        self.alone = alone
        self.asked: list[list[bool]] = []

    def prepare(self, questions: list[Exemplars], *, merge: bool = True) -> Exemplars:
        assert not merge  # merged exemplars cannot be left out
        self.question = questions[0]
        return self.question

    def opinions(self, encoded: object, rows: np.ndarray, prepared: Exemplars) -> TileAnswers:
        self.asked.append((prepared.weight[0] > BARELY).tolist())
        assert torch.equal(prepared.present, self.question.present)  # what is left out keeps its room
        shown = MASKS[rows].unsqueeze(1)
        plain = None if self.plain is None else self.plain * shown
        alone = None if self.alone is None else self.answer_alone(encoded, rows)
        return TileAnswers(self.inside * shown, plain=plain, alone=alone)

    def answer_alone(self, encoded: object, rows: np.ndarray) -> torch.Tensor:
        assert self.alone is not None
        alone = self.alone[rows].unsqueeze(1) if isinstance(self.alone, torch.Tensor) else self.alone
        return alone * MASKS[rows].unsqueeze(1)


def _exemplars(count: int, negative: int = 0) -> Exemplars:
    valid = torch.ones(1, count, dtype=torch.bool)
    signs = torch.zeros_like(valid)
    signs[:, :negative] = True
    return Exemplars({}, valid, signs)


def _level(answers: Answers, probability: torch.Tensor, exemplars: Exemplars | None = None) -> float:
    return _rule(answers, LesionMaps(probability), exemplars).level


def _rule(answers: Answers, maps: LesionMaps, exemplars: Exemplars | None = None) -> ScanRule:
    segmenter, exemplars = cast("VolumeSegmenter", answers), exemplars or _exemplars(3)
    lesions = Outlined(*(part[: exemplars.count] for part in OUTLINED))
    return rule_of(segmenter, None, exemplars, lesions, maps)  # type: ignore[arg-type]


def test_each_lesion_is_looked_for_without_its_own_exemplar() -> None:
    answers = Answers(0.4)
    _level(answers, torch.full((2, 4, 4), 0.4))
    assert answers.asked == [[False, True, True], [True, False, True], [True, True, False]]


def test_an_exemplar_without_weight_takes_no_room_when_it_is_left_out() -> None:
    answers = Answers(0.4)
    _level(answers, torch.full((2, 4, 4), 0.4), _exemplars(3).map(weight=torch.tensor([[1.0, 0.0, 1.0]])))
    assert answers.asked == [[False, False, True], [True, False, True], [True, False, False]]


def test_the_level_follows_unsure_exemplars_down_as_far_as_little_else_is_found() -> None:
    # a third of the scan at 0.4, where the exemplars find each other with 0.4; all else at 0.12
    dish = torch.cat([torch.full((100,), 0.4), torch.full((200,), 0.12)]).view(3, 10, 10)
    assert _level(Answers(0.4), dish) == 0.15  # the lowest of the levels that leave the background out


def test_cautious_of_levels_that_are_about_as_good_the_highest_is_taken() -> None:
    # Every level finds the lesions (recall 1). Of the scan .4 finds 12 %, .45 finds 11 % and .5 finds 10 %.
    scan = torch.tensor([0.52] * 10 + [0.47] + [0.42] + [0.05] * 88).view(1, 10, 10)
    maps = LesionMaps(scan, plain=scan)
    assert _rule(Answers(0.52, "known", plain=0.52, alone=0.0), maps).level == 0.5
    assert _rule(Answers(0.52, "cautious", plain=0.52, alone=0.0), maps).level == 0.5
    # lesions at .47: .45 has the worth 1 / .11, and at .5 nothing of them is left
    assert _rule(Answers(0.47, "cautious", plain=0.47, alone=0.0), maps).level == 0.45
    # all levels find the same pixels: `known` takes the first one, `cautious` the highest
    flat = torch.tensor([0.52] * 10 + [0.05] * 90).view(1, 10, 10)
    maps = LesionMaps(flat, plain=flat)
    assert _rule(Answers(0.52, "known", plain=0.52, alone=0.0), maps).level == 0.1
    assert _rule(Answers(0.52, "cautious", plain=0.52, alone=0.0), maps).level == 0.5


@pytest.mark.parametrize(("found", "level"), [(83, 0.5), (82, 0.45)])
def test_cautious_a_level_with_much_less_of_the_figure_is_not_as_good(found: int, level: float) -> None:
    # .45 finds all of the lesion and 10 % of the scan: 1 / .1 = 10. .5 finds a share and 8 %: share x share / .08.
    # .83: 8.61; .82: 8.405; .85 x 10 = 8.5 lies between.
    scan = torch.tensor([0.52] * 8 + [0.47] * 2 + [0.05] * 90).view(1, 10, 10)
    lesion = torch.where(torch.arange(100) < found, 0.52, 0.47)
    assert finish(_best([Inside(lesion)], LesionMaps(scan), "cautious")).level == level


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


def test_the_plain_answer_has_half_a_say_where_the_exemplars_find_each_other_better_with_it() -> None:
    # The propagation finds the lesions with .3, and a tenth of the scan with it: recall 1 at .3, worth 1 / .1 = 10.
    # The plain answer gives the lesions .7, half of that tenth .7 as well and the other half .1. With half a say:
    # log-odds (-.85 + .85) / 2 = 0 in the lesions, so .5, and less than .2 in the other half: worth 1 / .05 = 20.
    probability = torch.tensor([0.3] * 10 + [0.05] * 90).view(1, 10, 10)
    plain = torch.tensor([0.7] * 5 + [0.1] * 95).view(1, 10, 10)
    rule = _rule(Answers(0.3, plain=0.7), LesionMaps(probability, plain=plain))
    assert rule.shares == PLAIN_HALF
    # a plain answer that finds the lesions no better than the rest is not asked
    flat = torch.full((1, 10, 10), 0.7)
    assert _rule(Answers(0.3, plain=0.7), LesionMaps(probability, plain=flat)).shares == NO_SHARES
    # without a plain answer there is nothing to choose
    assert _rule(Answers(0.3), LesionMaps(probability)).shares == NO_SHARES


def test_both_answers_are_mixed_as_log_odds_and_air_stays_air() -> None:
    # odds 1/3 and 27: their geometric mean is 3, so 0.75
    probability, plain = torch.tensor([0.25, 0.0]), torch.tensor([27 / 28, 0.9])
    assert mixed(probability, plain, None, Shares(plain=0.5)).tolist() == pytest.approx([0.75, 0])
    maps = LesionMaps(probability.view(1, 1, 2), plain=plain.view(1, 1, 2).half())
    judged = maps.by_rule(ScanRule(Shares(plain=0.5), level=0.25, waist_mm=2))  # odds 3 over odds 1/3: 9
    assert judged.plain is None
    assert judged.waist_mm == 2
    assert judged.probability.flatten().tolist() == pytest.approx([0.9, 0], abs=1e-3)
    assert maps.mixed(NO_SHARES).probability is maps.probability


def test_a_model_that_finds_the_exemplars_alone_pools_its_answers() -> None:
    # in the lesions: odds 1/3 with exemplars, 1 plainly, 27 alone; half, a quarter and a quarter of their logarithms:
    # 3 ** (-1 / 2 + 3 / 4) = 3 ** (1 / 4)
    maps = LesionMaps(torch.full((1, 1, 1), 0.25), None, torch.full((1, 1, 1), 0.5), torch.full((1, 1, 1), 27 / 28))
    odds = 3**0.25
    assert float(maps.mixed(POOLED).probability) == pytest.approx(odds / (1 + odds))
    assert float(maps.mixed(POOLED_WITHOUT_PLAIN).probability) == pytest.approx(3 ** (1 / 3) / (1 + 3 ** (1 / 3)))
    assert maps.by_rule(ScanRule(POOLED)).alone is None


@pytest.mark.parametrize(("alone", "pools"), [(0.5, True), (0.49, False)])
def test_the_answer_without_exemplars_has_a_say_if_it_finds_the_exemplars(alone: float, pools: bool) -> None:
    scan = torch.tensor([0.4] * 10 + [0.05] * 90).view(1, 10, 10)
    maps = LesionMaps(scan, plain=scan, alone=scan)
    assert (_rule(Answers(0.4, "pooled", plain=0.4, alone=alone), maps).shares == POOLED) == pools
    maps = maps._replace(plain=None)
    without_plain = _rule(Answers(0.4, "pooled", alone=alone), maps)
    assert without_plain.shares == (POOLED_WITHOUT_PLAIN if pools else NO_SHARES)


def test_negative_exemplars_are_not_outvoted_by_the_answer_that_knows_none() -> None:
    scan = torch.tensor([0.4] * 10 + [0.05] * 90).view(1, 10, 10)
    maps = LesionMaps(scan, plain=scan, alone=scan)
    answers = Answers(0.4, "pooled", plain=0.4, alone=0.9)
    assert _rule(answers, maps, _exemplars(3)).shares == POOLED
    assert _rule(answers, maps, _exemplars(3, negative=1)).shares != POOLED
    known = Answers(0.4, "known", plain=0.4, alone=0.9)
    assert _rule(known, maps, _exemplars(3, negative=1)) == _rule(answers, maps, _exemplars(3, negative=1))


def test_the_level_is_found_for_the_pooled_answer() -> None:
    # pooled, the lesions have 0.5 and the rest stays below 0.2: log-odds (2 x -0.85 + 0.85 + 0.85) / 4 = 0
    scan = torch.tensor([0.3] * 10 + [0.05] * 90).view(1, 10, 10)
    alone = torch.tensor([0.7] * 10 + [0.01] * 90).view(1, 10, 10)
    rule = _rule(Answers(0.3, "pooled", plain=0.7, alone=0.7), LesionMaps(scan, plain=alone, alone=alone))
    assert rule == ScanRule(POOLED, level=0.1)  # the lowest level that leaves the rest out


def _two_objects(second: list[float], unsure: float = 0.3, rest: float = 0.01) -> LesionMaps:
    """Two objects of 10 voxels that the model finds alone, 10 voxels apart. It is sure of half of the first one."""
    found = torch.tensor([0.9] * 5 + [unsure] * 5 + [rest] * 10 + second).view(1, 1, 30)
    alone = torch.tensor([0.9] * 10 + [0.01] * 10 + [0.9] * 10).view(1, 1, 30)
    return LesionMaps(found, plain=found, alone=alone.half())


def test_the_level_of_known_lesions_agrees_with_their_outlines_without_exemplars() -> None:
    # In the open half of the first object the exemplars say .05: log-odds .5 x -2.94 + .5 x 2.20 = -.37, so .41. At .5
    # and .45 it is left out, from .4 on all is reached, at .05 the rest too: .5 x -.41 + .5 x -4.60 = -2.5, so .08.
    maps = _two_objects([0.9] * 5 + [0.3] * 5, unsure=0.05, rest=0.4)
    rule = _rule(Answers(0.9, "known", plain=0.9, alone=0.9), maps)
    assert rule == ScanRule(ALONE_HALF, level=pytest.approx(0.4))
    # the exemplars alone, sure of each other, would leave it at .5
    assert _rule(Answers(0.9, "pooled", plain=0.9, alone=0.9), maps).level == EVEN


def test_where_all_objects_are_meant_the_answer_without_exemplars_has_half_a_say() -> None:
    # .5 x -.85 + .5 x 2.20 = .67 in the halves that the exemplars leave open: all is reached at .5
    rule = _rule(Answers(0.9, "known", plain=0.9, alone=0.9), _two_objects([0.9] * 5 + [0.3] * 5))
    assert rule == ScanRule(ALONE_HALF, level=EVEN)
    without_plain = _two_objects([0.9] * 5 + [0.3] * 5)._replace(plain=None)
    assert _rule(Answers(0.9, "known", alone=0.9), without_plain).shares == Shares(alone=2 / 3)


def test_where_there_are_other_objects_the_exemplars_decide_alone() -> None:
    rule = _rule(Answers(0.9, "known", plain=0.9, alone=0.9), _two_objects([0.05] * 10))
    assert rule == ScanRule()


@pytest.mark.parametrize(("inside", "level"), [(0.9, 6 / 7), (0.75, 2 / 3), (0.99, 23 / 26), (0.5, 138 / 231)])
def test_among_other_objects_a_candidate_must_be_as_sure_as_the_exemplars(inside: float, level: float) -> None:
    # odds of 9 and 3 become 1.5, those of 0.6; no peak must be above 0.92 (23 / 2), each above 0.69 (69 / 31)
    selective = Answers(inside, "selective", plain=inside, alone=0.9)
    assert _rule(selective, _two_objects([0.05] * 10)) == ScanRule(peak_level=pytest.approx(level))
    assert len(selective.asked) == 3
    assert _rule(Answers(inside, "cautious", plain=inside, alone=0.9), _two_objects([0.05] * 10)) == ScanRule()


def test_what_the_exemplars_are_unsure_of_is_no_other_kind() -> None:
    def rule(setting: str, second: float) -> ScanRule:
        return _rule(Answers(0.9, setting, plain=0.9, alone=0.9), _two_objects([second] * 10))

    assert rule("selective", 0.2).shares == ALONE_HALF  # the second object, half of all voxels, is in doubt
    assert rule("selective", 0.09).shares == rule("cautious", 0.2).shares == Shares()


def test_objects_of_one_kind_need_the_least_peak_also_with_a_single_exemplar() -> None:
    maps, selective = _two_objects([0.9] * 5 + [0.3] * 5), Answers(0.9, "selective", plain=0.9, alone=0.9)
    assert _rule(selective, maps) == ScanRule(ALONE_HALF, peak_level=pytest.approx(138 / 231))
    assert _rule(selective, maps, _exemplars(1)) == ScanRule(ALONE_HALF, peak_level=pytest.approx(138 / 231))
    assert _rule(selective, _two_objects([0.05] * 10), _exemplars(1)) == ScanRule()
    assert _rule(Answers(0.9, "selective", plain=0.9, alone=0.39), maps, _exemplars(1)) == ScanRule(level=LONE_LEVEL)
    assert selective.asked == []


@pytest.mark.parametrize(("hardly", "sure", "peak"), [(4, 4, 0.69), (5, 4, 0.75), (5, 2, 0.69)])
def test_where_most_objects_of_a_kind_are_hardly_sure_more_is_asked_for(hardly: int, sure: int, peak: float) -> None:
    # Hardly sure: log-odds .5 x -.20 + .5 x 2.20 = 1.0, so .73. Of three exemplars, two sure objects leave out one.
    found = torch.tensor([0.9] * sure + [0.45] * hardly + [0.01] * 20).repeat_interleave(2).view(1, 1, -1)
    found[..., 1::2] = 0.01
    alone = torch.where(found > 0.1, 0.9, 0.01)
    maps = LesionMaps(found, plain=found, alone=alone.half())
    rule = _rule(Answers(0.9, "selective", plain=0.9, alone=0.9), maps, _exemplars(3))
    odds = peak / (1 - peak) / 1.5
    assert rule == ScanRule(ALONE_HALF, peak_level=pytest.approx(odds / (1 + odds)))
    assert _rule(Answers(0.9, "cautious", plain=0.9, alone=0.9), maps, _exemplars(3)) == ScanRule(ALONE_HALF)


def test_peaks_of_unknown_lesions_are_compared_at_the_level_of_the_scan() -> None:
    # One pixel of a lesion has .5, three have .2. The level is .2, which makes odds of 1 those of 4; 4 becomes 3 / 2.
    inside = torch.full((4, 4), 0.2)
    inside[1, 1] = 0.5
    maps = LesionMaps(torch.tensor([0.5, 0.2, 0.2, 0.2] * 5 + [0.05] * 80).view(1, 10, 10))
    unknown = Answers(inside, "selective", alone=0.0)
    assert _rule(unknown, maps) == ScanRule(level=0.2, peak_level=pytest.approx(8 / 11))


def test_the_level_of_peaks_decides_which_candidates_are_lesions_and_not_their_outlines() -> None:
    probability = torch.tensor([0.6, 0.95, 0.5, 0.0, 0.5, 0.8, 0.9, 0.0]).view(1, 1, 8)
    maps = LesionMaps(probability).by_rule(ScanRule(peak_level=0.88))
    segmenter = make_segmenter(threshold=0.5, peak_threshold=0.6, min_lesion_voxels=1, split_prominence_mm=0.0)
    candidates = segmenter.candidates(maps, 1.0)
    # odds of .95 are 19, and those of .9 are 9; those of the level, .88 / .12 = 22 / 3
    assert candidates.peaks.tolist() == pytest.approx([57 / 79, 27 / 49])
    assert candidates.lesions.tolist() == [[[1, 1, 1, 0, 2, 2, 2, 0]]]
    assert segmenter.lesions(maps, 1.0).tolist() == [[[1, 1, 1, 0, 0, 0, 0, 0]]]
    assert segmenter.lesions(probability, 1.0).max() == 2
    pooled = maps._replace(plain=probability).by_rule(ScanRule(Shares(plain=0.5), peak_level=0.7))
    assert pooled.peak_level == 0.7


def test_other_objects_beside_lesions_that_are_hardly_known_leave_the_level_to_the_exemplars() -> None:
    maps = _two_objects([0.05] * 10, unsure=0.05)
    some = torch.zeros(3, 4, 4)
    some[0], some[1, 1, 1] = 0.9, 0.9  # all of the first lesion and a quarter of the second: .42
    found = _rule(Answers(0.4, "known", plain=0.4, alone=some), maps)
    assert found == _rule(Answers(0.4, "mixed", plain=0.4), maps) != ScanRule()
    some[1] = 0.9  # two of three lesions
    assert _rule(Answers(0.4, "known", plain=0.4, alone=some), maps) == ScanRule()


def test_no_lesion_is_left_out_where_the_answer_without_exemplars_decides() -> None:
    maps = _two_objects([0.9] * 10)
    known, unknown = Answers(0.9, "known", plain=0.9, alone=0.9), Answers(0.9, "known", plain=0.9, alone=0.39)
    assert _rule(known, maps).shares != ScanRule().shares
    assert known.asked == []
    _rule(unknown, maps)
    assert len(unknown.asked) == 3
    lone = Answers(0.9, "known", plain=0.9, alone=0.39)
    assert _rule(lone, maps, _exemplars(1)).level == LONE_LEVEL
    assert lone.asked == []


def test_a_single_exemplar_of_known_lesions_has_their_level_too() -> None:
    lone = _rule(Answers(0.9, "known", plain=0.9, alone=0.9), _two_objects([0.9] * 10), _exemplars(1))
    assert lone == ScanRule(ALONE_HALF, level=EVEN)
    unknown = Answers(0.9, "known", plain=0.9, alone=0.39)
    assert _rule(unknown, _two_objects([0.9] * 10), _exemplars(1)) == ScanRule(level=LONE_LEVEL)


def test_known_lesions_of_which_no_object_is_meant_keep_the_level_of_the_exemplars() -> None:
    maps = _two_objects([0.05] * 10)
    maps = maps._replace(probability=maps.probability * 0.01, plain=maps.probability * 0.01)
    known = _rule(Answers(0.4, "known", plain=0.4, alone=0.9), maps)
    assert known == _rule(Answers(0.4, "pooled", plain=0.4, alone=0.9), maps)
    # without the answer to no exemplars for the whole scan too
    maps = _two_objects([0.05] * 10)._replace(alone=None)
    assert _rule(Answers(0.4, "known", plain=0.4, alone=0.3), maps).shares != POOLED


def test_compact_exemplars_in_dense_slices_give_a_waist() -> None:
    answers = Answers(0.4)
    answers.settings.split_prominence_mm = None
    answers.settings.pixel_mm = 2.0
    grid = SimpleNamespace(edges_mm=np.diag([0.49, 2.0, 2.0]))
    scan = SimpleNamespace(grid=grid)
    segmenter = cast("VolumeSegmenter", answers)
    maps = LesionMaps(torch.full((1, 4, 4), 0.3))
    rule = rule_of(segmenter, scan, _exemplars(3), OUTLINED, maps)  # type: ignore[arg-type]
    # squares of 2 x 2 pixels: radius 1 pixel = 2 mm, area 4 / pi = 1.27 discs; a quarter of 2 mm
    assert rule.waist_mm == 0.5
    grid.edges_mm = np.diag([0.5, 2.0, 2.0])  # slices as thick as a quarter of the radius
    assert rule_of(segmenter, scan, _exemplars(3), OUTLINED, maps).waist_mm == 0  # type: ignore[arg-type]
