"""The bench beside its last run, and the page that tells of the stored one."""

from __future__ import annotations

import json
import re
import sys
from types import SimpleNamespace

import pytest

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT))  # the bench is run as `python -m tests.bench.run`, and installed nowhere
from tests.bench import run
from tests.bench.measure import Outcome

STORED = json.loads((ROOT / "docs" / "bench.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


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


def test_the_table_of_the_page_says_what_the_stored_run_says():
    rows = re.findall(r"^\| `(\w+)` \|.*?\| \*\*([\d.]+)\*\*.*\|.*\|$", PAGE, flags=re.MULTILINE)
    assert {name for name, _ in rows} == set(run.figures_of(STORED))
    assert dict(rows) == {name: rounded(STORED[name], len(said.partition(".")[2])) for name, said in rows}


def rounded(value: float, places: int) -> str:
    """As the page writes it: no 0 before the point."""
    return f"{value:.{places}f}".removeprefix("0" if places else "")


def told(words: str, **figures: tuple[str, float, int]):
    """What the page says: names in the words stand for a detail of the run, times a factor, with so many places."""
    return pytest.param(words, figures, id=words)


def told_of_training(name: str, arm: str, speed: str = ""):
    figures = {"m": (f"{arm}_mib", 1, 0), "s": (f"{arm}_cpu_s", 1, 1)}
    fast = {"e": (f"{speed}_episodes_per_cpu_s", 1, 2)} if speed else {}
    return told(f"| {name} | {{m}} | {{s}} | {'{e} ' if speed else ''}|", **figures, **fast)


@pytest.mark.parametrize(
    ("words", "figures"),
    [
        told("foreground attention {f} kB, the paper's {p} kB",
             f=("foreground_bytes_per_exemplar", 1e-3, 0), p=("paper_bytes_per_exemplar", 1e-3, 0)),
        told("`Similarity` {s} (10) and {t} (100);", s=("similarity_10_s", 1e3, 0), t=("similarity_100_s", 1e3, 0)),
        told("; foreground attention {f} and {g};", f=("foreground_10_s", 1e3, 0), g=("foreground_100_s", 1e3, 0)),
        told("; the paper's {p} (10);", p=("paper_10_s", 1e3, 0)),
        told("`Prototype` {p} and {q} (", p=("prototype_10_s", 1e3, 0), q=("prototype_100_s", 1e3, 0)),
        told("50 lesions take {b} s instead of {s} (", b=("batched_s", 1, 2), s=("serial_s", 1, 2)),
        told("({m}, {a})", m=("similarity_merged_dice", 1, 3), a=("similarity_all_dice", 1, 3)),
        told("({f}, {d}; see below)", f=("attention_foreground_dice", 1, 4), d=("attention_dense_dice", 1, 4)),
        told("no class changed by more than {m} (", m=("merged_apart_at_most", 1, 3)),
        told("({u} without cache)", u=("train_late_lora_uncached_vs_full", 1, 1)),
        told_of_training("full fine-tuning", "full", "full"),
        told_of_training("DoRA, all layers", "dora_all_layers"),
        told_of_training("LoRA, all layers", "lora_all_layers"),
        told_of_training("LoRA, last stage", "late_lora", "late_lora_cached"),
        told_of_training("frozen", "frozen", "frozen_cached"),
        told("fall from {one} to {two} |",
             one=("one_cpu_s_of_rank_0_per_step", 1, 1), two=("two_cpu_s_of_rank_0_per_step", 1, 1)),
        told("losses equal to {apart}e-7;", apart=("losses_apart", 1e7, 0)),
        told(": {one} ms a lesion at", one=("described_300", 1e3 / 300, 0)),
        told("session ({s}) and evaluation ({e})", s=("session_peak_gib", 1, 1), e=("evaluation_peak_gib", 1, 1)),
        told("| {s} s a scan, on a CPU", s=("evaluation_all_seconds", 1, 0)),
        told("much of those {s} s a scan", s=("evaluation_all_seconds", 1, 0)),
        told("| encode 10 patches | {t} TFLOP |", t=("tiny_512_gflop", 1e-2, 2)),
        told("176 tiles x {g} GFLOP", g=("tiny_512_gflop", 1, 0)),
        told("three patches of {s})", s=("tiny_512_s", 1, 2)),
        told("| {c} MB compressed, {m} MB voxels |", c=("compressed_megabytes", 1, 0), m=("megabytes", 1, 0)),
        told("| {p} CPU-s, 6 bytes a voxel", p=("prepare_s", 1, 1)),
        told("| {d} CPU-s (augmentation", d=("ten_episodes_s", 0.1, 2)),
        told("the same counter gives {b} (`kernels`)", b=("kernels_per_step_bf16", 1, 0)),
        told("asks for {a} all-reduces a step (`barriers`:", a=("all_reduces_per_step", 1, 2)),
    ],
)  # fmt: skip
def test_what_else_the_page_tells_is_what_the_stored_run_says(words, figures):
    details = {name: value for group in STORED["details"].values() for name, value in group.items()}
    said = {name: rounded(factor * details[key], places) for name, (key, factor, places) in figures.items()}
    assert words.format(**said) in " ".join(PAGE.split())
