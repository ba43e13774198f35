"""`mois segment` and `mois journal`, on files, with a bundle of the bundled nano model."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from adapters import Frozen
from mois.backbones import SAM2
from mois.cli import main
from mois.cli.segment import _check_out, _Stated
from mois.cli.typed_bundles import typed_bundles
from mois.files.json_records import DIGEST, sealed
from mois.inference.settings import InferenceSettings
from mois.propagation import Similarity
from mois.scans.image_files import write_volume
from mois.session import InteractiveSession
from mois.session.advice import Suggestion
from mois.session.journal import Action, Journal, read_journal
from mois.session.prompts.prompt_file import read_prompts
from mois.session.time_and_motion import motion_rows, time_and_motion
from mois.sharing.bank import ExemplarBank
from mois.sharing.bundle import write_bundle
from mois.sharing.bundle_record import ClassSpec, ModelSpec
from tests.support.session_fakes import lps, make_model, three_lesions


@pytest.fixture
def files(tmp_path):
    backbone, propagation, adapter = SAM2(size="nano", weights="bundled"), Similarity(weights="bundled"), Frozen()
    propagation.build(backbone)
    adapter.attach(backbone, propagation)
    spec = ModelSpec(
        ClassSpec("mois.backbones.SAM2", {"size": "nano", "weights": "bundled"}),
        ClassSpec("adapters.Frozen"),
        ClassSpec("mois.propagation.Similarity", {"weights": "bundled"}),
    )
    write_bundle(tmp_path / "bundle", spec, backbone, adapter, propagation, InferenceSettings())
    scan = three_lesions()
    write_volume(scan.image, scan.affine, tmp_path / "scan.nii.gz")
    prompts = [
        {"click": lps(scan, 2, 20, 20), "lesion": "a"},
        {"click": lps(scan, 3, 46, 32), "lesion": "b"},
        {"click": lps(scan, 2, 26, 26), "lesion": "a", "positive": False},
    ]
    (tmp_path / "prompts.json").write_text(json.dumps({"prompts": prompts}))
    return tmp_path


def run(files, *more):
    main(
        ["segment", f"--image={files / 'scan.nii.gz'}", f"--bundle={files / 'bundle'}",
         f"--prompts={files / 'prompts.json'}", f"--out={files / 'out'}", *more]
    )  # fmt: skip


def test_segment_writes_results_goes_on_and_the_journal_is_told(files, capsys):
    run(files)
    labels = nib.load(files / "out" / "lesions.nii.gz")
    assert labels.shape == (48, 64, 6)
    assert labels.get_fdata()[20, 20, 2] == 1
    with (files / "out" / "lesions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["clicks"] for row in rows[:2]] == ["2", "1"]
    assert read_journal(files / "out").actions[-1].name == "propagate"
    assert (files / "out" / "lesions.png").read_bytes().startswith(b"\x89PNG")
    assert "2 prompted" in (files / "out" / "lesions.html").read_text(encoding="utf-8")
    # killed after two clicks: the same command does the rest
    whole = np.asarray(labels.dataobj)
    journal = files / "out" / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:3]) + b'{"number":3,')
    capsys.readouterr()
    run(files)
    said = capsys.readouterr()
    assert "going on after 2 actions" in said.out
    assert said.err.splitlines() == ["loading the model", "3 of 4: click", "4 of 4: propagate"]
    assert np.array_equal(np.asarray(nib.load(files / "out" / "lesions.nii.gz").dataobj), whole)
    main(["journal", str(files / "out"), f"--out={files / 'table.csv'}"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:3] == ["scan", "lesion", "clicks"]
    assert [line[:3] for line in lines[1:4]] == [["scan", "1", "2"], ["scan", "2", "1"], ["scan", "all", "3"]]
    assert (files / "table.csv").read_text(encoding="utf-8").startswith("scan,lesion,clicks,")


def test_a_bank_that_holds_an_exemplar_twice_is_told(files, capsys):
    run(files)
    bank = ExemplarBank.read(files / "out" / "bank.safetensors")
    first, second = bank
    bank.add(replace(first, key="twin"))
    bank.save(files / "twice.safetensors")
    capsys.readouterr()
    (files / "out").rename(files / "before")
    run(files, f"--bank={files / 'twice.safetensors'}", "--subject=later")
    told = f"{files / 'twice.safetensors'}: 2 exemplars; 1 more show the same as one of them and do not count"
    assert told in capsys.readouterr().out.splitlines()
    brought = [item.key for item in ExemplarBank.read(files / "out" / "bank.safetensors")]
    assert brought[:2] == [first.key, second.key]
    assert "twin" not in brought


def refused(files, capsys, *more):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(files, *more)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert "going on" not in said.out
    return said.err


def test_what_a_session_may_not_go_on_with_is_refused_before_the_model_is_made(files, capsys, monkeypatch):
    prompts = json.loads((files / "prompts.json").read_text())["prompts"]
    run(files)
    bank = files / "out" / "bank.safetensors"
    before = {path: path.read_bytes() for path in (files / "out").rglob("*") if path.is_file()}

    def late(*_):
        raise AssertionError("the model was made")

    with monkeypatch.context() as patch:
        patch.setattr("mois.sharing.bundle.Bundle.load", late)
        assert "the bank: click there, use_bank now" in refused(files, capsys, f"--bank={bank}")
        said = refused(files, capsys, "--patient=anna")
        assert f"out={files / 'out'}: the session of scan has patient=scan, now it is anna" in said
        assert said.endswith("give the same patient, or choose another --out for a new session.\n")
        assert "has subject=scan, now it is anna" in refused(files, capsys, "--subject=anna", "--patient=scan")
        changed = [{**prompts[0], "click": prompts[1]["click"]}, *prompts[1:]]
        (files / "prompts.json").write_text(json.dumps(changed))
        said = refused(files, capsys)
        assert f"out={files / 'out'} holds a session with other prompts (entry 1: point_lps_mm=" in said
        description = files / "bundle" / "bundle.json"
        told = description.read_text()
        other = json.loads(told)
        other["inference"]["threshold"] = 0.45
        description.write_text(json.dumps(sealed({key: other[key] for key in other if key != DIGEST})))
        assert "inference.threshold=0.35, now it is 0.45" in refused(files, capsys)
        description.write_text(told)
    assert {path: path.read_bytes() for path in before} == before
    (files / "prompts.json").write_text(json.dumps([*prompts, {"click": prompts[1]["click"], "lesion": "b"}]))
    run(files)
    said = capsys.readouterr().out
    assert "going on after 4 actions" in said
    assert "the propagation after entry 3 stays" in said


def test_results_of_no_session_are_not_overwritten(files, capsys):
    (files / "out").mkdir()
    (files / "out" / "lesions.nii.gz").write_bytes(b"mine")
    assert "holds lesions.nii.gz, but no session; choose another folder" in refused(files, capsys)
    assert (files / "out" / "lesions.nii.gz").read_bytes() == b"mine"


def test_results_that_somebody_edited_are_not_overwritten(files, capsys):
    run(files)
    edited = files / "out" / "lesions.nii.gz"
    run(files)
    whole = edited.read_bytes()
    edited.write_bytes(b"corrected by hand")
    assert f"{edited} was changed after it was written; move it away to have it written anew" in refused(files, capsys)
    assert edited.read_bytes() == b"corrected by hand"
    edited.rename(files / "mine.nii.gz")
    with (files / "out" / "lesions.csv").open("a") as file:
        file.write("note,of,mine")
    assert "lesions.csv was changed" in refused(files, capsys)
    (files / "out" / "lesions.csv").unlink()
    run(files)
    assert edited.read_bytes() == whole


def test_a_session_in_python_overwrites_no_results_of_another(tmp_path):
    scan = three_lesions()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "lesions.nii.gz").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"holds lesions\.nii\.gz, but no session"):
        InteractiveSession(make_model(), scan, tmp_path / "a")
    session = InteractiveSession(make_model(), scan)
    with pytest.raises(ValueError, match=r"holds lesions\.nii\.gz, but no session"):
        session.save(tmp_path / "a")
    session = InteractiveSession(make_model(), scan, tmp_path / "b")
    session.click(lps(scan, 2, 20, 20))
    session.save()
    session.save()
    (tmp_path / "b" / "confidence.nii.gz").write_bytes(b"edited")
    with pytest.raises(ValueError, match=r"confidence\.nii\.gz was changed after it was written"):
        session.save()
    assert (tmp_path / "b" / "confidence.nii.gz").read_bytes() == b"edited"
    session.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ('{"prompts": [{"tap": [1, 2, 3]}]}', "exactly one of click"),
        ('{"prompts": [{"click": [1, 2]}]}', "three numbers"),
        ('{"prompts": [{"box": [[1, 2, 3]]}]}', "two opposite corners"),
    ],
)
def test_a_file_of_prompts_that_cannot_be_used_ends_in_one_line(files, capsys, content, message):
    (files / "prompts.json").write_text(content)
    with pytest.raises(SystemExit):
        run(files)
    assert message in capsys.readouterr().err


def test_time_and_motion_adds_up_by_hand():
    actions = (
        Action(1, "click", {"lesion": None}, 1, "", 5.0, 1.0, 1.5),
        Action(2, "click", {"lesion": 1, "positive": False}, 1, "", 3.0, 0.5, 0.5),
        Action(3, "box", {"lesion": None}, 2, "", 4.0, 1.0, 1.0),
        Action(4, "propagate", {}, 7, "", 1.0, 9.0, 10.0),
        Action(5, "reject", {"lesion": 4}, None, "", 2.0, 0.0, 0.0),
    )
    scan = time_and_motion(Journal({"subject": "s"}, actions, 0, 2, ""))
    assert (scan.total.clicks, scan.total.boxes, scan.total.others) == (2, 1, 2)
    assert (scan.total.seconds_reader, scan.total.seconds_waited, scan.total.seconds_computed) == (15.0, 13.0, 11.5)
    assert (scan.lesions[1].clicks, scan.lesions[1].seconds_waited) == (2, 2.0)
    assert sorted(scan.lesions) == [1, 2, 4]
    assert scan.touched == 2
    rows = motion_rows([scan, scan])
    assert rows[-2] == ["all", "all", "4", "2", "0", "0", "0", "4", "30.0", "26.0", "23.0"]
    assert rows[-1][:3] == ["mean", "per prompted", "1.00"]


@pytest.mark.parametrize(("lesion", "named"), [(7, " (lesion 7)"), (None, "")])
def test_a_suggestion_is_a_click_for_the_file_of_prompts(files, capsys, monkeypatch, lesion, named):
    point = tuple(lps(three_lesions(), 2, 20, 20))
    monkeypatch.setattr(
        InteractiveSession, "suggest", lambda self, count: [Suggestion(point, lesion, 0.5, "missed by little")]
    )
    run(files)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("suggestion: ")]
    click, _, after = line.removeprefix("suggestion: ").partition("}")
    assert after == f"{named}: missed by little"
    (files / "prompts.json").write_text(f'{{"prompts": [{click}}}]}}')
    (step,) = read_prompts(files / "prompts.json")[:-1]
    assert step.given == pytest.approx(point, abs=0.05)


def test_advice_names_what_the_exemplars_lack():
    scan = three_lesions()
    session = InteractiveSession(make_model(), scan)
    session.propagate()  # without exemplars
    assert session.warnings() == ["3 lesions were found without any exemplar; click a few that are typical."]
    first = session.suggest(5)
    assert [each.lesion for each in first] != []
    spot = first[0].point_lps_mm
    assert session.click(spot) == first[0].lesion
    session.click(lps(scan, 3, 46, 32))
    session.click(lps(scan, 2, 40, 12))
    effects = {each.key: each for each in session.attribute()}
    assert all(each.effect is not None and -1 <= each.effect <= 1 for each in effects.values())
    assert next(effects[key] for key in effects if key.startswith("scan:3@")).effect == pytest.approx(
        0.0, abs=1e-3
    )  # the other type helps none of these


def test_segment_with_a_bundle_for_each_type_of_lesions(files, capsys):
    entries = [
        {"click": lps(three_lesions(), 2, 20, 20), "lesion": "a"},
        {"click": lps(three_lesions(), 2, 40, 12), "lesion": "b", "type": "round"},
    ]
    prompts = files / "typed.json"
    prompts.write_text(json.dumps(entries))
    command = ["segment", str(files / "scan.nii.gz"), f"--prompts={prompts}", f"--out={files / 'typed'}"]
    bundles = [f"--bundle=long={files / 'bundle'}", "--bundle", f"round={files / 'bundle'}"]
    main([*command, *bundles])
    with (files / "typed" / "lesions.csv").open() as file:
        rows = {row["id"]: row["type"] for row in csv.DictReader(file)}
    assert (rows["1"], rows["2"]) == ("long", "round")
    actions = [action.name for action in read_journal(files / "typed").actions]
    assert actions == ["click", "use", "click", "use", "propagate", "use", "propagate"]
    assert (files / "typed" / "bank.round.safetensors").exists()
    entries += [{"click": lps(three_lesions(), 2, 17, 17), "lesion": "a", "positive": False}]
    prompts.write_text(json.dumps(entries))
    main([*command, *bundles])
    assert "the propagation after entry 2 stays" in capsys.readouterr().out
    assert [action.name for action in read_journal(files / "typed").actions][7:] == [
        "use", "click", "propagate", "use", "propagate"
    ]  # fmt: skip
    entries[1]["type"] = "flat"
    prompts.write_text(json.dumps(entries))
    with pytest.raises(SystemExit):
        main([*command, *bundles])
    assert "entry 2: type=flat has no bundle (there is long, round)" in capsys.readouterr().err


def test_a_further_bundle_needs_a_type(tmp_path):
    assert typed_bundles(tmp_path) == {"": tmp_path}
    assert typed_bundles(["a/b=c", "round=d"]) == {"": Path("a/b=c"), "round": Path("d")}
    with pytest.raises(ValueError, match="needs a type: --bundle TYPE=b"):
        typed_bundles(["a", "b"])
    with pytest.raises(ValueError, match="round has a bundle already"):
        typed_bundles(["round=a", "round=b"])


def test_a_session_of_the_shipped_model_goes_on_after_its_settings_changed(tmp_path: Path) -> None:
    then, scan = make_model(level="known"), three_lesions()
    session = InteractiveSession(then, scan, tmp_path)
    session.save()
    session.close()
    model = make_model(level="selective", rejections="vetoes")
    now = _Stated(model.segmenter.settings, then.identity, None, model)
    with pytest.raises(ValueError, match=r"made with inference\.level=known, now it is selective"):
        _check_out(tmp_path, now, "cpu", scan, ())
    assert _check_out(tmp_path, now._replace(model=replace(model, follows_sessions=True)), "cpu", scan, ())
