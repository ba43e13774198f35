"""What a click will show on its slice, before it is made; and that nothing is decoded twice for it."""

from dataclasses import replace

import pytest
import torch

from mois.inference.segmenter import VolumeSegmenter
from mois.session import InteractiveSession
from mois.sharing.lesion_model import LesionModel
from tests.support.fake_model import TYPE_A, box, make_scan
from tests.support.session_fakes import A1, as_stack, bundled_nano, lps, make_model, make_segmenter, three_lesions


@pytest.fixture(scope="module")
def nano():
    return bundled_nano()


@pytest.fixture
def decoded(nano, monkeypatch):
    """Whether each call of `decode` answered prompts, in order."""
    calls, decode = [], nano.segmenter.backbone.decode
    monkeypatch.setattr(
        nano.segmenter.backbone, "decode", lambda *given: calls.append(given[1] is not None) or decode(*given)
    )
    return calls


def click_as_previewed(session, *click, **which):
    """Preview a click twice and make it; returns the voxels that it shows on its slice."""
    state, actions = session.state, session.actions
    shown = session.preview(*click, **which)
    assert torch.equal(session.preview(*click, **which).mask, shown.mask)
    assert (session.state, session.actions) == (state, actions)
    lesion = session.click(*click, **which)
    assert shown.lesion == lesion
    there = session.label_map().select(shown.axis, shown.index) == lesion
    assert shown.mask.dtype == torch.bool
    assert torch.equal(shown.mask, there)
    return int(there.sum())


CORRECTIONS = [
    ((2, 20, 20), True),
    ((2, 22, 22), True),
    ((2, 17, 17), False),
    ((3, 20, 20), True),
    ((3, 18, 18), False),
    ((1, 22, 22), True),
    ((2, 21, 17), True),  # a slice that others, answered later, know
    ((5, 20, 20), False),  # nothing there
]


@pytest.mark.parametrize("model", ["fake", "nano"])
def test_a_click_shows_what_its_preview_showed(model, nano):
    scan = three_lesions()
    session = InteractiveSession(nano if model == "nano" else make_model(), scan)
    voxels = [
        click_as_previewed(session, lps(scan, *place), lesion=1 if number else None, positive=positive)
        for number, (place, positive) in enumerate(CORRECTIONS)
    ]
    assert all(voxels[:-1])


@pytest.mark.parametrize("clicks", ["matched", "bounded", "followed", "near"])
@pytest.mark.parametrize("model", ["fake", "nano"])
def test_matched_clicks_are_previewed_too_and_what_was_clicked_holds(model, clicks, nano):
    scan = three_lesions()
    given = make_segmenter() if model == "fake" else nano.segmenter
    settings = replace(given.settings, clicks=clicks)
    matched = LesionModel.of(VolumeSegmenter(given.backbone, given.propagation, settings))
    session = InteractiveSession(matched, scan)
    for number, (place, positive) in enumerate(CORRECTIONS[:5]):
        click_as_previewed(session, lps(scan, *place), lesion=1 if number else None, positive=positive)
    lesion = as_stack(session.label_map()) == 1
    assert [lesion[place] for place, _ in CORRECTIONS[:5]] == [positive for _, positive in CORRECTIONS[:5]]


def test_a_click_on_a_found_lesion_shows_what_its_preview_showed():
    scan = three_lesions()
    session = InteractiveSession(make_model(), scan)
    session.click(lps(scan, 2, 20, 20))
    assert session.propagate() == 1
    taken = session.preview(lps(scan, 3, 46, 32))
    assert taken.lesion == 2
    assert click_as_previewed(session, lps(scan, 4, 44, 30), lesion=2, positive=False) < 12 * 8  # less than was found
    session.undo()
    assert click_as_previewed(session, lps(scan, 3, 46, 32)) == taken.mask.sum() == 12 * 8 - 4


