"""A session that is gone on with answers what is asked now, or says what differs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mois.session import InteractiveSession
from mois.session.header import check_origin
from mois.session.journal import FORMAT_VERSION, LineWriter, read_journal
from mois.session.masks import BoxMask, pack_mask, same_masks
from mois.session.playing import play, requested_actions
from mois.session.prompts.prompt_file import read_prompts
from mois.session.prompts.prompting import PromptSegmenter, SegmentedLesion
from mois.sharing.bank import ExemplarBank
from tests.support.datasets import save_nifti
from tests.support.session_fakes import as_stack, lps, make_model, three_lesions

SCAN = three_lesions()
A = lps(SCAN, 2, 20, 20)
B = lps(SCAN, 3, 46, 32)
A_LESS = {"click": lps(SCAN, 2, 23, 23), "lesion": "a", "positive": False}
BOX = {"box": [lps(SCAN, 2, 35, 7), lps(SCAN, 2, 45, 17)]}
LINE = {"scribble": [lps(SCAN, 2, 18, 18), lps(SCAN, 2, 18, 22), lps(SCAN, 2, 22, 22)]}


def ask(folder: Path, entries: list[dict[str, Any]], bank: ExemplarBank | None = None) -> list[Any]:
    (folder / "prompts.json").write_text(json.dumps({"prompts": entries}))
    return requested_actions(read_prompts(folder / "prompts.json"), SCAN, bank)


def run(
    folder: Path, entries: list[dict[str, Any]], bank: ExemplarBank | None = None
) -> tuple[InteractiveSession, list[str]]:
    """Play a file of prompts in `folder/out`, going on with what is there; return also what was kept."""
    asked, out = ask(folder, entries, bank), folder / "out"
    known = (make_model(), SCAN)
    session = InteractiveSession.load(out, *known) if out.exists() else InteractiveSession(*known, out)
    try:
        return session, list(play(session, asked, out, bank).kept)
    finally:
        session.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mask = np.zeros(tuple(SCAN.image.shape), np.uint8)
    mask[16:24, 16:24, 1:4] = 1
    save_nifti(tmp_path / "mask.nii.gz", mask, SCAN.affine.numpy())
    save_nifti(tmp_path / "other.nii.gz", np.roll(mask, 2, axis=0), SCAN.affine.numpy())
    return tmp_path


@pytest.mark.parametrize(
    ("first", "now", "said"),
    [
        ({"click": A}, {"click": B}, "entry 1: point_lps_mm="),
        ({"click": A}, {"click": A, "lesion": "a"}, None),  # a name of its own changes nothing
        ({"click": A}, BOX, "entry 1: click there, box now"),
        ({"click": A}, {"mask": "mask.nii.gz"}, "entry 1: click there, mask now"),
        (BOX, {"box": [BOX["box"][0], lps(SCAN, 2, 44, 17)]}, "entry 1: corners_lps_mm="),
        (BOX, {"box": [BOX["box"][1], BOX["box"][0]]}, "entry 1: corners_lps_mm="),
        ({"mask": "mask.nii.gz"}, {"mask": "other.nii.gz"}, "entry 1: another mask"),
        (LINE, LINE, None),
        (LINE, {"scribble": LINE["scribble"][::-1]}, "entry 1: other points"),
        (LINE, {"lasso": LINE["scribble"]}, "entry 1: scribble there, lasso now"),
        (LINE, {**LINE, "positive": False}, "entry 1: positive=True there, False now"),
        (BOX, {**BOX, "positive": True}, None),
        (BOX, {**BOX, "positive": False}, "entry 1: positive=True there, False now"),
        ({**BOX, "positive": False}, BOX, "entry 1: positive=False there, True now"),
    ],
)
def test_another_first_entry_is_refused(
    folder: Path, first: dict[str, Any], now: dict[str, Any], said: str | None
) -> None:
    run(folder, [first])
    journal = (folder / "out" / "journal.jsonl").read_bytes()
    if said is None:
        run(folder, [now])
    else:
        with pytest.raises(ValueError, match=r"out=.* holds a session with other prompts") as refused:
            run(folder, [now])
        assert said in str(refused.value)
        assert str(refused.value).endswith("choose another folder.")
    assert (folder / "out" / "journal.jsonl").read_bytes() == journal


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e: [*e[:2], {**e[2], "positive": True}], "entry 3: positive=False there, True now"),
        (lambda e: [*e[:2], {**e[2], "lesion": "b"}], "entry 3: lesion=1 there, 2 now"),
        (lambda e: [*e[:2], {**e[2], "lesion": "c"}], "entry 3: lesion=1 there, a new one now"),
        (lambda e: [e[1], e[0], e[2]], "entry 1: point_lps_mm="),
        (lambda e: e[:2], "entry 3: click there, propagate now|the propagation at the end: click there"),
        (lambda e: [], "the propagation at the end: click there"),
        (lambda e: [e[0], {"propagate": True}, *e[1:]], "entry 2: click there, propagate now"),
        (lambda e: [{"click": B}, *e], "entry 1: point_lps_mm="),
    ],
)
def test_a_changed_entry_behind_the_first_is_refused_by_its_number(folder: Path, change: Any, said: str) -> None:
    entries = [{"click": A, "lesion": "a"}, {"click": B, "lesion": "b"}, A_LESS]
    run(folder, entries)
    with pytest.raises(ValueError, match="other prompts") as refused:
        run(folder, change(entries))
    assert any(part in str(refused.value) for part in said.split("|"))


def test_drawings_of_a_file_are_those_of_a_session(folder: Path) -> None:
    entries = [
        {**LINE, "lesion": "a"},
        {"lasso": [{"voxel": [28, 40, 3]}, {"voxel": [35, 40, 3]}, {"voxel": [35, 51, 3]}, {"voxel": [28, 51, 3]}]},
        {"scribble": [lps(SCAN, 2, 18, 18), lps(SCAN, 2, 18, 22)], "lesion": "a", "positive": False},
        {**BOX, "lesion": "c"},
        {"mask": "mask.nii.gz", "lesion": "c", "positive": False},
        {"scribble": [lps(SCAN, 5, 10, 40), lps(SCAN, 5, 14, 40)], "positive": False},
        {"propagate": True},
    ]
    session, _ = run(folder, entries)
    names = ["scribble", "lasso", "scribble", "box", "mask", "scribble", "propagate"]
    assert [action.name for action in session.actions] == names
    assert [action.result for action in session.actions[:6]] == [1, 2, 1, 3, 3, 4]
    labels = as_stack(session.label_map())
    assert not (labels[2, 18, 18:23] == 1).any()
    assert (labels[3, 41:51, 29:35] == 2).all()
    assert len(session.state.rejected) == 1
    assert run(folder, entries)[0].actions == session.actions
    again = run(folder, [*entries, {"click": A, "lesion": "a"}])[0]
    assert again.actions[-1].result == 1


def test_the_same_file_again_does_nothing_and_names_may_change_together(folder: Path) -> None:
    entries = [{"click": A, "lesion": "a"}, {"click": B, "lesion": "b"}, A_LESS]
    before = len(run(folder, entries)[0].actions)
    renamed = json.loads(json.dumps(entries).replace('"a"', '"first"'))
    session, kept = run(folder, renamed)
    assert (len(session.actions), kept) == (before, [])


def test_entries_that_were_appended_are_done_after_the_propagation_with_which_the_session_ended(folder: Path) -> None:
    first, second, third = {"click": A, "lesion": "a"}, {"click": lps(SCAN, 2, 40, 12)}, A_LESS
    run(folder, [first])
    session, kept = run(folder, [first, second])
    assert [action.name for action in session.actions] == ["click", "propagate", "click", "propagate"]
    assert kept == ["the propagation after entry 1"]
    session, kept = run(folder, [first, second, third])
    assert [action.name for action in session.actions][4:] == ["click", "propagate"]
    assert session.actions[4].arguments["lesion"] == 1  # the name still stands for the lesion of entry 1
    assert kept == ["the propagation after entry 1", "the propagation after entry 2"]
    assert len(run(folder, [first, second, third])[0].actions) == 6
    with pytest.raises(ValueError, match="other prompts"):  # taken away again
        run(folder, [first, second])


def test_a_propagation_may_be_appended_by_name(folder: Path) -> None:
    run(folder, [{"click": A}])
    session, kept = run(folder, [{"click": A}, {"propagate": True}])
    assert (len(session.actions), kept) == (2, [])
    session, _ = run(folder, [{"click": A}, {"propagate": True}, {"click": lps(SCAN, 2, 40, 12)}])
    assert [action.name for action in session.actions] == ["click", "propagate", "click"]


def test_a_propagation_that_the_file_named_may_not_be_taken_out(folder: Path) -> None:
    later = lps(SCAN, 2, 40, 12)
    run(folder, [{"propagate": True}, {"click": A}, {"propagate": True}, {"click": later}])
    with pytest.raises(ValueError, match="entry 3: propagate there, click now"):
        run(folder, [{"propagate": True}, {"click": A}, {"click": later}])


def test_a_bank_that_holds_an_exemplar_twice_is_known_again(folder: Path) -> None:
    bank = run(folder, [{"click": A}])[0].bank
    bank.add(replace(next(iter(bank)), key="twin"))
    entries = [{"click": B}]
    (folder / "twice").mkdir()
    session, _ = run(folder / "twice", entries, bank)
    assert len(session.bank) == 2  # the exemplar of the bank, and that of the click
    assert run(folder / "twice", entries, bank)[0].actions == session.actions


def test_another_bank_or_none_is_refused(folder: Path) -> None:
    session = InteractiveSession(make_model(), SCAN)
    session.click(A)
    bank = session.bank
    other = bank.copy()
    other.reweigh(bank.keys()[0], 2.0)
    entries = [{"click": B}]
    run(folder, entries, bank)
    assert len(run(folder, entries, bank.copy())[0].actions) == 3
    with pytest.raises(ValueError, match=r"other prompts \(the bank: another bank\)"):
        run(folder, entries, other)
    with pytest.raises(ValueError, match=r"entry 1: use_bank there, click now"):
        run(folder, entries)
    (folder / "without").mkdir()
    run(folder / "without", entries)
    with pytest.raises(ValueError, match=r"the bank: click there, use_bank now"):
        run(folder / "without", entries, bank)


def test_what_a_reader_did_besides_is_refused(folder: Path) -> None:
    entries = [{"click": A}]
    run(folder, entries)
    session = InteractiveSession.load(folder / "out", make_model(), SCAN)
    session.accept(1)
    session.close()
    with pytest.raises(ValueError, match="its action 3, accept, is not requested now"):
        run(folder, entries)


@pytest.mark.parametrize("name", ["subject", "patient"])
def test_a_session_of_another_subject_or_patient_is_refused(folder: Path, name: str) -> None:
    run(folder, [{"click": A}])
    with pytest.raises(ValueError, match=f"has {name}=scan, now it is anna"):
        InteractiveSession.load(folder / "out", make_model(), SCAN._replace(**{name: "anna"}))
    with pytest.raises(ValueError, match=f"has {name}=scan, now it is anna"):
        InteractiveSession.replay(folder / "out", make_model(), SCAN._replace(**{name: "anna"}))


def test_an_entry_that_does_not_fit_the_scan_is_refused_by_its_number(folder: Path) -> None:
    far, empty = [500.0, 0.0, 0.0], np.zeros(tuple(SCAN.image.shape), np.uint8)
    save_nifti(folder / "empty.nii.gz", empty, SCAN.affine.numpy())
    save_nifti(folder / "small.nii.gz", empty[1:], SCAN.affine.numpy())
    for entry, said in (
        ({"click": far}, "lies outside the scan"),
        ({"box": [A, far]}, "lies outside the scan"),
        ({"mask": "empty.nii.gz"}, "empty"),
        ({"mask": "small.nii.gz"}, ""),
        ({"mask": "none.nii.gz"}, "no such file"),
    ):
        with pytest.raises(ValueError, match="prompts, entry 2: ") as refused:
            ask(folder, [{"click": A}, entry])
        assert said in str(refused.value)


def test_a_mask_is_compared_by_its_voxels() -> None:
    inside = torch.zeros(5, 6, 7, dtype=torch.bool)
    inside[1:3, 2:4, 3] = True
    packed = pack_mask(inside.numpy())
    assert same_masks(packed, dict(packed))
    assert not same_masks(packed, {**packed, "corner": [0, 2, 3]})
    assert not same_masks(packed, None)
    assert not same_masks({**packed, "bits": "no"}, packed)


def test_a_setting_that_this_version_lacks_is_refused(folder: Path) -> None:
    run(folder, [{"click": A}])
    header = read_journal(folder / "out").header
    header["inference"]["later"] = 1
    with pytest.raises(ValueError, match=r"inference\.later, which this version lacks"):
        check_origin(header, read_journal(folder / "out").header)
    moved = SCAN._replace(affine=SCAN.affine + 1)
    with pytest.raises(ValueError, match="of another scan"):
        InteractiveSession.load(folder / "out", make_model(), moved)


def test_a_session_that_died_before_its_first_line_was_whole_begins_anew(folder: Path) -> None:
    run(folder, [{"click": A}])
    journal = folder / "out" / "journal.jsonl"
    begun = journal.read_bytes()
    for start in (b"", begun[:7], begun[:60]):
        journal.write_bytes(start)
        session = InteractiveSession(make_model(), SCAN, folder / "out")
        play(session, ask(folder, [{"click": A}]), folder / "out")
        session.close()
        again = InteractiveSession.load(folder / "out", make_model(), SCAN)
        again.close()
        assert len(again.actions) == 2
    journal.write_bytes(b"somebody's notes")
    with pytest.raises(ValueError, match="holds a session already"):
        InteractiveSession(make_model(), SCAN, folder / "out")
    assert journal.read_bytes() == b"somebody's notes"


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        ({"click": A}, f"entry 2 (click {list(A)}): point_lps_mm={list(A)} lies in lesion 1; give lesion=1"),
        ({**LINE, "lesion": "b"}, "entry 2 (scribble, lesion b): points_lps_mm: the scribble crosses lesion 1;"),
        ({"click": A, "lesion": "a", "positive": False}, f"entry 2 (click {list(A)}, lesion a): lesion 1: nothing"),
    ],
)
def test_a_refusal_names_the_entry(
    folder: Path, refused: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = InteractiveSession(make_model(), SCAN)
    session.click(A)
    if "positive" in refused:
        nothing = SegmentedLesion(BoxMask.of(np.zeros((1, 1, 1), dtype=bool)), {})
        monkeypatch.setattr(PromptSegmenter, "segment", lambda self, prompts: nothing)
    asked = ask(folder, [{"click": A, "lesion": "a"}, refused])
    with pytest.raises(ValueError, match=f"^prompts, {re.escape(said)}"):
        play(session, asked, folder)


def test_a_replayed_action_that_is_refused_is_named(folder: Path) -> None:
    run(folder, [{"click": A}])
    told, lines = read_journal(folder / "out"), LineWriter(FORMAT_VERSION)
    twice = [*told.actions, replace(told.actions[0], number=3)]
    written = lines.header(told.header) + b"".join(lines.action(action) for action in twice)
    (folder / "out" / "journal.jsonl").write_bytes(written)
    with pytest.raises(ValueError, match=r"out: action 3, click: point_lps_mm=\[.* lies in lesion 1; give lesion=1"):
        InteractiveSession.replay(folder / "out", make_model(), SCAN)


def test_a_replay_whose_prompts_make_other_lesions_is_refused(folder: Path) -> None:
    run(folder, [{"click": A}, {"click": B}])
    told, lines = read_journal(folder / "out"), LineWriter(FORMAT_VERSION)
    others = [replace(action, result=3) if action.result == 2 else action for action in told.actions]
    written = lines.header(told.header) + b"".join(lines.action(action) for action in others)
    (folder / "out" / "journal.jsonl").write_bytes(written)
    with pytest.raises(ValueError, match="action 2, click, gave lesion 3 and now gives lesion 2"):
        InteractiveSession.replay(folder / "out", make_model(), SCAN)
