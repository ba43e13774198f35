"""The word `shipped` in the place of a bundle: every command that takes a bundle takes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mois.cli import main
from mois.cli.typed_bundles import served_models
from mois.files.text import read_json
from mois.serve import shipped_model
from mois.serve.host import Host
from mois.serve.served_models import ADDED
from mois.serve.shipped_model import PIXEL_MM, served_model
from mois.sharing.bundle_record import DESCRIPTION, is_shipped
from tests.support.example_bundles import random_bundle
from tests.support.session_fakes import three_lesions

Make = Callable[..., Path]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit):
        main(list(words))
    return capsys.readouterr().err


def test_a_folder_of_this_name_with_a_bundle_is_not_guessed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_shipped("shipped")
    assert is_shipped(Path("./shipped"))
    assert not is_shipped(tmp_path / "shipped")
    assert not is_shipped(None)
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / DESCRIPTION).touch()
    with pytest.raises(ValueError, match=f"give its whole path \\({tmp_path / 'shipped'}\\)"):
        is_shipped("shipped")


def test_a_server_takes_the_word_for_each_type() -> None:
    models = served_models(["shipped", "round=shipped"], 3.0, "cpu")
    assert [model.segmenter.settings.pixel_mm for model in models.all] == [3.0, 3.0]
    assert served_models(None, None, "cpu").first.identity == models.first.identity
    assert served_models("shipped", None, "cpu").first.segmenter.settings.pixel_mm == PIXEL_MM


def test_a_pixel_size_beside_a_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, scan = random_bundle(tmp_path / "b"), str(tmp_path / "scan.nii.gz")
    (tmp_path / "p.json").write_text(json.dumps({"prompts": [{"click": [0, 0, 0]}]}), encoding="utf-8")
    line = "error: --pixel_mm=2 is for the shipped model (--bundle shipped); a bundle has its own pixel size"
    more = (f"--bundle={bundle}", "--pixel_mm=2")
    for words in (
        ("view", scan),
        ("serve", "nninteractive"),
        ("segment", scan, f"--prompts={tmp_path / 'p.json'}", f"--out={tmp_path / 'o'}"),
        ("evaluate", f"--data={tmp_path}", f"--out={tmp_path / 'o'}"),
    ):
        assert line in refused(capsys, *words, *more)


def test_options_of_a_bundle_are_refused_for_the_shipped_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("export", "sam2", "--bundle=shipped", f"--out={tmp_path / 'a.pt'}", "--backbone_weights=w.pt")
    assert refused(capsys, *asked).startswith("error: --backbone_weights=w.pt is for a bundle; the shipped model has")
    maps = ("evaluate", f"--data={tmp_path}", f"--out={tmp_path / 'o'}", f"--predictions={tmp_path}", "--pixel_mm=2")
    assert refused(capsys, *maps).startswith("error: --pixel_mm belongs to a model; leave it out, or give --bundle")


def test_a_command_that_needs_a_folder_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "error: bundle=shipped stands for the model that ships with the package, which has no folder; give the folder"
    )
    assert refused(capsys, "bundle", "push", "shipped", "OWNER/NAME").startswith(line)


def test_the_shipped_model_segments_a_scan(
    make_dataset: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    monkeypatch.setattr(
        shipped_model, "served_model", lambda *given, **more: made.append(given) or served_model(*given, **more)
    )
    scan = make_dataset(subjects=1) / "imagesTr" / "p0_0000.nii.gz"
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"prompts": [{"click": {"voxel": [20, 4, 20]}}]}), encoding="utf-8")
    words = ["segment", str(scan), "--bundle=shipped", "--pixel_mm=2", f"--prompts={prompts}", "--device=cpu"]
    main([*words, f"--out={tmp_path / 'out'}"])
    assert len(made) == 1  # the model is made once
    header = json.loads((tmp_path / "out" / "journal.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert header["inference"]["pixel_mm"] == 2
    capsys.readouterr()
    main([*words, f"--out={tmp_path / 'out'}"])
    assert capsys.readouterr().out.startswith("going on after 2 actions")


def test_the_shipped_model_is_evaluated(make_dataset: Make, tmp_path: Path) -> None:
    root, out = make_dataset(subjects=2), tmp_path / "out"
    main(["evaluate", f"--data={root}", "--bundle=shipped", "--pixel_mm=2", "--split=all", f"--out={out}"])
    about = read_json(out / "metrics.json")["provenance"]
    assert (about["bundle"], about["inference"]["pixel_mm"], about["trained_on"]) == ("shipped", 2, [])
    assert "shipped" in (out / "report.html").read_text(encoding="utf-8")


def test_the_shipped_backbone_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", "sam2", "--bundle=shipped", f"--out={tmp_path / 'nano.pt'}"])
    assert (tmp_path / "nano.pt").stat().st_size > 1e6
    assert "SAM 2.1 nano" in capsys.readouterr().out


def test_a_reader_adds_the_shipped_model_as_a_type(tmp_path: Path) -> None:
    host = Host(tmp_path, served_models(None, 3.0, "cpu"))
    seat = host.open("a", three_lesions())
    seat.add_type("round", Path("shipped"))
    assert read_json(next(tmp_path.rglob(ADDED))) == {"round": "shipped"}
    host.close()