def test_a_preview_leaves_others_their_voxels():
    scan = three_lesions()
    session = InteractiveSession(make_model(), scan)
    half = torch.zeros_like(scan.lesions)
    half[16:20, 16:24, 1:4] = 1  # the left half of A1
    session.mask(half)
    assert click_as_previewed(session, lps(scan, 2, 20, 22)) == 4 * 8 - 2  # the fake misses two corners
    assert click_as_previewed(session, lps(scan, 3, 22, 22), lesion=1) == 4 * 8 - 2  # all of A1, but for lesion 2


def test_a_preview_of_a_lesion_over_several_tiles_shows_what_is_followed_there_from_the_other():
    scan = make_scan([(TYPE_A, box((1, 4), (10, 54), (16, 24)))])
    session = InteractiveSession(make_model(overlap=0.25), scan)
    one = click_as_previewed(session, lps(scan, 2, 14, 20))
    both = click_as_previewed(session, lps(scan, 3, 50, 20), lesion=1)  # another tile, another slice
    assert both > one
    assert click_as_previewed(session, lps(scan, 1, 14, 20), lesion=1) == both


def test_a_scan_smaller_than_a_tile_is_previewed_too():
    scan = make_scan([(TYPE_A, box((1, 2), (8, 16), (8, 16)))], shape=(3, 24, 28))
    assert click_as_previewed(InteractiveSession(make_model(), scan), lps(scan, 1, 10, 10)) == 8 * 8 - 4


@pytest.mark.parametrize("slice_axis", ["left-right", "anterior-posterior", "superior-inferior"])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, 1)])
def test_a_preview_lies_on_the_scanners_grid(slice_axis, signs):
    scan = three_lesions()
    axes = [axis for axis, sign in enumerate(signs) if sign < 0]
    affine = scan.affine.clone()
    for axis in axes:
        affine[:3, 3] += affine[:3, axis] * (scan.image.shape[axis] - 1)
        affine[:3, axis] *= -1
    turned = scan._replace(image=scan.image.flip(axes), lesions=scan.lesions.flip(axes), affine=affine)
    session = InteractiveSession(make_model(slice_axis=slice_axis, tile_px=64), turned)
    assert click_as_previewed(session, lps(scan, 2, 20, 20)) > 0


def test_a_click_after_its_preview_and_earlier_prompts_are_not_decoded_again(nano, decoded):
    scan = three_lesions()
    session = InteractiveSession(nano, scan)
    prompted = []
    for number, (place, positive) in enumerate(CORRECTIONS[:4]):
        decoded.clear()
        session.preview(lps(scan, *place), 1 if number else None, positive)
        prompted.append(decoded.count(True))
        assert len(decoded) == 1
        decoded.clear()
        session.click(lps(scan, *place), 1 if number else None, positive)
        assert decoded.count(True) == 0
    assert prompted == [1, 1, 1, 1]
    decoded.clear()
    session.undo()
    session.click(lps(scan, *CORRECTIONS[3][0]), 1)
    assert decoded == []  # the same prompts, in one tile: nor is it followed again


def test_the_answers_that_are_kept_are_few(nano, decoded, monkeypatch):
    monkeypatch.setattr("mois.session.prompts.slice_answers.MAX_ANSWERS", 2)
    scan = three_lesions()
    session = InteractiveSession(nano, scan)
    points = [lps(scan, 2, row, 20) for row in (18, 20, 22)]
    for point in points:
        session.preview(point)
    assert len(decoded) == 3
    session.preview(points[1])
    assert len(decoded) == 3
    session.preview(points[0])
    assert len(decoded) == 4


def test_an_answer_is_not_kept_for_a_slice_that_knows_others():
    scan = three_lesions()
    session = InteractiveSession(make_model(tile_px=64), scan)
    session.click(lps(scan, 2, 20, 20))
    assert session.preview(lps(scan, 3, 17, 17), 1, positive=False).mask.any()  # the rest of A1
    session.undo()
    session.click(lps(scan, 2, 40, 12))  # B1 on slice 2, and nothing like it on slice 3
    assert not session.preview(lps(scan, 3, 17, 17), 1, positive=False).mask.any()


