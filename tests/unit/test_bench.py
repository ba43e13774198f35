"""The bench beside its last run, and the page that tells of the stored one."""

from __future__ import annotations

import json
import re
import sys
from types import SimpleNamespace

import pytest

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT))  # the bench is run as `python -m tests.bench.run`, and installed nowhere
from tests.bench import page, run
from tests.bench.measure import Outcome

STORED = json.loads((ROOT / "docs" / "bench.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "now", "before", "said"),
    [
        ("click_vs_encode", 0.0125, 0.01, ("+25%", True)),
        ("click_vs_encode", 0.0119, 0.01, ("+19%", False)),
        ("click_vs_encode", 0.005, 0.01, ("-50%", False)),
        ("ddp2_vs_1", 1.5, 2.0, ("-25%", True)),  # higher is better
        ("ddp2_vs_1", 1.625, 2.0, ("-19%", False)),
        ("ddp2_vs_1", 3.0, 2.0, ("+50%", False)),
        ("ddp2_vs_1", 1.5, None, ("-", False)),
        ("click_vs_encode", 1.0, 0.0, ("-", False)),
    ],
)
def test_worse_by_more_than_a_fifth_is_marked(name, now, before, said):
    assert run.change(name, now, before) == said


def test_what_is_better_when_high_is_measured():
    assert set(run.BETTER_WHEN_HIGH) <= set(run.figures_of(STORED))


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """A bench of two measurements, stored at 1.0 each, that gives what `bench.now` says."""
    given = SimpleNamespace(now=1.0, out=tmp_path / "out", stored=tmp_path / "stored.json")

    def slow(repeats):
        """How slow it is."""
        return Outcome({"slow_vs_fast": given.now}, {"slow_s": given.now})

    def big(repeats):
        """How big it is."""
        return Outcome({"big_vs_small": given.now})

    def measure(*arguments):
        run.main([f"--out={given.out}", *arguments])
        return json.loads((given.out / "bench.json").read_text(encoding="utf-8"))

    given.run = measure
    here = run.machine()
    monkeypatch.setattr(run, "machine", lambda: here)
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)  # other tests follow in this process
    monkeypatch.setattr(run, "MODULES", (SimpleNamespace(MEASUREMENTS=[slow, big]),))
    monkeypatch.setattr(run, "STORED", given.stored)
    notes = {"repeats": 5, "machine": {**here, "cores": 640}, "versions": {**run.versions(), "torch": "1.0"}}
    given.stored.write_text(json.dumps({"slow_vs_fast": 1.0, "big_vs_small": 1.0, **notes}), encoding="utf-8")
    return given


def test_without_a_last_run_the_stored_one_is_compared_with(bench, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    bench.now = 1.5
    bench.run("--repeats=3")
    said = capsys.readouterr().out
    assert f"last run: {bench.stored}" in said
    assert said.count("+50% WORSE") == 2
    cores, torch = run.machine()["cores"], run.versions()["torch"]
    assert said.count(f"repeats 3 instead of 5, cores {cores} instead of 640, torch {torch} instead of 1.0") == 2
    bench.now = 1.2
    bench.run("--repeats=3")
    said = capsys.readouterr().out
    assert f"last run: {bench.out / 'bench.json'}" in said
    assert said.count("-20%") == 2
    assert "WORSE" not in said
    assert "instead of" not in said


def test_what_is_measured_again_says_how_and_relabels_nothing_else(bench):
    here = {"machine": run.machine(), "versions": run.versions()}
    whole = bench.run("--repeats=5")
    assert whole["groups"] == {"slow": {"repeats": 5, **here}, "big": {"repeats": 5, **here}}
    bench.now = 2.0
    mixed = bench.run("--only=slow", "--repeats=1")
    assert (mixed["slow_vs_fast"], mixed["big_vs_small"]) == (2.0, 1.0)
    assert {name: notes["repeats"] for name, notes in mixed["groups"].items()} == {"slow": 1, "big": 5}
    assert mixed["repeats"] == 5  # of all that has no notes of its own, as in files that held none


def test_a_run_of_another_machine_stays_one(bench):
    bench.out.mkdir()
    (bench.out / "bench.json").write_bytes(bench.stored.read_bytes())
    mixed = bench.run("--only=slow", "--repeats=1")
    assert (mixed["repeats"], mixed["machine"]["cores"], mixed["versions"]["torch"]) == (5, 640, "1.0")
    assert mixed["groups"] == {"slow": {"repeats": 1, "machine": run.machine(), "versions": run.versions()}}


def test_one_of_two_measured_on_a_fresh_clone_leaves_the_stored_figures_out(bench):
    assert set(run.figures_of(bench.run("--only=slow"))) == {"slow_vs_fast"}


def test_the_stored_run_is_whole_and_of_one_piece():
    known = {measurement.__name__ for module in run.MODULES for measurement in module.MEASUREMENTS}
    assert set(STORED["details"]) == set(STORED["groups"]) == known
    assert all(notes == run.notes_of(STORED) for notes in STORED["groups"].values())


def test_the_tables_of_the_page_are_those_of_the_stored_run():
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.filled(text, STORED), "run python -m tests.bench.page"
    assert set(re.findall(r"<!-- bench: (\w+) -->", text)) == {"figures", *page.TABLES}
    assert [name for name, *_ in page.FIGURES] == list(dict.fromkeys(name for name, *_ in page.FIGURES))
    assert {name for name, *_ in page.FIGURES} == set(run.figures_of(STORED))


def test_a_table_takes_its_numbers_from_the_run():
    details = {"speed": {"full_mib": 3024.5, "full_cpu_s": 9.12}}
    assert page._with_details("{full_mib:0} and {full_cpu_s*1000/100:1}", details["speed"]) == "3024 and 91.2"
    assert page.number(0.109, 2) == ".11"
    with pytest.raises(KeyError):
        page.filled("<!-- bench: training -->\n<!-- end -->", {"details": details})
