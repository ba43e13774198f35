"""Scribbles, lassos, and negative boxes and masks, with a model that can be computed by hand."""

import numpy as np
import pytest
import torch

from mois.session import InteractiveSession
from mois.session.journal import read_journal
from mois.session.prompts import slice_answers
from mois.session.prompts.given_prompts import drawn_voxels
from tests.support.fake_model import TYPE_A, box, make_scan
from tests.support.session_fakes import as_stack, count, journal_of, key_of, lps, make_model, three_lesions


def line(scan, slice_index, *places):
    return [lps(scan, slice_index, row, column) for row, column in places]


def square(scan, slice_index, top, left, bottom, right):
    """An outline half a pixel around the rows top to bottom - 1 and the columns left to right - 1."""
    rows, columns = (top - 0.5, bottom - 0.5), (left - 0.5, right - 0.5)
    return line(scan, slice_index, *((rows[0], columns[0]), (rows[0], columns[1]), (rows[1], columns[1]),
                                     (rows[1], columns[0])))  # fmt: skip


def lesion(session, number):
    return as_stack(session.label_map()) == number


def test_a_scribble_gives_a_lesion_that_holds_all_drawn_voxels(scan, session):
    assert session.scribble(line(scan, 2, (18, 18), (18, 22), (26, 22))) == 1
    mask = lesion(session, 1)
    assert mask[1].any()
    assert mask[3].any()  # tracked
    assert mask[2, 18, 18:23].all()
    assert mask[2, 18:27, 22].all()  # beyond the lesion too: so it was drawn
    assert session.lesions()[0].clicks == 1


def test_the_model_gets_the_middle_of_a_scribble_and_then_up_to_eight_places_along_it(scan, session, monkeypatch):
    asked = []
    backbone = session._bench.segmenter.backbone
    decode = backbone.decode
    monkeypatch.setattr(
        backbone, "decode", lambda features, prompts, *rest: asked.append(prompts) or decode(features, prompts, *rest)
    )
    session.scribble(line(scan, 3, (46, 28), (46, 36)))
    assert [given.labels.tolist() for given in asked if given is not None] == [[[1]], [[1] * 8]]
    last = [given for given in asked if given is not None][-1]
    columns = last.points[0, :, 0].tolist()
    assert np.diff(sorted(columns)) == pytest.approx(np.ones(7))
    assert columns[0] == pytest.approx(min(columns) + 3)  # the middle first
    session.scribble(line(scan, 3, (41, 29), (41, 30)), 1, positive=False)
    assert [given.labels.tolist() for given in asked if given is not None][2:] == [[[1] * 8 + [0]], [[1] * 8 + [0] * 2]]


def test_where_clicks_are_matched_the_model_gets_the_middle_and_the_match_the_whole_scribble(monkeypatch):
    scan = three_lesions()
    session = InteractiveSession(make_model(clicks="matched"), scan)
    asked, matched = [], []
    backbone = session._bench.segmenter.backbone
    decode, match = backbone.decode, slice_answers.match_answer
    monkeypatch.setattr(
        backbone, "decode", lambda features, prompts, *rest: asked.append(prompts) or decode(features, prompts, *rest)
    )
    monkeypatch.setattr(
        slice_answers, "match_answer", lambda *given: matched.append(given[2].labels.tolist()) or match(*given)
    )
    session.scribble(line(scan, 3, (46, 29), (46, 34)))
    assert [given.labels.tolist() for given in asked if given is not None] == [[[1]]]
    assert matched == [[[1] * 6]]
    assert lesion(session, 1)[3, 46, 29:35].all()


def test_a_negative_scribble_takes_drawn_voxels_out_of_a_lesion(scan, session):
    session.click(lps(scan, 3, 46, 32))
    assert session.scribble(line(scan, 3, (42, 29), (42, 34)), 1, positive=False) == 1
    mask = lesion(session, 1)
    assert not mask[3, 42, 29:35].any()
    assert mask[3, 50, 30:34].all()
    # it names no lesion: it lies on a prompted lesion, and corrects that one
    assert session.scribble(line(scan, 3, (50, 30), (50, 33)), positive=False) == 1
    assert not lesion(session, 1)[3, 50, 30:34].any()


