"""`mois sweep`: the file in W&B's layout, and trials that survive a kill."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from mois.cli import main as mois_main
from mois.cli.shipped_configs import find_config
from mois.cli.sweep import _file_of
from mois.cli.sweep_file import Parameter, SweepFile
from tests.support.paths import ROOT

# A training of some tenths of a second: it goes on from its folder, and its figure is best at a rate of 0.01.
PROGRAM = """
import math, pathlib, sys, time
given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(given["trainer.default_root_dir"])
folder.mkdir(parents=True, exist_ok=True)
with (folder / "starts.txt").open("a") as starts:
    starts.write(given["rate"] + "\\n")
time.sleep(float(given["wait"]))
score = -abs(math.log10(float(given["rate"])) + 2) + int(given["rank"]) / 100
(folder / "metrics.csv").write_text(f"step,val/score\\n1,-9\\n2,{score}\\n3,\\n")
"""


def write_sweep(folder: Path, **changes: object) -> Path:
    (folder / "fit.py").write_text(PROGRAM, encoding="utf-8")
    content = {
        "program": str(folder / "fit.py"),
        "method": "bayes",
        "metric": {"name": "val/score", "goal": "maximize"},
        "run_cap": 8,
        "parameters": {
            "rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0},
            "rank": {"values": [4, 8]},
            "wait": {"value": 0.0},
        },
        "command": ["${env}", "${interpreter}", "${program}", "${args}"],
        **changes,
    }
    file = folder / "rates.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_shipped_sweeps_can_be_read_and_name_settings_of_their_config() -> None:
    files = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
    assert files
    for file in files:
        plan = SweepFile.read(file)
        chosen = {name: one.values[0] if one.values else one.low for name, one in plan.parameters.items()}
        words = plan.words(chosen)
        assert words[:4] == [sys.executable, "-m", "mois", "fit"]
        config = yaml.safe_load(find_config(words[words.index("--config") + 1]).read_text(encoding="utf-8"))
        assert {name.split(".")[0] for name in plan.parameters} <= config.keys()
        of_agent = create_sweep_command_args({"args": {name: {"value": value} for name, value in chosen.items()}})
        assert words[-len(chosen) :] == of_agent["args"]  # as `wandb agent` gives them


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "hyperband"}, "method=hyperband must be bayes, random or grid"),
        ({"metric": {"name": "val/score"}}, "maximize"),
        ({"parameters": {}}, "lacks parameters"),
        ({"parameters": {"rate": {"min": 1}}}, "parameters.rate"),
        ({"command": ["python"]}, "args"),
        ({"method": "grid"}, "method=grid needs values"),
        ({"parameters": ["rate"]}, "parameters=.'rate'. must name settings"),
        ({"parameters": {"rate": 3}}, "parameters.rate=3: give values"),
        ({"parameters": {"rate": {"values": 3}}}, "parameters.rate.*: give values"),
        ({"parameters": {"rate": {"values": "4, 8"}}}, "parameters.rate.*: give values"),
        ({"parameters": {"rate": {"values": []}}}, "parameters.rate.*: give values"),
        ({"parameters": {"rate": {"min": 0, "max": 1, "distribution": "log_uniform_values"}}}, "above 0"),
        ({"parameters": {"rate": {"min": 0.5, "max": 1.5, "distribution": "int_uniform"}}}, "whole numbers"),
        ({"run_cp": 8}, "run_cp is no key of a sweep here; there are program, method, metric, run_cap"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate is no key of a sweep here"),
        ({"command": "mois fit ${args}"}, "must be a list of words"),
        ({"parameters": {"rate": {"min": 1, "max": 2, "q": 0.5}}}, "parameters.rate.*: give values"),
        ({"parameters": {"rate": {"values": [1], "probabilities": [1]}}}, "parameters.rate.*: give values"),
        ({"parameters": {"rate": {"values": [1], "max": 2}}}, "parameters.rate.*: give values"),
        ({"run_cap": "8"}, "run_cap=8 must be a whole number of 1 or more"),
    ],
)
def test_what_is_no_sweep_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SweepFile.read(write_sweep(tmp_path, **changes))


def test_a_sweep_that_is_no_yaml_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "rates.yaml").write_text("method: [bayes\nmetric: 3\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"rates\.yaml is no YAML: line 2, column 7: expected"):
        SweepFile.read(tmp_path / "rates.yaml")


def test_a_damaged_memory_of_a_sweep_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna", reason="the extra sweep is not installed")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "study.db").write_bytes(b"no database" * 100)
    with pytest.raises(SystemExit):
        mois_main(["sweep", str(write_sweep(tmp_path)), f"--out={tmp_path / 'out'}"])
    line = capsys.readouterr().err
    assert line.endswith("study.db cannot be used (file is not a database); choose another folder.\n")


def test_ranges_are_whole_numbers_only_where_both_ends_are() -> None:
    assert Parameter.of("a", {"min": 1, "max": 4}).whole
    assert not Parameter.of("a", {"min": 1, "max": 4.0}).whole
    assert Parameter.of("a", {"min": 1, "max": 4, "distribution": "int_uniform"}).whole


def test_a_number_may_be_written_as_yaml_takes_for_a_text() -> None:
    assert yaml.safe_load("1e-4") == "1e-4"  # a point is missing
    assert Parameter.of("a", {"min": "1e-4", "max": "1e-2"}) == Parameter(low=1e-4, high=1e-2)


def test_a_grid_is_tried_once_in_its_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna", reason="the extra sweep is not installed")
    values = {"rate": {"values": [0.1, 0.01]}, "rank": {"values": [4, 8]}, "parts": {"value": ["trunk", "neck"]}}
    file = write_sweep(tmp_path, method="grid", run_cap=None, parameters={**values, "wait": {"value": 0.0}})
    out = tmp_path / "out"
    mois_main(["sweep", str(file), f"--out={out}", "--trials=3"])
    mois_main(["sweep", str(file), f"--out={out}"])  # all of the grid
    mois_main(["sweep", str(file), f"--out={out}", "--trials=9"])  # there is no more
    found = sorted((float(row["rate"]), int(row["rank"])) for row in rows(out))
    assert found == [(0.01, 4), (0.01, 8), (0.1, 4), (0.1, 8)]
    assert {row["parts"] for row in rows(out)} == {'["trunk", "neck"]'}
    assert json.loads((out / "best.json").read_text())["settings"]["rate"] == 0.01
    assert """--parts='["trunk", "neck"]'""" in capsys.readouterr().out.splitlines()[-1]


def test_a_sweep_finds_the_best_and_is_not_made_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna", reason="the extra sweep is not installed")
    file, out = write_sweep(tmp_path, run_cap=3, method="random"), tmp_path / "out"
    mois_main(["sweep", str(file), f"--out={out}"])
    before = rows(out)
    assert len(before) == 3
    assert len({row["rate"] for row in before}) == 3
    best = json.loads((out / "best.json").read_text())
    assert best["val/score"] == max(float(row["val/score"]) for row in before)
    mois_main(["sweep", str(file), f"--out={out}", "--trials=5"])
    after = rows(out)
    assert after[:3] == before
    assert len({row["rate"] for row in after}) == 5
    assert len(list(out.glob("trial*/starts.txt"))) == 5
    with pytest.raises(SystemExit):
        mois_main(["sweep", str(write_sweep(tmp_path, method="bayes")), f"--out={out}"])
    assert "holds another sweep (other method); choose" in capsys.readouterr().err


def test_a_sweep_does_not_go_on_with_another_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna", reason="the extra sweep is not installed")
    config, out = tmp_path / "small.yaml", tmp_path / "out"
    config.write_text("a: 1\n", encoding="utf-8")
    command = ["${interpreter}", "${program}", f"--config={config}", "${args}"]
    file = write_sweep(tmp_path, run_cap=1, method="random", command=command)
    mois_main(["sweep", str(file), f"--out={out}"])
    mois_main(["sweep", str(file), f"--out={out}", "--trials=2"])
    config.write_text("a: 2\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        mois_main(["sweep", str(file), f"--out={out}", "--trials=3"])
    assert f"holds another sweep (other {config}); choose another folder" in capsys.readouterr().err
    assert len(rows(out)) == 2
    record = json.loads((out / "sweep.json").read_text())
    record.pop("files")  # as an earlier version wrote it
    (out / "sweep.json").write_text(json.dumps(record))
    mois_main(["sweep", str(file), f"--out={out}", "--trials=3"])


@pytest.mark.ci
def test_eight_trials_killed_twice_end_with_eight(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra sweep is not installed")
    slow = {"rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0}, "rank": {"values": [4, 8]}}
    file, out = write_sweep(tmp_path, parameters={**slow, "wait": {"value": 1.0}}), tmp_path / "out"
    command = [sys.executable, "-m", "mois", "sweep", str(file), f"--out={out}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for trials_before in (2, 5):
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        wait_for(out / f"trial{trials_before}" / "starts.txt", process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert [row["trial"] for row in rows(out)] == [str(number) for number in range(8)]
    assert all(row["val/score"] for row in rows(out))
    starts = {
        folder.name: (folder / "starts.txt").read_text().split() for folder in out.glob("trial*") if folder.is_dir()
    }
    assert len(starts) == 8
    assert {name: len(rates) for name, rates in starts.items() if len(rates) > 1} == {"trial2": 2, "trial5": 2}
    assert all(len(set(rates)) == 1 for rates in starts.values())  # a trial goes on with its own settings


def wait_for(file: Path, process: subprocess.Popen[bytes], timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not file.exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_file_that_is_missing_is_not_the_shipped_sweep_of_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "learning_rate.yaml"
    with pytest.raises(SystemExit):
        mois_main(["sweep", str(missing), "--out", str(tmp_path / "out")])
    cure = "give the file of a sweep, or the name of a shipped one: learning_rate."
    assert capsys.readouterr().err == f"error: {missing}: there is no such file; {cure}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["learning_rate", "learning_rate.yaml", "sweeps/learning_rate", "./learning_rate"])
def test_a_shipped_sweep_is_found_by_its_name(name: str) -> None:
    assert _file_of(Path(name)) == find_config("sweeps/learning_rate")


def test_a_trial_that_writes_nothing_has_no_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_sweep(tmp_path, command=["${interpreter}", "-c", "pass", "${args}"], run_cap=1)
    mois_main(["sweep", str(file), "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out.splitlines()[1:] == [
        "trial 0: failed, or without val/score",
        "1 trials, none with val/score",
    ]
