"""Several models in one session, each for lesions of its own type."""

from dataclasses import replace

import pytest
import torch

from mois.session import InteractiveSession
from mois.session.journal import read_journal
from mois.sharing.bank import ExemplarBank
from mois.sharing.lesion_model import LesionModel
from tests.support.session_fakes import journal_of, key_of, lps, make_model, other_model


def two_types(scan, out=None):
    """Lesion 1 and 2 by the first model (2 is found), lesion 3 of type round by the other."""
    session = InteractiveSession(make_model(), scan, out)
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    session.use("round", other_model())
    assert session.click(lps(scan, 2, 40, 12)) == 3
    session.propagate()
    return session


def types(session):
    return {row.id: (row.type, row.origin) for row in session.lesions()}


def test_every_lesion_has_a_type_and_every_type_its_exemplars(scan):
    session = two_types(scan)
    assert types(session) == {1: ("", "prompted"), 2: ("", "found"), 3: ("round", "prompted")}
    assert [item.key for item in session.bank] == [key_of(session, 3)]
    assert session.bank.identity == session._types.of("round").model.identity
    session.use("")
    assert [item.key for item in session.bank] == [key_of(session, 1)]
    assert session.types == ("", "round")


def test_a_propagation_finds_lesions_of_its_type_and_leaves_those_of_others(scan):
    session = two_types(scan)
    before = session.label_map()
    session.use("")
    assert session.propagate() == 1
    assert torch.equal(session.label_map(), before)
    assert not session.state.lesions[2].locked


def test_an_action_on_a_lesion_is_for_the_type_of_the_lesion(scan):
    session = two_types(scan)
    session.accept(2)  # while round is the current type
    assert session.state.exemplar_types == {key_of(session, 3): "round"}
    assert [item.key for item in session.bank] == [key_of(session, 3)]
    session.click(lps(scan, 2, 17, 17), 1, positive=False)
    assert session.lesions()[0].type == ""
    session.forget(key_of(session, 1))
    assert sorted(session.state.exemplars) == [key_of(session, 2), key_of(session, 3)]
    session.unlock(2)
    session.reject(2)
    assert session.state.of_type("").rejected.keys() == {key_of(session, 2)}
    assert session.state.of_type("round").rejected == {}


def test_a_negative_scribble_on_a_found_lesion_of_another_type_is_for_that_type(scan):
    session = two_types(scan)
    assert session.scribble([lps(scan, 3, 45, 29), lps(scan, 3, 45, 34)], positive=False) == 2
    assert session.state.of_type("").exemplars[key_of(session, 2)].negative
    assert session.state.exemplar_types == {key_of(session, 3): "round"}
    assert session.state.type == "round"


def test_a_click_on_a_found_lesion_of_another_type_takes_it(scan):
    session = two_types(scan)
    assert session.click(lps(scan, 3, 46, 32)) == 2
    assert types(session)[2] == ("round", "prompted")


def test_tiles_are_encoded_again_only_by_another_backbone_or_other_tiles(scan):
    session = InteractiveSession(make_model(), scan)
    session.use("same", other_model())
    session.use("finer", other_model(pixel_mm=0.75))
    changed = other_model()
    changed.segmenter.backbone.register_buffer("more", torch.ones(1))
    session.use("changed", LesionModel.of(changed.segmenter))
    first = session._types.of("").encoded
    assert [session._types.of(name).encoded is first for name in ("same", "finer", "changed")] == [True, False, False]
    session.use("same")
    session.click(lps(scan, 2, 20, 20))
    assert session._types.of("same").segmenter.backbone.encoded == 0  # the first model's store encodes


def test_all_types_are_propagated_and_the_current_type_stays(scan):
    session = two_types(scan)
    before = session.label_map()
    session.use("unused", other_model(peak_threshold=0.9))
    session.use("")
    assert session.propagate_all() == {"round": 0, "": 1}
    assert session.state.type == ""
    assert torch.equal(session.label_map(), before)
    session.use("unused")
    assert session.propagate_all() == {"": 1, "round": 0}
    assert session.state.type == "unused"


def test_a_propagation_in_steps_is_that_of_the_current_type(scan, monkeypatch):
    expected = two_types(scan).label_map()
    session = InteractiveSession(make_model(), scan)
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    session.use("round", other_model())
    steps = session.prepare_propagation()
    next(steps)
    session.click(lps(scan, 2, 40, 12))  # between two steps: the search ends
    assert (list(steps), session.is_prepared) == ([], False)
    assert list(session.prepare_propagation())
    monkeypatch.setattr(session._bench.segmenter, "opinions", None)  # all is found
    session.propagate()
    assert torch.equal(session.label_map(), expected)


def test_undo_goes_back_to_the_type_before(scan):
    session = two_types(scan)
    for _ in range(3):
        session.undo()
    assert session.state.type == ""
    session.redo()
    assert session.state.type == "round"