def test_a_lasso_holds_its_lesion_within_one_pixel(scan, session):
    assert session.lasso(square(scan, 2, 18, 18, 22, 22)) == 1  # the model sees more: the whole of A1
    mask = lesion(session, 1)
    assert mask[2, 18:22, 18:22].all()
    beyond = mask[2].copy()
    beyond[17:23, 17:23] = False
    assert not beyond.any()
    assert mask[3].any()
    assert mask[1].any()
    # a click outside the outline says that the lesion reaches further
    session.click(lps(scan, 2, 16, 20), 1)
    assert lesion(session, 1)[2, 16, 20]


def test_a_negative_lasso_takes_its_inside_out_until_a_positive_prompt_covers_it(scan, session):
    session.click(lps(scan, 2, 20, 20))
    whole = lesion(session, 1)
    assert session.lasso(square(scan, 2, 16, 16, 20, 24), 1, positive=False) == 1
    mask = lesion(session, 1)
    assert not mask[2, 16:20].any()
    assert mask[2, 20:24].any()
    session.click(lps(scan, 2, 22, 22), 1)  # elsewhere: the place stays out
    assert not lesion(session, 1)[2, 16:20].any()
    session.click(lps(scan, 2, 17, 17), 1)  # in it: this place alone comes back
    assert lesion(session, 1)[2, 17, 17]
    assert not lesion(session, 1)[2, 19, 20:24].any()
    session.box(lps(scan, 2, 15, 15), lps(scan, 2, 24, 24), 1)
    assert np.array_equal(lesion(session, 1)[2], whole[2])


def test_negative_boxes_and_masks_take_their_voxels_out(scan, session):
    session.click(lps(scan, 2, 20, 20))
    session.box(lps(scan, 2, 16, 16), lps(scan, 2, 19, 23), 1, positive=False)
    assert not lesion(session, 1)[2, 16:20].any()
    assert lesion(session, 1)[2, 20:24].any()
    out = torch.zeros_like(scan.lesions)
    out[16:24, 16:24, 1] = 1
    session.mask(out, 1, positive=False)
    assert not lesion(session, 1)[1].any()
    assert lesion(session, 1)[3].any()
    out[16:20, 16:24, :] = 1  # on all slices
    session.mask(out, 1, positive=False)
    assert not (lesion(session, 1) & (as_stack(out) > 0)).any()
    assert lesion(session, 1).any()


def test_a_mask_that_the_reader_gave_is_kept_but_for_what_is_taken_out(scan, session):
    given = torch.zeros_like(scan.lesions)
    given[30:34, 42:48, 3] = 1
    session.mask(given)
    session.lasso(square(scan, 3, 42, 30, 44, 34), 1, positive=False)
    expected = as_stack(given)[3] > 0
    expected[42:44] = False
    assert np.array_equal(lesion(session, 1)[3], expected)


def negatives(session, scan, kind):
    """A negative prompt of a kind that names no lesion, on lesion A2 on slice 3."""
    if kind == "scribble":
        return session.scribble(line(scan, 3, (45, 26), (45, 34)), positive=False)
    if kind == "lasso":
        return session.lasso(square(scan, 3, 42, 30, 46, 40), positive=False)
    if kind == "box":
        return session.box(lps(scan, 3, 38, 26), lps(scan, 3, 44, 40), positive=False)
    mask = torch.zeros_like(scan.lesions)
    mask[30:34, 42:46, 3] = 1
    return session.mask(mask, positive=False)


