"""Saving, loading and handing on a session: journal, results and banks."""

import csv
import json
from dataclasses import replace

import nibabel as nib
import nrrd
import numpy as np
import pytest
import torch

from mois.inference.settings import InferenceSettings
from mois.session import InteractiveSession
from mois.session.header import bank_name, settings_of_session
from mois.sharing.bank import ExemplarBank
from mois.sharing.lesion_model import LesionModel
from tests.support.fake_model import TYPE_A, TYPE_B, make_scan
from tests.support.session_fakes import A1, A2, B1, cells, key_of, lps, make_model, make_segmenter


def test_a_saved_session_goes_on_as_if_it_had_never_been_left(scan, tmp_path):
    left, stayed = (InteractiveSession(make_model(), scan, tmp_path / name) for name in ("left", "stayed"))
    for session in (left, stayed):
        session.click(lps(scan, 2, 20, 20))
        session.propagate()
        session.click(lps(scan, 4, 44, 30), lesion=2, positive=False)
        session.undo()
    left.close()
    back = InteractiveSession.load(tmp_path / "left", make_model(), scan)
    for session in (back, stayed):
        assert session.redo()
        session.reject(2)
        session.click(lps(scan, 2, 40, 12))
        session.propagate()
    assert torch.equal(back.label_map(), stayed.label_map())
    assert back.lesions() == stayed.lesions()
    assert [a.name for a in back.actions] == [a.name for a in stayed.actions]
    for _ in range(6):
        assert back.undo() == stayed.undo()
        assert torch.equal(back.label_map(), stayed.label_map())
    again = InteractiveSession.replay(tmp_path / "left", make_model(), scan)
    assert torch.equal(again.label_map(), back.label_map())
    again.redo()
    back.redo()
    for key, exemplar in again.state.exemplars.items():
        for name, token in exemplar.tokens.items():
            assert torch.equal(token, back.state.exemplars[key].tokens[name])


def test_an_unfinished_last_line_is_ignored_and_a_damaged_middle_refused(scan, tmp_path):
    session = InteractiveSession(make_model(), scan, tmp_path)
    session.click(lps(scan, 2, 20, 20))
    one = session.label_map()
    session.click(lps(scan, 3, 46, 32))
    session.close()
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-7])
    back = InteractiveSession.load(tmp_path, make_model(), scan)
    assert torch.equal(back.label_map(), one)
    assert back.click(lps(scan, 3, 46, 32)) == 2
    back.close()
    assert len(journal.read_bytes().splitlines()) == 3
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(lines[0] + lines[1][:-9] + b"\n" + lines[2])
    with pytest.raises(ValueError, match="line 2 is cut short or no JSON"):
        InteractiveSession.load(tmp_path, make_model(), scan)


def test_one_process_at_a_time_and_no_session_over_another(scan, tmp_path):
    session = InteractiveSession(make_model(), scan, tmp_path)
    with pytest.raises(ValueError, match="is being written by this process"):
        InteractiveSession.load(tmp_path, make_model(), scan)
    session.close()
    with pytest.raises(ValueError, match="holds a session already"):
        InteractiveSession(make_model(), scan, tmp_path)


def test_a_session_is_refused_on_another_scan_model_or_setting(scan, tmp_path):
    InteractiveSession(make_model(), scan, tmp_path).close()
    other = scan._replace(image=scan.image + 1)
    with pytest.raises(ValueError, match="another scan"):
        InteractiveSession.load(tmp_path, make_model(), other)
    with pytest.raises(ValueError, match=r"inference\.threshold=0\.35, now it is 0\.5"):
        InteractiveSession.load(tmp_path, make_model(threshold=0.5), scan)
    with pytest.raises(ValueError, match=r"inference\.precision=32, now it is bf16"):
        InteractiveSession.load(tmp_path, make_model(precision="bf16"), scan)
    InteractiveSession.load(tmp_path, make_model(precision="32"), scan).close()  # what `auto` is on a CPU
    changed = make_segmenter()
    changed.backbone.anchor.data += 1
    with pytest.raises(ValueError, match="another model"):
        InteractiveSession.load(tmp_path, LesionModel.of(changed), scan)


