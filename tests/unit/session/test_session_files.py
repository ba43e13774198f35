"""A session's folder from elsewhere: what was changed in it is noticed, and nothing outside it is touched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mois.files.tensor_records import read_tensors
from mois.records import Volume
from mois.session import InteractiveSession
from mois.session.journal import read_journal
from mois.sharing.bank import ExemplarBank
from tests.support.session_fakes import lps, make_model, three_lesions

STATE = Path("states/000001.safetensors")


@pytest.fixture(scope="module")
def scan() -> Volume:
    return three_lesions()


@pytest.fixture
def folder(scan: Volume, tmp_path: Path) -> Path:
    """A session of two clicks, a propagation and a bank of its own."""
    session = InteractiveSession(make_model(), scan, tmp_path / "session")
    session.click(lps(scan, 2, 20, 20))
    session.click(lps(scan, 3, 46, 32))
    session.use_bank(session.bank)
    session.propagate()
    session.save()
    session.close()
    return tmp_path / "session"


def load(folder: Path, scan: Volume) -> None:
    InteractiveSession.load(folder, make_model(), scan).close()


def as_first_format(folder: Path) -> None:
    """Write the journal as its first format had it: nothing tells whether it was changed."""
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        for key in ("after", "sha256", "state"):
            line.pop(key, None)
    lines[0]["format_version"] = 1
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def change_line(folder: Path, number: int, edit: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "journal.jsonl"
    lines = file.read_text().splitlines()
    content = json.loads(lines[number])
    edit(content)
    lines[number] = json.dumps(content)
    file.write_text("\n".join(lines) + "\n")


def change_state(folder: Path, edit: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> None:
    tensors, metadata = read_tensors(folder / STATE)
    content = json.loads(metadata["state"])
    edit(content, tensors)
    save_file(tensors, folder / STATE, {"state": json.dumps(content)})


@pytest.mark.parametrize("number", [0, 1, 2, 4])
def test_a_line_that_was_changed_is_refused(folder: Path, scan: Volume, number: int) -> None:
    change_line(folder, number, lambda line: line.update(started="2020-01-01"))
    with pytest.raises(ValueError, match=f"line {number + 1} was changed after it was written"):
        load(folder, scan)


def test_a_line_that_was_taken_out_or_moved_is_refused(folder: Path, scan: Volume) -> None:
    file = folder / "journal.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2] + lines[3:]))
    with pytest.raises(ValueError, match="line 3 does not follow the line before it"):
        load(folder, scan)
    file.write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))
    with pytest.raises(ValueError, match="line 2 does not follow the line before it"):
        load(folder, scan)
    file.write_text("".join(lines[:3]))  # a kill at that moment looks the same
    assert len(read_journal(folder).actions) == 2


def test_a_damaged_journal_does_not_pass_as_one_of_the_first_format(folder: Path, scan: Volume) -> None:
    change_line(folder, 0, lambda line: line.update(format_version=1))
    with pytest.raises(ValueError, match="line 1 holds after, which format 1 does not have"):
        load(folder, scan)


def test_a_state_that_was_changed_is_refused(folder: Path, scan: Volume) -> None:
    whole = (folder / STATE).read_bytes()
    (folder / STATE).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"000001.safetensors: is missing or damaged \(was changed after"):
        load(folder, scan)


WRONG_STATES: list[tuple[Callable[..., object], str]] = [
    (lambda c, t: c.clear(), "lacks lesions"),
    (lambda c, t: c.update(next_id=2**40), "next_id is 1099511627776"),
    (lambda c, t: c["lesions"].update({"-1": c["lesions"]["1"]}), "a lesion has the id '-1'"),
    (lambda c, t: c["lesions"].update({"2147483646": c["lesions"]["1"]}), "a lesion has the id '2147483646'"),
    (lambda c, t: c["lesions"]["1"].update(origin="elsewhere"), "origin is 'elsewhere'"),
    (lambda c, t: c["lesions"]["1"].update(locked="no"), "locked is 'no'"),
    (lambda c, t: c["lesions"]["1"]["mask"].update(corner=[90, 0, 0]), "lies outside the scan"),
    (lambda c, t: c["lesions"]["1"]["mask"].update(corner=[-1, 0, 0]), "lies outside the scan"),
    (lambda c, t: c["lesions"]["1"]["mask"].update(shape=[1, 1, 1]), "has other bits than its shape"),
    (lambda c, t: c["lesions"]["1"]["mask"].update(bits="../../x"), "names no array"),
    (lambda c, t: c["lesions"]["1"]["mask"].update(bits="000009/0"), "is none of this session's files"),
    (lambda c, t: c["lesions"]["1"]["mask"].update(bits="000001/99"), "lacks array 99"),
    (lambda c, t: c["lesions"]["1"]["prompts"][0].update(slice_index=99), "a prompt on slice 99"),
    (lambda c, t: c["lesions"]["1"]["prompts"][0].update(points=[]), "a click has a point"),
    (lambda c, t: c["lesions"]["1"]["prompts"][0].update(kind="wave"), "kind is 'wave'"),
    (lambda c, t: c["lesions"]["1"]["prompts"][0].update(kind="scribble"), "a scribble up to 8; the others a mask"),
    (lambda c, t: c["exemplars"][0].update(weight=-1), "weight=-1.0 must be"),
    (lambda c, t: c["exemplars"][0].update(tokens={"value": 1}), "tokens.value is 1"),
    (lambda c, t: t.update({k: v.double() for k, v in t.items() if v.dtype == torch.float32}), "is torch.float64"),
    (lambda c, t: [v.fill_(torch.nan) for v in t.values() if v.dtype == torch.float32], "values that are not finite"),
]


def test_a_state_that_no_session_wrote_is_refused_where_nothing_says_what_it_was(folder: Path, scan: Volume) -> None:
    as_first_format(folder)
    whole = (folder / STATE).read_bytes()
    with pytest.warns(UserWarning, match="unverified: format 1"):
        load(folder, scan)
    for edit, message in WRONG_STATES:
        change_state(folder, edit)
        with pytest.warns(UserWarning, match="unverified"), pytest.raises(ValueError, match=message):
            load(folder, scan)
        (folder / STATE).write_bytes(whole)


WRONG_ACTIONS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda a: a.update(name="__init__"), "'__init__', which this version does not know"),
    (lambda a: a.update(name="apply"), "'apply', which this version does not know"),
    (lambda a: a.update(number=7), "is numbered 7"),
    (lambda a: a.update(arguments=[]), "arguments"),
    (lambda a: a["arguments"].update(positive="no"), "click: positive is 'no'"),
    (lambda a: a["arguments"].update(point_lps_mm=[1, 2]), "point_lps_mm"),
    (lambda a: a["arguments"].update(point_lps_mm=["1", 2, 3]), "point_lps_mm.0 is '1'"),
    (lambda a: a["arguments"].update(more=1), "holds more"),
    (lambda a: a["arguments"].pop("lesion"), "lacks lesion"),
    (lambda a: a.update(name="box", arguments={"corners_lps_mm": [[1, 2, 3], [1, 2, 3]]}), "lacks lesion"),
    (lambda a: a.update(name="lasso", arguments={"points_lps_mm": [[1, 2]], "lesion": 1, "positive": True}), "points"),
    (lambda a: a.update(name="scribble", arguments={"points_lps_mm": [], "lesion": 1}), "lacks positive"),
    (lambda a: a.update(result="1"), "result '1', no lesion"),
    (lambda a: a.update(result=2**31), "no lesion"),
    (lambda a: a.pop("started"), "lacks started"),
    (lambda a: a.update(seconds_reader=None), "seconds_reader is None"),
]


def test_an_action_that_no_session_wrote_is_refused(folder: Path) -> None:
    as_first_format(folder)
    whole = (folder / "journal.jsonl").read_text()
    for edit, message in WRONG_ACTIONS:
        change_line(folder, 1, edit)
        with pytest.warns(UserWarning, match="unverified"), pytest.raises(ValueError, match=message):
            read_journal(folder)
        (folder / "journal.jsonl").write_text(whole)


def test_no_link_in_a_session_is_followed(folder: Path, scan: Volume, tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_bytes(b"kept")
    (folder / "states" / ".000005.safetensors.part").symlink_to(treasure)  # where the next state used to be begun
    session = InteractiveSession.load(folder, make_model(), scan)
    session.click(lps(scan, 2, 40, 12))
    session.close()
    assert treasure.read_bytes() == b"kept"

    for name in ("states", "banks", "journal.jsonl"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is a link, which no session makes"):
            load(folder, scan)
        (folder / name).unlink()
        (tmp_path / name).rename(folder / name)
    for name in ("states/000002.safetensors", next((folder / "banks").iterdir()).relative_to(folder)):
        (folder / name).rename(tmp_path / "away")
        (folder / name).symlink_to(tmp_path / "away")
        with pytest.raises(ValueError, match=r"none of this session's files|is a link"):
            load(folder, scan)
        (folder / name).unlink()
        (tmp_path / "away").rename(folder / name)
    load(folder, scan)
    for name in ("lesions.nii.gz", "bank.safetensors", "lesions.csv"):
        (folder / name).unlink()
        (folder / name).symlink_to(treasure)
        session = InteractiveSession.load(folder, make_model(), scan)
        with pytest.raises(ValueError, match=f"{name} is a symbolic link"):
            session.save()
        session.close()
        (folder / name).unlink()
    assert treasure.read_bytes() == b"kept"


def test_a_bank_that_was_changed_in_the_folder_is_refused(folder: Path, scan: Volume) -> None:
    (path,) = (folder / "banks").iterdir()
    session = InteractiveSession.load(folder, make_model(), scan)
    bank = ExemplarBank.load(path, session._bench.model.identity, 1.5)
    session.close()
    bank.mark(bank.keys()[0], negative=True)
    bank.save(path)
    with pytest.raises(ValueError, match="was changed after it was written; add it as a new bank"):
        load(folder, scan)
    assert load_file(path)


def test_a_pipe_as_a_journal_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "journal.jsonl")
    with pytest.raises(ValueError, match=r"there is no journal"):
        read_journal(tmp_path)


def test_a_folder_or_a_pipe_in_the_place_of_the_journal_is_refused(tmp_path):
    (tmp_path / "a" / "journal.jsonl").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / "journal.jsonl")
    for name in "ab":
        with pytest.raises(ValueError, match=r"journal\.jsonl is no regular file; remove it, or choose another folder"):
            InteractiveSession(make_model(), three_lesions(), tmp_path / name)
