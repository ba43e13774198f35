"""Results side by side: pairs by scan, intervals over patients, Holm over every test that is shown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mois.cli import main
from mois.cli.commands import with_options
from mois.evaluation.figures import SubjectReport
from mois.evaluation.result_files import write_result_files
from mois.evaluation.settings import ProtocolSettings
from mois.report.comparison import FIGURES, compare, named_results
from tests.support.example_results import example_report, write_example

DICE = {"a": 0.5, "b": 0.6, "c": 0.4, "d": 0.7}


def scan(name: str, dice: float, f1: float = 0.5) -> SubjectReport:
    report = example_report(name, f"patient_{name}", dice, seed=1)
    (one,) = report.classes
    figures = replace(one.figures, unprompted_dice=dice, lesion_f1=f1, false_lesions=2.0, scan_dice=0.5)
    return replace(report, classes=(replace(one, figures=figures),))


def run(folder: Path, dice: dict[str, float], protocol: ProtocolSettings | None = None) -> Path:
    write_result_files(
        folder, [scan(name, value) for name, value in dice.items()], protocol=protocol or ProtocolSettings()
    )
    return folder


def test_differences_are_paired_by_scan(tmp_path: Path) -> None:
    first = run(tmp_path / "a", DICE)
    second = run(tmp_path / "b", {name: DICE[name] + 0.1 for name in reversed(DICE)})  # in another order
    found = compare(named_results([first, second]))
    tests = {entry["figure"]: entry for entry in found["comparisons"]}
    assert list(tests) == list(FIGURES)
    dice = tests["unprompted_dice"]
    assert (dice["first"], dice["second"], dice["n"], dice["patients"]) == ("a", "b", 4, 4)
    assert dice["mean"] == pytest.approx(0.1)
    assert dice["ci95"] == pytest.approx([0.1, 0.1])
    assert dice["p"] == pytest.approx(2 / 2**4)  # four of four rise
    assert dice["p_holm"] == pytest.approx(4 * 2 / 2**4)  # the smallest of four tests
    assert tests["unprompted_f1"]["mean"] == 0
    assert tests["unprompted_f1"]["p"] == tests["unprompted_f1"]["p_holm"] == 1
    assert found["runs"]["a"]["unprompted_dice"]["mean"] == pytest.approx(0.55)
    assert found["protocol_differences"] == {}
    assert found["truth_differs"] == []


def test_only_scans_that_all_have_are_compared(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", DICE), run(tmp_path / "b", {"b": 0.9, "c": 0.4, "x": 0.1})
    found = compare(named_results([first, second]))
    assert found["scans"] == ["b", "c"]
    assert found["left_out"] == {"a": ["a", "d"], "b": ["x"]}
    assert found["comparisons"][0]["mean"] == pytest.approx((0.3 + 0.0) / 2)
    assert found["runs"]["a"]["unprompted_dice"]["mean"] == pytest.approx(0.5)


def test_each_is_compared_with_each_and_holm_counts_them_all(tmp_path: Path) -> None:
    runs = [run(tmp_path / name, {k: v + 0.05 * at for k, v in DICE.items()}) for at, name in enumerate("abc")]
    found = compare(named_results(runs))
    pairs = [(e["first"], e["second"]) for e in found["comparisons"] if e["figure"] == "unprompted_dice"]
    assert pairs == [("a", "b"), ("a", "c"), ("b", "c")]
    assert len(found["comparisons"]) == 3 * len(FIGURES)
    assert found["comparisons"][0]["p_holm"] == 1  # 2 / 2^4 times twelve tests


def test_other_protocols_and_other_truth_are_said(tmp_path: Path) -> None:
    first = run(tmp_path / "a", DICE)
    second = run(tmp_path / "b", DICE, ProtocolSettings(prompted=3, counts=(1,)))
    metrics = json.loads((second / "metrics.json").read_text(encoding="utf-8"))
    metrics["subjects"][1]["lesions"] += 1
    (second / "metrics.json").write_text(json.dumps(metrics))
    out = tmp_path / "out"
    main(["compare", str(first), str(second), "--out", str(out)])
    found = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert found["protocol_differences"] == {"prompted": {"a": 5, "b": 3}}  # counts are for the curves alone
    assert found["truth_differs"] == ["b"]
    page = (out / "compare.html").read_text(encoding="utf-8")
    assert "The protocols differ (prompted: a 5, b 3)" in page
    assert "The runs count different lesions in b" in page


def test_the_surface_dice_is_compared_at_one_tolerance(tmp_path: Path) -> None:
    fine = ProtocolSettings(surface_mm=0.25)
    a, b, c = run(tmp_path / "a", DICE, fine), run(tmp_path / "b", DICE, fine), run(tmp_path / "c", DICE)
    same = compare(named_results([a, b]))
    assert "unprompted_surface_dice_0.25mm" in same["runs"]["a"]
    assert same["protocol_differences"] == {}
    other = compare(named_results([a, c]))
    assert not any("surface" in name for name in other["runs"]["a"])
    assert other["protocol_differences"] == {"surface_mm": {"a": 0.25, "c": 2.0}}
    metrics = json.loads((c / "metrics.json").read_text(encoding="utf-8"))
    for name in ("surface_mm", "bins_ml"):  # as results were before these were settings
        del metrics["protocol"][name]
    (c / "metrics.json").write_text(json.dumps(metrics))
    d = run(tmp_path / "d", DICE)
    assert compare(named_results([c, d]))["protocol_differences"] == {}


@pytest.mark.parametrize(
    ("given", "names", "message"),
    [
        (["a"], None, "compare needs two or more results, got 1"),
        (["a", "a"], None, "the same folder is given twice"),
        (["a", "b"], ["x", "x"], "give a different one for each of 2 folders"),
        (["a", "other"], None, "no scan is in all of a, other"),
        (["a", "none"], None, "no metrics.json in it"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, given: list[str], names: list[str] | None, message: str
) -> None:
    for name in "ab":
        run(tmp_path / name, DICE)
    run(tmp_path / "other", {"z": 0.5})
    with pytest.raises(ValueError, match=re.escape(message)):
        compare(named_results([tmp_path / name for name in given], names))


def test_folders_are_named_by_where_they_differ(tmp_path: Path) -> None:
    folders = [run(tmp_path / name / "test", {"p": 0.5}) for name in ("before", "after")]
    assert list(named_results(folders)) == ["before", "after"]
    folders = [run(tmp_path / seed / name / "test", {"p": 0.5}) for seed in "12" for name in "xy"]
    assert list(named_results(folders)) == ["1/x", "1/y", "2/x", "2/y"]


def test_the_folder_of_a_run_stands_for_its_test(tmp_path: Path) -> None:
    for name in "ab":
        run(tmp_path / name / "test", DICE)
    found = named_results([tmp_path / "a", tmp_path / "b" / "test"])
    assert {name: results.folder for name, results in found.items()} == {
        name: tmp_path / name / "test" for name in "ab"
    }
    run(tmp_path / "a", {"q": 0.5})  # its own results come first
    assert named_results([tmp_path / "a", tmp_path / "b"])["a"].scan_count == 1
    with pytest.raises(ValueError, match="the same folder is given twice"):
        named_results([tmp_path / "b", tmp_path / "b" / "test"])


def test_the_page_shows_every_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        write_example(tmp_path / name, 4, level, seed=at)
        for at, (name, level) in enumerate({"x": 0.6, "y": 0.4}.items())
    ]
    main(["compare", *map(str, runs), "--out", str(tmp_path / "out"), "--names", "[ours, theirs]"])
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", page)[:4] == [
        "Figures",
        "Differences",
        "Prompted lesions",
        "By size of lesion",
    ]
    assert "theirs minus ours" in page
    assert page.count('<img src="data:image/svg+xml') == page.count("<img") == 5
    assert "theirs minus ours" in capsys.readouterr().out


def test_words_after_compare_are_its_runs() -> None:
    assert with_options(["compare", "a b", "c", "--out", "d"]) == ["compare", '--runs=["a b", "c"]', "--out", "d"]
    assert with_options(["compare", "--runs", "[a]"]) == ["compare", "--runs", "[a]"]
    assert with_options(["curves", "runs/x", "--window=5"]) == ["curves", "--run=runs/x", "--window=5"]
    assert with_options(["export_nnunet", "x"]) == ["export_nnunet", "x"]
    assert with_options([]) == []
    assert with_options(["segment", "a b.nii.gz", "--out", "d"]) == ["segment", '--image=["a b.nii.gz"]', "--out", "d"]