def test_a_model_that_follows_sessions_goes_on_by_the_settings_of_then(scan, tmp_path):
    then = {"level": "known", "clicks": "bounded", "peak_threshold": 0.7}
    session = InteractiveSession(make_model(**then), scan, tmp_path)
    session.click(lps(scan, 2, 20, 20))
    session.close()
    now = make_segmenter(level="selective", clicks="followed", rejections="vetoes", split_prominence_mm=None)
    with pytest.raises(ValueError, match=r"made with inference\.level=known, now it is selective"):
        InteractiveSession.load(tmp_path, LesionModel.of(now), scan)
    follows = LesionModel.of(now, follows_sessions=True)
    for back in (
        InteractiveSession.load(tmp_path, follows, scan),
        InteractiveSession.replay(tmp_path, follows, scan),
    ):
        settings = back._bench.segmenter.settings
        assert settings == make_segmenter(**then).settings
        assert back._bench.segmenter.budget is now.budget
        assert torch.equal(back.label_map(), session.label_map())
        back.propagate()
        back.close()
    assert InteractiveSession(follows, scan)._bench.segmenter is now  # a new session has the settings of now


def test_what_a_model_cannot_follow_is_refused(scan, tmp_path):
    InteractiveSession(make_model(pixel_mm=1.25), scan, tmp_path).close()
    follows = LesionModel.of(make_segmenter(), follows_sessions=True)
    with pytest.raises(ValueError, match=r"made with inference\.pixel_mm=1\.25, now it is 1\.5"):
        InteractiveSession.load(tmp_path, follows, scan)


def test_a_value_that_this_version_does_not_know_is_not_followed():
    header = {"inference": {"level": "unheard_of", "clicks": "matched", "threshold": 0.4}}
    followed = settings_of_session(InferenceSettings(level="known", rejections="vetoes", overlap=0.25), header)
    assert followed == InferenceSettings(level="known", clicks="matched", threshold=0.4)


def test_results_are_files_on_the_scanners_grid(scan, tmp_path):
    session = InteractiveSession(make_model(), scan, tmp_path)
    session.click(lps(scan, 2, 20, 20))
    session.propagate()
    session.save()
    labels, sure = (nib.load(tmp_path / name) for name in ("lesions.nii.gz", "confidence.nii.gz"))
    assert labels.get_data_dtype() == np.int32
    assert sure.get_data_dtype() == np.float32
    assert np.allclose(labels.affine, scan.affine.numpy())
    assert np.array_equal(labels.get_fdata(), session.label_map().numpy())
    assert np.array_equal(sure.get_fdata()[labels.get_fdata() == 1], np.ones(cells(A1)))
    segments, header = nrrd.read(str(tmp_path / "lesions.seg.nrrd"))
    assert np.array_equal(segments, session.label_map().numpy())
    assert (header["Segment0_Name"], header["Segment1_LabelValue"]) == ("lesion 1", "2")
    with (tmp_path / "lesions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["origin"], row["exemplar"]) for row in rows] == [
        ("1", "prompted", key_of(session, 1)),
        ("2", "found", key_of(session, 1)),
    ]
    assert len(ExemplarBank.load(tmp_path / "bank.safetensors", session._bench.model.identity, 1.5)) == 1


def test_a_bank_of_another_pixel_size_is_refused_and_not_kept(scan, tmp_path):
    session = InteractiveSession(make_model(), scan, tmp_path)
    with pytest.raises(ValueError, match=r"was described at 0\.7 mm a pixel, this model looks at 1\.5 mm"):
        session.use_bank(ExemplarBank(session._bench.model.identity, 0.7))
    session.close()
    assert InteractiveSession.load(tmp_path, make_model(), scan).actions == ()


def test_a_bank_of_one_scan_finds_the_lesions_of_another(scan, tmp_path):
    first = InteractiveSession(make_model(), scan)
    first.click(lps(scan, 2, 20, 20))
    bank = tmp_path / "bank.safetensors"
    first.bank.save(bank)
    (key,) = first.bank.keys()
    later = make_scan([(TYPE_A, A2)], subject="later")
    session = InteractiveSession(make_model(), later, tmp_path / "session")
    assert session.use_bank(bank) == 1
    assert session.propagate() == 1
    assert session.lesions()[0].exemplar == key
    session.close()
    again = InteractiveSession.replay(tmp_path / "session", make_model(), later)
    assert torch.equal(again.label_map(), session.label_map())
    session = InteractiveSession.load(tmp_path / "session", make_model(), later)
    session.reweigh(key, 0.0)
    session.propagate()
    assert session.bank[key].weight == 0
    session.forget(key)
    assert not len(session.bank)


