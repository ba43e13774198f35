"""A reader's session with a model that can be computed by hand."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from mois.session import InteractiveSession
from mois.sharing.lesion_model import LesionModel
from tests.support.fake_model import TYPE_A, FakePropagation, Undecided, box, make_scan
from tests.support.session_fakes import (
    A1,
    A2,
    B1,
    as_stack,
    cells,
    count,
    journal_of,
    key_of,
    lps,
    make_model,
    make_segmenter,
    three_lesions,
)


def test_a_click_gives_a_lesion_in_three_dimensions_and_a_second_one_another(scan, session):
    assert session.click(lps(scan, 2, 20, 20)) == 1
    assert session.click(lps(scan, 3, 46, 32)) == 2
    labels = as_stack(session.label_map())
    assert labels.dtype == np.int32
    assert (labels == 1).sum() == cells(A1)
    assert (labels == 2).sum() == cells(A2)
    assert (labels[A1] == 1).sum() == cells(A1)
    rows = session.lesions()
    assert [row.id for row in rows] == [1, 2]
    assert rows[0].volume_ml == pytest.approx(cells(A1) * 1.5 * 1.5 * 5 / 1000)
    assert (rows[0].x_lps_mm, rows[0].y_lps_mm, rows[0].z_lps_mm) == pytest.approx((19.5 * 1.5, 19.5 * 1.5, 10.0))
    assert (rows[0].confidence, rows[0].origin, rows[0].exemplar, rows[0].clicks) == (
        1.0,
        "prompted",
        key_of(session, 1),
        1,
    )


def test_propagation_finds_what_is_like_the_clicked_ones_and_leaves_them_alone(scan, session):
    session.click(lps(scan, 2, 20, 20))
    assert session.propagate() == 1
    labels = as_stack(session.label_map())
    assert (labels[A2] == 2).all()
    assert (labels[B1] == 0).all()
    assert (labels == 1).sum() == cells(A1)
    row = session.lesions()[1]
    assert (row.origin, row.status, row.exemplar) == ("found", "open", key_of(session, 1))
    assert row.confidence == pytest.approx(1 / (1 + np.exp(-10)))


def test_found_lesions_keep_their_ids_from_one_propagation_to_the_next(scan, session):
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    session.click(lps(scan, 2, 40, 12))  # the other type
    session.propagate()
    assert [(row.id, row.origin) for row in session.lesions()] == [(1, "prompted"), (2, "found"), (3, "prompted")]


def test_a_click_on_a_found_lesion_makes_it_a_prompted_one_of_the_same_id(scan, session):
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    assert session.click(lps(scan, 3, 46, 32)) == 2
    assert session.lesions()[1].origin == "prompted"


def test_a_negative_click_corrects_a_found_lesion_where_it_falls_and_nowhere_else(scan, session):
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    before = as_stack(session.label_map()) == 2
    assert session.click(lps(scan, 4, 44, 30), lesion=2, positive=False) == 2
    after = as_stack(session.label_map()) == 2
    assert not after[4, 44, 30]
    assert np.array_equal(after[3], before[3])
    assert 0 < after[4].sum() < before[4].sum()


def test_corrections_hold_on_every_slice_whatever_is_clicked_afterwards(scan, session):
    session.click(lps(scan, 2, 20, 20))
    session.click(lps(scan, 3, 18, 18), lesion=1, positive=False)
    session.click(lps(scan, 1, 22, 22), lesion=1)
    labels = as_stack(session.label_map())
    assert labels[3, 18, 18] == 0
    assert labels[1, 22, 22] == labels[2, 20, 20] == 1
    # the last one wins
    session.click(lps(scan, 3, 18, 18), lesion=1)
    assert as_stack(session.label_map())[3, 18, 18] == 1


def test_a_click_holds_even_where_the_model_does_not_follow(scan, session):
    session.click(lps(scan, 2, 20, 20))
    session.click(lps(scan, 2, 30, 30), lesion=1)  # nothing there: the first click's intensity decides
    assert as_stack(session.label_map())[2, 30, 30] == 1
    session.click(lps(scan, 5, 20, 20), lesion=1, positive=False)  # not even tracked there
    assert as_stack(session.label_map())[5, 20, 20] == 0


def test_a_slice_clicked_away_ends_the_lesion_there():
    scan = make_scan([(TYPE_A, box((0, 6), (16, 24), (16, 24)))])
    session = InteractiveSession(make_model(), scan)
    session.click(lps(scan, 1, 20, 20))
    assert np.flatnonzero(as_stack(session.label_map()).any((1, 2))).tolist() == [0, 1, 2, 3, 4, 5]
    session.click(lps(scan, 4, 20, 20), lesion=1, positive=False)  # 8 x 8 pixels: all of it
    assert np.flatnonzero(as_stack(session.label_map()).any((1, 2))).tolist() == [0, 1, 2, 3]


def test_every_clicked_slice_is_remembered_while_following():
    scan = make_scan([(TYPE_A, box((0, 6), (16, 24), (16, 24)))])
    session = InteractiveSession(make_model(track_memory=0), scan)
    session.click(lps(scan, 1, 20, 20))
    seen = session._bench.segmenter.backbone.attended
    seen.clear()
    session.click(lps(scan, 5, 20, 20), lesion=1)
    # slice 5 knows slice 1; then 1 is followed to 2 and 3 and to 0, 5 back to 4
    assert seen == [
        [(4, True)],
        [(1, True), (-3, True)],
        [(2, True), (-2, True)],
        [(1, True), (5, True)],
        [(1, True), (-3, True)],
    ]


def test_boxes_and_masks_are_prompts_too(scan, session):
    assert session.box(lps(scan, 2, 16, 16), lps(scan, 2, 23, 23)) == 1
    assert count(session, 1) == cells(A1)
    mask = torch.zeros_like(scan.lesions)
    mask[30:34, 42:48, 3] = 1  # on one slice: taken as it is there, and followed to slice 4
    assert session.mask(mask) == 2
    labels = as_stack(session.label_map())
    assert np.array_equal(labels[3] == 2, as_stack(mask)[3] > 0)
    assert (labels[4] == 2).any()
    whole = scan.lesions == 3
    whole[10, 38, 3] = True
    assert session.mask(whole) == 3  # over two slices: the whole lesion
    assert torch.equal(session.label_map() == 3, whole)


def test_a_soft_mask_is_what_reaches_a_half(scan, session):
    hard = torch.zeros_like(scan.lesions)
    hard[30:34, 42:48, 3:5] = 1
    number = session.mask(torch.where(hard > 0, 0.9, 1e-4).to(torch.bfloat16))
    assert torch.equal(session.label_map() == number, hard > 0)


def test_a_mask_over_several_slices_replaces_all_that_was_there_before():
    scan = three_lesions()
    session = InteractiveSession(make_model(), scan)
    lesion = session.click(lps(scan, 2, 20, 20))
    for first in (16, 20):
        whole = torch.zeros(scan.image.shape, dtype=torch.bool)
        whole[first : first + 3, 18:21, 1:4] = True  # nowhere near the click
        assert session.mask(whole, lesion=lesion) == lesion
        assert torch.equal(session.label_map() == lesion, whole)
    again = InteractiveSession(make_model(), scan)
    alone = again.mask(whole)
    for each, number in ((session, lesion), (again, alone)):
        each.click(lps(scan, 2, 19, 21), lesion=number, positive=False)
    assert torch.equal(session.label_map() == lesion, again.label_map() == alone)


def test_prompted_and_locked_lesions_keep_their_voxels(scan, session):
    mask = torch.zeros_like(scan.lesions)
    mask[16:20, 16:24, 1:4] = 1  # half of A1
    session.mask(mask)
    assert session.click(lps(scan, 2, 20, 22)) == 2
    labels = session.label_map()
    assert torch.equal(labels == 1, mask > 0)
    assert count(session, 2) == cells(A1) - 3 * (4 * 8 - 2)
    session.lock(2)
    with pytest.raises(ValueError, match="lesion=2 is locked"):
        session.click(lps(scan, 2, 20, 22), lesion=2)
    with pytest.raises(ValueError, match="lies in lesion 2; give lesion=2"):
        session.click(lps(scan, 2, 20, 22))
    session.propagate()
    after = session.label_map()
    assert torch.equal(after == 1, mask > 0)
    assert torch.equal(after == 2, labels == 2)


def test_nothing_is_merged_across_a_locked_lesion():
    bar = box((2, 3), (20, 24), (10, 40))
    scan = make_scan([(TYPE_A, bar), (TYPE_A, A2)])
    session = InteractiveSession(make_model(), scan)
    session.click(lps(scan, 3, 46, 32))
    middle = torch.zeros_like(scan.lesions)
    middle[22:26, 20:24, 2:4] = 1
    session.mask(middle)
    session.lock(2)
    assert session.propagate() == 2
    labels = as_stack(session.label_map())
    assert sorted([labels[2, 22, 12], labels[2, 22, 38]]) == [3, 4]
    assert (labels[2:4, 20:24, 22:26] == 2).all()


def test_a_rejected_lesion_goes_stays_away_and_becomes_a_negative_exemplar(scan, session):
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    session.reject(2)
    assert [exemplar.negative for exemplar in session.bank] == [False, True]
    assert session.propagate() == 0
    assert [row.id for row in session.lesions()] == [1]


def test_an_accepted_lesion_is_locked_and_an_exemplar(scan, session):
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    session.accept(2)
    row = session.lesions()[1]
    assert (row.status, row.confidence, row.exemplar) == ("accepted", 1.0, key_of(session, 2))
    assert session.bank.keys() == [key_of(session, 1), key_of(session, 2)]


def test_undo_and_redo_are_exact(scan, session):
    steps = [
        lambda: session.click(lps(scan, 2, 20, 20)),
        session.propagate,
        lambda: session.click(lps(scan, 4, 44, 30), lesion=2, positive=False),
        lambda: session.reject(2),
        lambda: session.click(lps(scan, 2, 40, 12)),
        lambda: session.lock(3),
        session.propagate,
    ]
    seen = [(session.label_map(), session.bank.keys(), session.lesions())]
    for step in steps:
        step()
        seen.append((session.label_map(), session.bank.keys(), session.lesions()))
    assert any(not torch.equal(one[0], two[0]) for one, two in pairwise(seen))

    def check(number):
        assert torch.equal(session.label_map(), seen[number][0])
        assert (session.bank.keys(), session.lesions()) == seen[number][1:]

    for number in reversed(range(len(steps))):
        assert session.undo()
        check(number)
    assert not session.undo()
    for number in range(1, len(steps) + 1):
        assert session.redo()
        check(number)
    assert not session.redo()
    session.undo()
    session.remove(3) if session.state.lesions[3].locked is False else session.unlock(3)
    assert not session.redo()  # a new action ends what could be redone


def test_every_tile_is_encoded_once_whatever_the_number_of_clicks(scan, tmp_path):
    model = make_model()
    session, backbone = InteractiveSession(model, scan), model.segmenter.backbone
    assert backbone.encoded == 0
    session.click(lps(scan, 2, 20, 20))
    first = backbone.encoded
    tiles = len(session._bench.encoded.places)
    assert 0 < first < tiles
    for _ in range(3):
        session.click(lps(scan, 2, 21, 21), lesion=1)
        session.click(lps(scan, 3, 46, 32), lesion=session.state.next_id - 1 if 2 in session.state.lesions else None)
        session.propagate()
        session.undo()
    assert backbone.encoded == tiles
    # beyond the budget: files, the same voxels
    session.redo()
    small = make_model(memory_gib=0.0)
    again = InteractiveSession.replay(journal_of(session, tmp_path), small, scan)
    assert small.segmenter.backbone.encoded == tiles == again._bench.encoded.store.rows_in_file
    assert torch.equal(again.label_map(), session.label_map())


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda s: s.click((1e4, 0, 0)), "outside the scan"),
        (lambda s: s.click((float("nan"), 0, 0)), "three numbers"),
        (lambda s: s.click((30.0, 30.0, 10.0), lesion=7), "lesion=7 does not exist"),
        (lambda s: s.click((9.0, 9.0, 10.0), positive=False), "negative click outside every lesion"),
        (lambda s: s.box((30.0, 30.0, 0.0), (40.0, 40.0, 20.0)), "drawn on one slice"),
        (lambda s: s.mask(np.zeros((2, 2, 2))), "resample it"),
        (lambda s: s.mask(np.zeros((48, 64, 6))), "it is empty"),
        (lambda s: s.mask(np.full((48, 64, 6), 0.4)), "it is empty"),
        (lambda s: s.mask(np.where(np.arange(6) > 2, 5.0, -5.0) * np.ones((48, 64, 6))), "are no mask"),
        (lambda s: s.mask(np.full((48, 64, 6), np.nan)), "NaN"),
        (lambda s: s.mask(np.arange(6) * np.ones((48, 64, 6), int)), r"holds 5 labels \(1, 2, 3, 4, 5\)"),
        (lambda s: s.save(), "in memory alone"),
        (lambda s: s.reweigh("nobody", 1.0), "no exemplar nobody"),
    ],
)
def test_mistakes_are_told_in_one_line_and_change_nothing(session, act, message):
    with pytest.raises(ValueError, match=message) as caught:
        act(session)
    assert "\n" not in str(caught.value)
    assert session.actions == ()
    assert session.state.lesions == {}


def test_the_scan_is_gone_through_again_only_for_other_exemplars(monkeypatch):
    scan, segmenter = three_lesions(), make_segmenter()
    session = InteractiveSession(LesionModel.of(segmenter), scan)
    asked = []
    prepare = segmenter.prepare
    monkeypatch.setattr(segmenter, "prepare", lambda *given: asked.append(given) or prepare(*given))
    session.click(lps(scan, 2, 20, 20))
    found = session.propagate()
    first = session.label_map()
    session.lock(1)
    assert session.propagate() == found
    assert len(asked) == 1  # the same exemplars, the same answer
    assert torch.equal(session.label_map(), first)
    session.reweigh(next(iter(session.state.exemplars)), 2.0)
    session.propagate()
    assert len(asked) == 2
    session.undo()
    session.undo()  # before the other weight
    session.propagate()
    assert len(asked) == 3  # one answer is kept, the latest


class Merging(FakePropagation):
    """Keeps the first of what is more than `most`, and notes how many exemplars it was handed."""

    def condense(self, exemplars, most):
        self.handed = exemplars.count
        return exemplars.pick(slice(0, most))


@pytest.mark.parametrize(("propagation", "taken"), [(FakePropagation(), 2), (Merging(), 41)])
def test_what_merges_exemplars_is_handed_all_of_them_and_others_the_most_different(propagation, taken):
    segmenter, scan = make_segmenter(most_exemplars=2), three_lesions()
    segmenter.propagation = propagation
    session = InteractiveSession(LesionModel.of(segmenter), scan)
    session.click(lps(scan, 2, 20, 20))
    bank, first = session.bank, session.bank[key_of(session, 1)]
    for number in range(41):
        tokens = {name: token + number + 1 for name, token in first.tokens.items()}
        bank.add(replace(first, key=f"other:{number}", weight=min(1.0, number), tokens=tokens))
    session.use_bank(bank)  # 42 exemplars, one of them without weight
    session.propagate()
    keys, asked = session._bench.on_scan.exemplars_in_use(session.state)
    assert len(keys) == asked.count == len(session.attribute()) == taken
    assert "other:0" not in keys
    assert getattr(propagation, "handed", taken) == taken


@pytest.mark.parametrize("level", ["exemplars", "mixed", "pooled", "known", "cautious", "selective", "moderate"])
def test_the_plain_answer_has_a_say_where_the_exemplars_find_each_other_by_it(level):
    segmenter, scan = make_segmenter(level=level), three_lesions()
    segmenter.propagation = Undecided()
    session = InteractiveSession(LesionModel.of(segmenter), scan)
    session.click(lps(scan, 2, 20, 20))
    session.click(lps(scan, 3, 46, 32))
    answer = session._bench.on_scan.answer(session.state)
    assert answer.plain is None
    lesions = as_stack(scan.lesions)
    inside = (lesions == 1) | (lesions == 2)
    if level != "exemplars":
        assert np.array_equal(answer.probability.numpy() > 0.5, inside)
    else:
        assert (answer.probability[torch.from_numpy(~inside)] > 0.5).any()