@pytest.mark.parametrize("kind", ["scribble", "lasso", "box", "mask"])
def test_a_negative_prompt_on_a_found_lesion_rejects_it(scan, kind):
    session = InteractiveSession(make_model(), scan)
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    assert negatives(session, scan, kind) == 2
    assert session.state.exemplars[key_of(session, 2)].negative
    assert count(session, 2) == 0
    session.propagate()
    assert [row.id for row in session.lesions()] == [1]
    session.undo()
    session.undo()
    assert count(session, 2) > 0


@pytest.mark.parametrize("kind", ["scribble", "lasso", "box", "mask"])
def test_a_negative_prompt_where_no_lesion_is_becomes_a_negative_exemplar(scan, kind):
    session = InteractiveSession(make_model(), scan)
    session.click(lps(scan, 2, 20, 20))
    assert negatives(session, scan, kind) == 2
    assert session.state.exemplars[key_of(session, 2)].negative
    assert list(session.state.rejected) == [key_of(session, 2)]
    assert [row.id for row in session.lesions()] == [1]
    assert session.click(lps(scan, 2, 40, 12)) == 3  # the id is not used twice


def test_a_negative_prompt_does_not_change_a_locked_lesion(scan, session):
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    session.accept(2)
    with pytest.raises(ValueError, match="lesion=2 is locked"):
        negatives(session, scan, "scribble")


def test_a_positive_drawing_on_a_found_lesion_is_for_that_lesion(scan, session):
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    assert session.scribble(line(scan, 3, (44, 30), (48, 33))) == 2
    session.undo()
    assert session.lasso(square(scan, 3, 40, 28, 52, 36)) == 2
    assert session.lesions()[1].origin == "prompted"


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda s, scan: s.scribble(line(scan, 2, (20, 20))), "1 points; a scribble has 2"),
        (lambda s, scan: s.scribble([]), "0 points; a scribble has 2"),
        (lambda s, scan: s.lasso(line(scan, 2, (20, 20), (22, 22))), "2 points; a lasso has 3"),
        (lambda s, scan: s.scribble(line(scan, 2, *[(20, 20)] * 10_001)), "has 2 to 10000 points"),
        (
            lambda s, scan: s.scribble([lps(scan, 1, 20, 20), lps(scan, 3, 20, 20)]),
            "on slice 1 and .* on slice 3; a scribble is drawn on one slice",
        ),
        (
            lambda s, scan: s.lasso([lps(scan, 1, 20, 20), lps(scan, 1, 22, 20), lps(scan, 4, 22, 22)]),
            "a lasso is drawn on one slice",
        ),
        (lambda s, scan: s.scribble([lps(scan, 2, 20, 20), (999.0, 0.0, 0.0)]), "lies outside the scan"),
        (lambda s, scan: s.scribble([lps(scan, 2, 20, 20), (1.0, 2.0)]), "must be three numbers"),
        (lambda s, scan: s.lasso(square(scan, 2, 20, 20, 20, 30)), "holds no centre of a voxel"),
        (lambda s, scan: s.scribble(line(scan, 2, (18, 10), (18, 20))), "crosses lesion 1; give lesion=1"),
        (lambda s, scan: s.scribble(line(scan, 2, (18, 10), (18, 20)), 9), "lesion=9 does not exist"),
    ],
)
def test_drawings_that_cannot_be_used_end_in_one_line_and_change_nothing(scan, session, act, message):
    session.click(lps(scan, 2, 20, 20))
    state = session.state
    with pytest.raises(ValueError, match=message) as refused:
        act(session, scan)
    assert "\n" not in str(refused.value)
    assert session.state is state
    assert len(session.actions) == 1


def drawn_session(scan, out=None):
    """Prompts of all kinds, positive and negative."""
    session = InteractiveSession(make_model(), scan, out)
    session.scribble(line(scan, 2, (18, 18), (22, 22)))
    session.scribble(line(scan, 2, (17, 16), (17, 20)), 1, positive=False)
    session.lasso(square(scan, 3, 40, 28, 52, 36))
    session.lasso(square(scan, 3, 40, 28, 44, 36), 2, positive=False)
    session.box(lps(scan, 2, 36, 8), lps(scan, 2, 43, 15))
    session.box(lps(scan, 2, 36, 8), lps(scan, 2, 37, 15), 3, positive=False)
    out_of_it = torch.zeros_like(scan.lesions)
    out_of_it[8:10, 36:44, 2] = 1
    session.mask(out_of_it, 3, positive=False)
    session.scribble(line(scan, 5, (10, 40), (14, 40)), positive=False)
    session.undo()
    session.redo()
    session.propagate()
    return session