def test_undone_redone_and_previewed_sessions_are_their_replay_bit_by_bit(nano, tmp_path):
    scan = three_lesions()
    session = InteractiveSession(nano, scan, tmp_path / "whole")
    for number, (place, positive) in enumerate(CORRECTIONS):
        click_as_previewed(session, lps(scan, *place), lesion=1 if number else None, positive=positive)
        session.preview(lps(scan, 2, 18, 20), 1)
        session.undo()
        if number % 2:
            session.redo()
        else:
            session.click(lps(scan, *place), 1 if number else None, positive)
    again = InteractiveSession.replay(tmp_path / "whole", nano, scan)
    session.close()
    loaded = InteractiveSession.load(tmp_path / "whole", nano, scan)
    for _ in CORRECTIONS:
        for other in (again, loaded):
            assert torch.equal(other.label_map(), session.label_map())
            for key, exemplar in session.state.exemplars.items():
                for name, token in exemplar.tokens.items():
                    assert torch.equal(token, other.state.exemplars[key].tokens[name])
        assert [one.undo() for one in (session, again, loaded)] == [True] * 3
    loaded.close()


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ({"point_lps_mm": (1e4, 0, 0)}, "outside the scan"),
        ({"point_lps_mm": (float("nan"), 0, 0)}, "three numbers"),
        ({"point_lps_mm": (30.0, 30.0, 10.0), "lesion": 7}, "lesion=7 does not exist"),
        ({"point_lps_mm": (9.0, 9.0, 10.0), "positive": False}, "negative click outside every lesion"),
        ({"point_lps_mm": (30.0, 30.0, 10.0)}, "lies in lesion 1"),
        ({"point_lps_mm": (30.0, 30.0, 10.0), "lesion": 1}, "lesion=1 is locked"),
    ],
)
def test_a_preview_refuses_what_the_click_refuses(which, message):
    scan = three_lesions()
    session = InteractiveSession(make_model(), scan)
    session.click(lps(scan, A1[0].start, 20, 20))
    session.lock(1)
    for act in (session.preview, session.click):
        with pytest.raises(ValueError, match=message):
            act(**which)


DRAWINGS = {
    "box": [(2, 15, 15), (2, 25, 25)],
    "scribble": [(2, 18, 18), (2, 20, 22)],
    "lasso": [(2, 15, 15), (2, 15, 25), (2, 25, 25), (2, 25, 15)],
}


@pytest.mark.parametrize(("model", "kind"), [*(("fake", kind) for kind in DRAWINGS), ("nano", "scribble")])
def test_a_drawing_shows_what_its_preview_showed(model, kind, nano):
    scan = three_lesions()
    session = InteractiveSession(nano if model == "nano" else make_model(), scan)
    points = [lps(scan, *voxel) for voxel in DRAWINGS[kind]]
    small = [lps(scan, 2, row, column) for row, column in ((15, 15), (18, 18), (15, 18))]
    less = small[:2] if kind == "box" else small
    for given, which in ((points, {}), (less, {"lesion": 1, "positive": False})):
        shown, state = session.preview_drawing(kind, given, **which), session.state
        assert session.state is state
        lesion = session.box(*given, **which) if kind == "box" else getattr(session, kind)(given, **which)
        assert shown.lesion == lesion
        assert torch.equal(shown.mask, session.label_map().select(shown.axis, shown.index) == lesion)
        assert shown.mask.any()


def test_a_negative_drawing_without_a_lesion_has_no_preview():
    scan = three_lesions()
    session = InteractiveSession(make_model(), scan)
    points = [lps(scan, *voxel) for voxel in DRAWINGS["scribble"]]
    with pytest.raises(ValueError, match="what must not be found"):
        session.preview_drawing("scribble", points, positive=False)
    session.scribble(points)
    with pytest.raises(ValueError, match="the scribble crosses lesion 1"):
        session.preview_drawing("scribble", points)