def test_a_scan_of_the_same_name_takes_no_exemplar_away(scan, tmp_path):
    visit_1 = InteractiveSession(make_model(), scan)
    visit_1.click(lps(scan, 2, 20, 20))
    visit_1.bank.save(tmp_path / "bank.safetensors")
    visit_2 = make_scan([(TYPE_B, B1), (TYPE_A, A2)])  # called scan, too
    session = InteractiveSession(make_model(), visit_2, tmp_path / "session")
    session.use_bank(tmp_path / "bank.safetensors")
    session.click(lps(visit_2, 2, 40, 12))
    assert session.bank.keys() == [key_of(visit_1, 1), key_of(session, 1)]
    assert session.propagate() == 1  # what visit 1 showed is found in visit 2
    session.reject(2)
    assert len(session.bank) == 3
    session.close()
    again = InteractiveSession.replay(tmp_path / "session", make_model(), visit_2)
    assert again.bank.keys() == session.bank.keys()


def test_another_exemplar_under_the_same_key_is_kept_beside_it(scan):
    session, other = (InteractiveSession(make_model(), scan) for _ in range(2))
    session.click(lps(scan, 2, 20, 20))
    own = session.bank
    other.click(lps(scan, 2, 40, 12))  # another reader's first lesion of the same scan
    assert session.use_bank(other.bank) == 1
    first, second = session.bank
    assert (first.key, second.key) == (key_of(session, 1), f"{key_of(session, 1)}~{second.sha256[:8]}")
    assert first.same_as(own[first.key])
    session.use_bank(other.bank)
    session.use_bank(own)
    assert len(session.bank) == 2  # the same ones are there already
    third = InteractiveSession(make_model(), scan)
    third.use_bank(other.bank)  # before a lesion of this scan has the key
    third.click(lps(scan, 2, 20, 20))
    assert len(third.bank) == 2


def test_an_exemplar_that_a_bank_holds_twice_comes_in_once(scan, tmp_path):
    first = InteractiveSession(make_model(), scan)
    first.click(lps(scan, 2, 20, 20))
    bank = first.bank
    (one,) = bank
    bank.add(replace(one, key="2-1"))  # as a merge of before left it
    later = make_scan([(TYPE_A, A2)], subject="later")
    session = InteractiveSession(make_model(), later, tmp_path / "session")
    assert session.use_bank(bank) == 1
    assert session.bank.keys() == [one.key]
    other = first.bank
    other.remove(one.key)
    other.add(replace(one, key="of a merge"))
    assert session.use_bank(other) == 0  # the same exemplar is there under another key
    assert session.use_bank(bank) == 0
    assert session.bank.keys() == [one.key]
    session.close()
    assert InteractiveSession.replay(tmp_path / "session", make_model(), later).bank.keys() == [one.key]


def test_a_journal_of_before_brings_an_exemplar_in_twice(scan, tmp_path):
    first = InteractiveSession(make_model(), scan)
    first.click(lps(scan, 2, 20, 20))
    bank = first.bank
    bank.add(replace(next(iter(bank)), key="2-1"))
    bank.save(tmp_path / "bank.safetensors")
    bank = ExemplarBank.read(tmp_path / "bank.safetensors")
    later = make_scan([(TYPE_A, A2)], subject="later")
    session = InteractiveSession(make_model(), later, tmp_path / "session")
    session._history.add_bank(bank_name(bank), bank)
    session._act("use_bank", bank=bank_name(bank))
    session.reweigh("2-1", 0.5)
    session.close()
    again = InteractiveSession.replay(tmp_path / "session", make_model(), later)
    assert again.bank.keys() == session.bank.keys() == [key_of(first, 1), "2-1"]


def test_the_journal_tells_places_in_mm_and_times(scan, tmp_path):
    session = InteractiveSession(make_model(), scan, tmp_path)
    session.click(lps(scan, 2, 20, 20))
    header, line = (json.loads(each) for each in (tmp_path / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    assert header["subject"] == "scan"
    assert line["arguments"] == {"point_lps_mm": [30.0, 30.0, 10.0], "lesion": None, "positive": True}
    assert (line["number"], line["name"], line["result"]) == (1, "click", 1)
    assert 0 < line["seconds_computed"] <= line["seconds_waited"]


def test_a_segmenter_instead_of_a_model_works_one_more_version_and_says_the_new_form(scan, tmp_path):
    segmenter, new_form = make_segmenter(), r"one model now: give bundle\.model\(\), or LesionModel\.of\(segmenter\)"
    identity = LesionModel.of(segmenter).identity
    with pytest.warns(DeprecationWarning, match=new_form):
        session = InteractiveSession(segmenter, scan, tmp_path, calibration=None, identity=identity)
    session.click(lps(scan, 2, 20, 20))
    session.close()
    with pytest.warns(DeprecationWarning, match=new_form):
        again = InteractiveSession.load(tmp_path, segmenter, scan)
    assert torch.equal(again.label_map(), session.label_map())
    with pytest.raises(TypeError, match="fields of the LesionModel"):
        InteractiveSession(LesionModel.of(segmenter), scan, identity=identity)