def test_a_session_of_several_types_is_loaded_and_replayed_with_its_models(scan, tmp_path):
    session = two_types(scan, tmp_path / "out")
    session.save()
    session.close()
    models = {"round": other_model()}
    loaded = InteractiveSession.load(tmp_path / "out", make_model(), scan, models=models)
    replayed = InteractiveSession.replay(tmp_path / "out", make_model(), scan, models=models)
    for other in (loaded, replayed):
        assert torch.equal(other.label_map(), session.label_map())
        assert types(other) == types(session)
        assert other.state.exemplar_types == session.state.exemplar_types
        assert other.state.type == "round"
    header, *rows = (tmp_path / "out" / "lesions.csv").read_text().splitlines()
    assert header.endswith(",type")
    assert [row.rsplit(",", 1)[1] for row in rows] == ["", "", "round"]
    saved = ExemplarBank.load(tmp_path / "out" / "bank.round.safetensors", other_model().identity, 1.5)
    assert [item.key for item in saved] == [key_of(session, 3)]
    loaded.close()
    for given, message in (
        ({}, "type=round has no model in this session .there is none.; give its model"),
        ({"round": other_model(peak_threshold=0.9)}, "type=round was made with another model, settings"),
    ):
        with pytest.raises(ValueError, match=message):
            InteractiveSession.load(tmp_path / "out", make_model(), scan, models=given)
        with pytest.raises(ValueError, match=message):
            InteractiveSession.replay(tmp_path / "out", make_model(), scan, models=given)


def test_banks_of_a_type_are_read_again(scan, tmp_path):
    session = two_types(scan, tmp_path / "out")
    session.bank.save(tmp_path / "round.safetensors")
    session.close()
    again = InteractiveSession(make_model(), scan, tmp_path / "again", models={"round": other_model()})
    again.use("round")
    assert again.use_bank(tmp_path / "round.safetensors") == 1
    again.use("")
    with pytest.raises(ValueError, match="propagation"):
        again.use_bank(tmp_path / "round.safetensors")
    again.close()
    loaded = InteractiveSession.load(tmp_path / "again", make_model(), scan, models={"round": other_model()})
    assert set(loaded.state.exemplar_types.values()) == {"round"}


def test_a_session_of_one_model_is_written_as_before(scan, session, tmp_path):
    session.click(lps(scan, 2, 20, 20))
    folder = journal_of(session, tmp_path)
    assert "type" not in (folder / "lesions.csv").read_text().splitlines()[0]
    assert b"_types" not in (folder / "states" / "000001.safetensors").read_bytes()
    assert [action.name for action in read_journal(folder).actions] == ["click"]
    assert not list(folder.glob("bank.*.safetensors"))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda s: s.use("round"), "type=round has no model in this session"),
        (lambda s: s.use("../round", other_model()), "write 1 to 40 letters"),
        (lambda s: s.use("", other_model()), "write 1 to 40 letters"),
        (lambda s: s.use("known", other_model(peak_threshold=0.9)), "type=known has another model in this session"),
        (lambda s: s.use("sagittal", other_model(slice_axis="left-right")), "takes slices across another axis"),
    ],
)
def test_a_type_that_cannot_be_used_is_told_in_one_line(session, act, message):
    session.use("known", other_model())
    state = session.state
    with pytest.raises(ValueError, match=message) as refused:
        act(session)
    assert "\n" not in str(refused.value)
    assert session.state is state


def test_the_first_type_may_have_a_name(scan, tmp_path):
    session = InteractiveSession(make_model(), scan, tmp_path / "out", type="long", models={"round": other_model()})
    session.click(lps(scan, 2, 20, 20))
    session.use("round")
    session.click(lps(scan, 2, 40, 12))
    session.use("long")
    assert session.types == ("long", "round")
    assert types(session) == {1: ("long", "prompted"), 2: ("round", "prompted")}
    with pytest.raises(ValueError, match="type=long has another model"):
        session.use("long", other_model())
    session.close()
    loaded = InteractiveSession.load(tmp_path / "out", make_model(), scan, models={"round": other_model()})
    assert types(loaded) == types(session)
    assert loaded.propagate_all() == {"round": 0, "long": 1}
    while loaded.undo():
        pass
    assert loaded.state.type == "long"
    with pytest.raises(ValueError, match="type='a b'"):
        InteractiveSession(make_model(), scan, type="a b")


def test_further_types_go_on_by_the_settings_that_they_were_used_with(scan, tmp_path):
    def following(make, level):
        return replace(make(level=level), follows_sessions=True)

    session = InteractiveSession(following(make_model, "known"), scan, tmp_path)
    session.use("round", following(other_model, "known"))
    session.click(lps(scan, 2, 40, 12))
    session.close()
    for version in range(2):  # the second goes on with what the first has written
        models = {name: following(other_model, "selective") for name in ("round", "later")[: version + 1]}
        with pytest.warns(UserWarning, match="settings it was made with"):
            back = InteractiveSession.load(tmp_path, following(make_model, "selective"), scan, models=models)
        assert back._types.of("round").segmenter.settings.level == "known"
        if version:
            assert back._types.of("later").segmenter.settings.level == "selective"
        back.use("later", models.get("later") or following(other_model, "selective"))
        back.use("round")
        back.close()
    with pytest.raises(ValueError, match="type=round was made with another model, settings or calibration"):
        InteractiveSession.load(
            tmp_path, following(make_model, "selective"), scan, models={"round": other_model(level="selective")}
        )
