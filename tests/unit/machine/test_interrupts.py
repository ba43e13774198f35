"""Ctrl-C, wherever it comes: one line that says how to go on, and exit code 130."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stand_in import Model

from mois.cli import demo_steps as demo
from mois.cli import main
from mois.cli.train import MoisCLI
from mois.machine.interrupts import GIVE_COMMAND_AGAIN, HOW_TO_GO_ON, ctrl_c_ends
from mois.training.signals import IMPATIENCE_S
from tests.support.paths import ROOT

STAND_IN = [
    "--model.layer=stand_in.Layer",
    "--data=stand_in.Data",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--tracking.wandb=disabled",
]
pytestmark = pytest.mark.usefixtures("same_handlers")


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_one_line_says_how_to_go_on(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="130"), ctrl_c_ends(), ctrl_c_ends(lambda: "take the train"):
        ctrl_c()
    assert capfd.readouterr().err == "\nstopped by Ctrl-C; take the train\n"


def test_a_library_may_raise_it_by_itself(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="130"), ctrl_c_ends():
        raise KeyboardInterrupt
    assert capfd.readouterr().err == f"\nstopped by Ctrl-C; {GIVE_COMMAND_AGAIN}\n"


def test_what_comes_after_is_as_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    with ctrl_c_ends():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_a_ctrl_c_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for a job in the background
    with ctrl_c_ends():
        ctrl_c()


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_one_of_many_processes_speaks(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SystemExit, match="130"), ctrl_c_ends():
        ctrl_c()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "while_doing",
    ["time.sleep(60)", "sys.exit(atexit.register(time.sleep, 60) and 0)"],
    ids=["at work", "tidying up"],
)
def test_ctrl_c_ends_a_process_without_a_traceback(while_doing: str) -> None:
    code = (
        "import atexit, sys, time\nfrom mois.machine.interrupts import ctrl_c_ends\n"
        "with ctrl_c_ends(to_the_end=True):\n"
        f"    print('ready', flush=True)\n    {while_doing}\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=env
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said in ("", f"\nstopped by Ctrl-C; {GIVE_COMMAND_AGAIN}\n")
    assert bool(said) == ("exit" not in while_doing)


@pytest.mark.parametrize("program", [["train.py", "fit"], ["-m", "mois.cli", "doctor"]], ids=["train.py", "mois"])
def test_ctrl_c_while_packages_are_imported(program: list[str], tmp_path: Path) -> None:
    marker = "import builtins, os, signal\ntrue = builtins.__import__\ndef seen(name, *rest, **more):\n"
    marker += "    if name == 'torch': os.kill(os.getpid(), signal.SIGINT)\n    return true(name, *rest, **more)\n"
    (tmp_path / "sitecustomize.py").write_text(marker + "builtins.__import__ = seen\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, *program], capture_output=True, encoding="utf-8", cwd=ROOT, env=env)
    assert (done.returncode, done.stderr) == (130, f"\nstopped by Ctrl-C; {GIVE_COMMAND_AGAIN}\n")


@pytest.mark.parametrize(("command", "step"), [("validate", "validation_step"), ("test", "test_step")])
def test_ctrl_c_in_a_validation_or_test(
    command: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Model, step, lambda *_: ctrl_c())
    with pytest.raises(SystemExit, match="130"):
        MoisCLI([command, *STAND_IN], Model)
    said = capfd.readouterr().err
    assert said.endswith("\nstopped by Ctrl-C; start it again\n")
    assert "Traceback" not in said


def test_ctrl_c_twice_in_a_validation_of_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def validate(*_: object) -> None:
        ctrl_c()
        monkeypatch.setattr("mois.training.signals.time.monotonic", lambda: 10**6 * IMPATIENCE_S)
        ctrl_c()

    monkeypatch.setattr(Model, "validation_step", validate)
    with pytest.raises(SystemExit, match="130"):
        MoisCLI(["fit", "--trainer.max_epochs=1", "--checkpoints.every_n_steps=1", *STAND_IN], Model)
    first, second = [line for line in capfd.readouterr().err.splitlines() if "Ctrl-C" in line]
    assert first == "the training ends after this scan; Ctrl-C once more ends it at once"
    assert second == f"stopped by Ctrl-C; go on with --ckpt_path last ({Path('runs/run/checkpoints/last.ckpt')})"


@pytest.mark.parametrize(
    ("command", "how_to_go_on"),
    [
        ("phantom", GIVE_COMMAND_AGAIN),
        ("segment", f"{GIVE_COMMAND_AGAIN}: it goes on where it was"),
        ("evaluate", f"{GIVE_COMMAND_AGAIN}: it goes on where"),
    ],
)
def test_each_command_says_whether_it_goes_on(
    command: str, how_to_go_on: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mois.cli.commands.run", lambda given: ctrl_c())
    with pytest.raises(SystemExit, match="130"):
        main([command])
    assert re.fullmatch(rf"\nstopped by Ctrl-C; {how_to_go_on}.*\n", capfd.readouterr().err)


def test_the_demo_hands_ctrl_c_on_and_has_the_command_say_how_the_demo_goes_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    code = (
        "import os, signal\nfrom mois.machine.interrupts import ctrl_c_ends\nwith ctrl_c_ends(to_the_end=True):\n"
        "    os.kill(os.getppid(), signal.SIGINT)\n    signal.pause()\n"
    )
    with ctrl_c_ends():
        assert demo.run_command([sys.executable, "-c", code]) == 130
    assert capfd.readouterr().err == f"\nstopped by Ctrl-C; {GIVE_COMMAND_AGAIN}: the demo goes on where it was\n"
    assert HOW_TO_GO_ON not in os.environ
