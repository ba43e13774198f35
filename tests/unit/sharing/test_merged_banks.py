"""Banks of several scans become one bank of the same model, and the commands that list, show and merge them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mois.cli import main as mois_main
from mois.intensities import FIRST
from mois.records import WeightsIdentity
from mois.sharing.bank import Exemplar, ExemplarBank
from mois.sharing.identity import ModelIdentity
from mois.sharing.merged_banks import each_once, merge_banks

MODEL = ModelIdentity(WeightsIdentity("nano", "bundled", "a" * 64), "b" * 64, "mois.propagation.Similarity", "c" * 64)


def exemplar(key: str, value: float, scan: str = "scan1", *, negative: bool = False) -> Exemplar:
    tokens = {"means": torch.tensor([value])}
    return Exemplar(key, scan, "anna", (1.5, -20.0, 300.25), 40.0, 0.7, 0.25, negative, tokens=tokens)


def bank_of(*exemplars: Exemplar, model: ModelIdentity = MODEL, pixel_mm: float = 1.5, channels: tuple[str, ...] = ()):
    bank = ExemplarBank(model, pixel_mm, channels=channels)
    for one in exemplars:
        bank.add(one)
    return bank


def test_a_key_that_is_taken_gets_the_number_of_its_bank_and_the_same_exemplar_is_taken_once() -> None:
    first = bank_of(exemplar("1", 1.0), exemplar("2", 2.0))
    second = bank_of(exemplar("1", 3.0, "scan2"), exemplar("2", 2.0), exemplar("3", 2.0, negative=True))
    merged, left_out = merge_banks({"a": first, "b": second})
    assert [(item.key, item.scan, float(item.tokens["means"])) for item in merged] == [
        ("1", "scan1", 1.0),
        ("2", "scan1", 2.0),
        ("2-1", "scan2", 3.0),
        ("3", "scan1", 2.0),  # negative: not the same as the second
    ]
    assert left_out == 1
    assert first.keys() == ["1", "2"]


def test_an_exemplar_that_one_bank_holds_twice_is_taken_once() -> None:
    twice = bank_of(exemplar("1", 1.0), exemplar("2", 1.0), exemplar("3", 1.0, negative=True))
    merged, left_out = merge_banks({"a": twice, "b": bank_of(exemplar("1", 4.0), exemplar("5", 1.0))})
    assert (merged.keys(), left_out) == (["1", "3", "2-1"], 2)
    assert len(twice) == 3


def test_a_bank_without_what_is_there_already() -> None:
    bank = bank_of(exemplar("1", 1.0), exemplar("2", 2.0), exemplar("3", 1.0), exemplar("4", 4.0))
    assert (each_once(bank).bank.keys(), each_once(bank).left_out) == (["1", "2", "4"], 1)
    present = [exemplar("1", 1.0), exemplar("9", 2.0), exemplar("4", 7.0)]
    assert each_once(bank, present).bank.keys() == ["1", "4"]  # 1 has its own key, and 4 shows something else
    assert len(bank) == 4


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (
            {"model": replace(MODEL, backbone=WeightsIdentity("tiny", "meta.pt", "d" * 64))},
            "b was made by another model: the backbone (tiny, meta.pt, sha256 dddddddddddd instead of nano, bundled, "
            "sha256 aaaaaaaaaaaa); only banks of one model can be merged, and a is the first.",
        ),
        (
            {"model": replace(MODEL, adapter_sha256="e" * 64)},
            "b was made by another model: the adapter (sha256 eeeeeeeeeeee instead of bbbbbbbbbbbb); "
            "only banks of one model can be merged, and a is the first.",
        ),
        (
            {"pixel_mm": 2.0},
            "b was described at 2 mm a pixel, the model of a looks at 1.5 mm; "
            "only banks of one model can be merged, and a is the first.",
        ),
        (
            {"channels": ("FLAIR", "T2")},
            "b was described on FLAIR, T2, the model of a sees one image; "
            "only banks of one model can be merged, and a is the first.",
        ),
    ],
)
def test_banks_of_different_models_are_refused_in_one_line(other: dict[str, object], line: str) -> None:
    with pytest.raises(ValueError, match="only banks of one model") as refused:
        merge_banks({"a": bank_of(exemplar("1", 1.0)), "b": bank_of(exemplar("2", 2.0), **other)})  # type: ignore[arg-type]
    assert str(refused.value) == line


def test_banks_of_scans_that_were_normalised_in_another_way_are_refused() -> None:
    other = ExemplarBank(MODEL, 1.5, FIRST)
    with pytest.raises(ValueError, match="normalised by the rule"):
        merge_banks({"a": bank_of(exemplar("1", 1.0)), "b": other})


def test_the_commands_list_show_and_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "anna").mkdir()
    files = [tmp_path / "anna" / "bank.safetensors", tmp_path / "anna" / "bank.ring.safetensors"]
    bank_of(exemplar("1", 1.0), exemplar("2", 2.0, negative=True)).save(files[0])
    bank_of(exemplar("1", 3.0, "scan2")).save(files[1])
    merged = tmp_path / "new" / "merged.safetensors"

    mois_main(["bank", "merge", *map(str, files), "--out", str(merged)])
    assert capsys.readouterr().out == f"{merged}: 3 exemplars of 2 scans\n"
    assert ExemplarBank.load(merged, MODEL, 1.5).keys() == ["1", "2", "2-1"]

    mois_main(["bank", "ls", str(tmp_path / "anna"), str(merged)])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["bank", "positive", "negative", "scans"]
    assert [row.split()[:4] for row in rows] == [
        [str(files[1]), "1", "0", "1"],
        [str(files[0]), "1", "1", "1"],
        [str(merged), "2", "1", "2"],
    ]

    mois_main(["bank", "show", str(merged)])
    about, model, _, *rows = capsys.readouterr().out.splitlines()
    assert about.startswith(f"{merged}: 3 exemplars at 1.5 mm a pixel, on one image")
    assert model == "model: nano (bundled) bbbbbbbb, Similarity cccccccc"
    assert [row.split()[:4] for row in rows] == [
        ["1", "scan1", "anna", "positive"],
        ["2", "scan1", "anna", "negative"],
        ["2-1", "scan2", "anna", "positive"],
    ]


def test_merge_says_how_many_were_there_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank_of(exemplar("1", 1.0), exemplar("2", 1.0)).save(tmp_path / "a")
    bank_of(exemplar("1", 1.0), exemplar("2", 2.0)).save(tmp_path / "b")
    mois_main(["bank", "merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")])
    assert (
        capsys.readouterr().out
        == f"{tmp_path / 'c'}: 2 exemplars of 1 scans; left out, since they are there already: 2\n"
    )
    assert ExemplarBank.load(tmp_path / "c", MODEL, 1.5).keys() == ["1", "2"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["ls", "."], ". holds no exemplar bank (bank*.safetensors); give the folder of a session."),
        (["ls", "none"], "none: there is no such bank; give the file that a session saved."),
        (["merge", "a", "--out", "b"], "banks=a: merge takes two or more banks."),
        (["merge", "a", "b"], "not set: out; set it with --out=VALUE, or in a file given with --config FILE"),
        (["merge", "a", "b", "--otu", "c"], "otu is no setting; did you mean out?"),
        (["merge", "a", "./a", "--out", "b"], "banks: a and a are one file; name each bank once."),
        (["merge", "a", "none/../a", "--out", "b"], "banks: a and none/../a are one file; name each bank once."),
        (["merge", "a", "link", "--out", "b"], "banks: a and link are one file; name each bank once."),
        (["lss"], "lss is no command; did you mean ls?"),
        ([], "no command was given; choose one of ls, show, merge"),
    ],
)
@pytest.mark.usefixtures("work_elsewhere")
def test_mistakes_end_in_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "--out" in words:
        bank_of(exemplar("1", 1.0)).save(Path("a"))
        Path("link").symlink_to("a")
    with pytest.raises(SystemExit):
        mois_main(["bank", *words])
    assert capsys.readouterr().err == f"error: {line}\n"
