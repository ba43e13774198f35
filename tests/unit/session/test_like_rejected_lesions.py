"""Found lesions that are more like rejected lesions than like the exemplars are candidates only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from mois.inference.encoded_volume import EncodedVolume
from mois.inference.lesion_maps import LesionMaps, ScanRule
from mois.machine.steps import Steps, finish
from mois.records import Volume
from mois.session import InteractiveSession
from mois.session.advice import suggestions
from mois.session.found_lesions import FoundLesions, find_lesions
from mois.session.models import model_on_scan
from mois.session.state import State, UnsureLesion
from tests.support.session_fakes import lps, make_model, make_segmenter, three_lesions

ON = cast("EncodedVolume", SimpleNamespace(grid=SimpleNamespace(edges_mm=np.eye(3))))


def two_candidates(margin: list[float]) -> LesionMaps:
    """One candidate of three voxels with this margin, and one with a margin of 1."""
    probability, margins = torch.zeros(1, 1, 8), torch.ones(1, 1, 8)
    probability[..., :3], probability[..., 5:] = 0.9, 0.8
    margins[..., :3] = torch.tensor(margin)
    return LesionMaps(probability, margin=margins.half())


@pytest.mark.parametrize(("margin", "found"), [([-3, 1, 1], 1), ([-1, 1, 1], 2), ([-1, 0.5, 0.5], 2), ([-2, 3, -2], 1)])
def test_the_mean_margin_decides(margin: list[float], found: int) -> None:
    segmenter = make_segmenter(peak_threshold=0.6, split_prominence_mm=0.0, min_lesion_voxels=1)
    lesions, unsure = find_lesions(segmenter, ON, State(), two_candidates(margin), 1.0)
    assert len(lesions) == found
    left_out = UnsureLesion((0, 0, 0), float(np.float32(0.9)), 3, like_rejected=True)
    assert unsure == ((left_out,) if found == 1 else ())


def test_without_rejected_lesions_nothing_is_left_out() -> None:
    segmenter = make_segmenter(peak_threshold=0.6, split_prominence_mm=0.0, min_lesion_voxels=1)
    lesions, unsure = find_lesions(segmenter, ON, State(), two_candidates([-3, -3, -3])._replace(margin=None), 1.0)
    assert (len(lesions), unsure) == (2, ())


def test_a_candidate_below_the_level_of_peaks_is_suggested_and_not_found() -> None:
    segmenter = make_segmenter(peak_threshold=0.6, split_prominence_mm=0.0, min_lesion_voxels=1)
    maps = two_candidates([1, 1, 1])._replace(margin=None, peak_level=0.85)
    lesions, unsure = find_lesions(segmenter, ON, State(), maps, 1.0)
    assert [peak for _, peak in lesions] == [pytest.approx(27 / 44)]  # odds of 9; those of the level are 17 / 3
    assert [(each.point, each.peak) for each in unsure] == [((0, 0, 5), pytest.approx(12 / 29))]


def test_the_margin_is_a_difference_of_log_odds_and_outlives_the_rule() -> None:
    mine, theirs = torch.tensor([0.5, 0.9, 0.0]).view(1, 1, 3), torch.tensor([0.75, 0.5, 0.0]).view(1, 1, 3)
    maps = finish(LesionMaps(mine).against_steps(LesionMaps(theirs)))
    wanted = [-np.log(3), np.log(9), 0]
    for each in (maps, maps.by_rule(ScanRule(level=0.25))):
        assert each.margin is not None
        assert each.margin.dtype == torch.float16
        assert each.margin.flatten().tolist() == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize("level", ["pooled", "known", "cautious", "selective", "moderate", "exemplars"])
def test_the_sides_change_only_if_something_was_rejected_and_something_is_looked_for(level: str) -> None:
    scan = three_lesions()
    session = InteractiveSession(make_model(level=level), scan)

    def margin() -> torch.Tensor | None:
        latest = session._bench.on_scan._latest
        assert latest is not None
        return latest[1].margin

    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    assert margin() is None
    session.reject(2)
    session.propagate()
    assert (margin() is not None) == (level != "exemplars")  # other levels answer as they did in earlier versions
    session.remove(1)  # nothing is left to look for
    session.propagate()
    assert margin() is None


def rejecting(**changes: object) -> tuple[InteractiveSession, Volume]:
    """Return a session with one exemplar and what it found, and its scan."""
    scan = three_lesions()
    session = InteractiveSession(make_model(**changes), scan)
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    return session, scan


def test_vetoes_leave_outlines_and_levels_to_the_positive_exemplars() -> None:
    session, _ = rejecting(level="selective", rejections="vetoes")
    on_scan = session._bench.on_scan
    before = on_scan.answer(session.state)
    session.reject(2)
    after = on_scan.answer(session.state)
    assert after.probability is before.probability
    assert after[2:-1] == before[2:-1]
    assert before.margin is None
    assert after.margin is not None
    with_a_say, _ = rejecting(level="selective")
    with_a_say.reject(2)
    asked = with_a_say._bench.on_scan.answer(with_a_say.state)
    assert not torch.equal(asked.probability, before.probability)


def test_the_answer_to_positive_exemplars_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    questions: list[int] = []

    class Counted(model_on_scan.Search):
        def __init__(self, *told: Any, **further: Any) -> None:
            super().__init__(*told, **further)
            questions.append(len(self.questions))

    monkeypatch.setattr(model_on_scan, "Search", Counted)
    session, scan = rejecting(rejections="vetoes")
    session.reject(2)
    session.propagate()
    session.propagate()
    assert questions == [1, 2]
    session.click(lps(scan, 4, 44, 32))
    session.propagate()
    assert questions == [1, 2, 1, 2]


@pytest.mark.parametrize(("rejected", "compared"), [(1, 1), (2, 2), (3, 2)])
def test_two_rejected_lesions_count_for_each_exemplar(
    monkeypatch: pytest.MonkeyPatch, rejected: int, compared: int
) -> None:
    negatives: list[int] = []

    class Seen(model_on_scan.Search):
        def __init__(self, segmenter: Any, encoded: Any, questions: Any, **further: Any) -> None:
            super().__init__(segmenter, encoded, questions, **further)
            negatives.append(int(questions[0].present_negative.sum()))

    monkeypatch.setattr(model_on_scan, "Search", Seen)
    session, scan = rejecting(rejections="vetoes")
    places = [(2, 40, 12), (3, 44, 32), (0, 4, 4)]
    for index, row, column in places[:rejected]:
        session.scribble([lps(scan, index, row, column), lps(scan, index, row, column + 2)], positive=False)
    session.propagate()
    assert negatives[-1] == compared


def test_what_was_left_out_is_suggested_with_its_reason() -> None:
    session = InteractiveSession(make_model(), three_lesions())
    state = replace(session.state, unsure=(UnsureLesion((2, 20, 20), 0.9, 30, like_rejected=True),))
    (only,) = suggestions(state, session._bench.grid, 0.01, 5)
    assert only.reason == "left out: it is more like the rejected lesions than like the exemplars; 0.30 ml"


def test_what_was_left_out_is_stored_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unsure = (UnsureLesion((2, 20, 20), 0.9, 30, like_rejected=True), UnsureLesion((0, 1, 2), 0.5, 4))

    def found(*_: object) -> Steps[FoundLesions]:
        yield None
        return [], unsure

    monkeypatch.setattr("mois.session.workbench.find_lesions_steps", found)
    session = InteractiveSession(make_model(), three_lesions(), tmp_path)
    session.propagate()
    session.close()
    assert InteractiveSession.load(tmp_path, make_model(), three_lesions()).state.unsure == unsure


def test_vetoed_lesions_leave_an_instance_map_and_the_others_are_numbered_anew() -> None:
    lesions = np.array([[[1, 1, 0, 2, 2, 0, 4]]], dtype=np.int32)
    margin = torch.tensor([[[1.0, -3.0, -9.0, 2.0, -1.0, -9.0, 0.0]]]).half()
    maps = LesionMaps(torch.ones(1, 1, 7), margin=margin)
    assert maps.without_vetoed(lesions).tolist() == [[[0, 0, 0, 1, 1, 0, 2]]]
    assert maps._replace(margin=None).without_vetoed(lesions) is lesions
    assert not maps.without_vetoed(np.zeros_like(lesions)).any()