def test_drawings_are_replayed_and_loaded_voxel_by_voxel(scan, tmp_path):
    session = drawn_session(scan, tmp_path / "out")
    session.close()
    loaded = InteractiveSession.load(tmp_path / "out", make_model(), scan)
    replayed = InteractiveSession.replay(tmp_path / "out", make_model(), scan)
    for other in (loaded, replayed):
        assert torch.equal(other.label_map(), session.label_map())
        assert other.state.exemplars.keys() == session.state.exemplars.keys()
    before = loaded.state.lesions[3].prompts
    assert [(each.kind, each.positive) for each in before] == [("box", True), ("box", False), ("mask", False)]
    loaded.click(lps(scan, 2, 42, 12), 3)
    replayed.click(lps(scan, 2, 42, 12), 3)
    assert torch.equal(loaded.label_map(), replayed.label_map())


def test_boxes_and_masks_are_written_as_before_unless_they_are_negative(scan, session, tmp_path):
    session.box(lps(scan, 2, 16, 16), lps(scan, 2, 23, 23))
    session.box(lps(scan, 2, 16, 16), lps(scan, 2, 17, 23), 1, positive=False)
    positive, negative = read_journal(journal_of(session, tmp_path)).actions
    assert sorted(positive.arguments) == ["corners_lps_mm", "lesion"]
    assert negative.arguments["positive"] is False


def test_a_lesion_that_is_cut_is_not_tracked_from_what_was_cut_off():
    scan = make_scan([(TYPE_A, box((0, 6), (16, 24), (16, 24)))])
    session = InteractiveSession(make_model(), scan)
    session.click(lps(scan, 1, 20, 20))
    session.lasso(square(scan, 4, 10, 10, 30, 30), 1, positive=False)  # all of it on slice 4
    assert np.flatnonzero(lesion(session, 1).any((1, 2))).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_drawn_holds_and_is_replayed(scan, seed, tmp_path):
    """Drawings at random places: on their voxels the latest holds, unless another lesion owns them."""
    rng = np.random.default_rng(seed)
    session = InteractiveSession(make_model(), scan)
    for _ in range(8):
        kind, positive = str(rng.choice(["scribble", "lasso", "box"])), bool(rng.random() < 0.6)
        ids = list(session.state.lesions)
        number = int(rng.choice(ids)) if ids and rng.random() < 0.6 else None
        index, row, column = [(2, 20, 20), (3, 46, 32), (2, 40, 12)][rng.integers(3)]
        places = line(scan, index, *(np.array((row, column)) + rng.uniform(-9, 9, (5, 2))))
        try:
            number = session.box(*places[:2], number, positive) if kind == "box" else getattr(session, kind)(
                places, number, positive
            )  # fmt: skip
        except ValueError:  # such as a scribble across another lesion
            continue
        if number not in session.state.lesions or (positive and kind != "scribble"):
            continue
        prompt = session.state.lesions[number].prompts[-1]
        drawn, owned = (np.zeros(session._bench.grid.stack_shape, dtype=bool) for _ in range(2))
        drawn_voxels(session._bench.grid, prompt).paint(drawn, True)
        for mask in session.state.owned(but=number):
            mask.paint(owned, True)
        assert np.array_equal(lesion(session, number)[drawn & ~owned], np.full((drawn & ~owned).sum(), positive))
    replayed = InteractiveSession.replay(journal_of(session, tmp_path), make_model(), scan)
    assert torch.equal(replayed.label_map(), session.label_map())
