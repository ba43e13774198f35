"""A run's folder holds one training, written by one process, and says what was done."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import pytest

from mois.files.folder_lock import NAME, locked
from mois.machine.processes import first_rank
from tests.support.command_lines import FIT, RUN, failing_line, rows, steps, train

pytestmark = pytest.mark.usefixtures("work_elsewhere")


@pytest.fixture
def failing(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    return partial(failing_line, capsys)


def test_a_training_begun_again_where_nothing_was_saved_leaves_one_run(failing: Callable[..., str]) -> None:
    assert "not finite at step 3" in failing(*FIT, "--model.nan_at=3", "--trainer.max_steps=5")
    assert not (RUN / "checkpoints" / "last.ckpt").exists()
    assert steps() == [0, 1, 2]
    train(*FIT, "--trainer.max_steps=2", "--ckpt_path=last")
    assert steps() == [0, 1]


def test_the_figures_of_a_test_stand_at_the_step_of_its_checkpoint() -> None:
    train(*FIT, "--trainer.max_steps=6")
    test = ["test", *FIT[1:], "--ckpt_path=last"]
    train(*test)
    assert [row["step"] for row in rows() if row["test/right"]] == ["6"]
    train(*FIT, "--trainer.max_steps=8", "--ckpt_path=last")
    assert steps() == list(range(8))
    assert [row["step"] for row in rows() if row["test/right"]] == ["6"]  # it stands, the training goes on
    train(*test[:-1])  # the model before the training
    assert [row["step"] for row in rows() if row["test/right"]] == ["6", "0"]


def test_a_test_leaves_the_record_of_the_training_alone() -> None:
    train(*FIT, "--trainer.max_steps=2")
    before = (RUN / "provenance.json").read_bytes()
    train("test", *FIT[1:], "--ckpt_path=last", "--model.rate=0.5")
    assert (RUN / "provenance.json").read_bytes() == before
    assert json.loads((RUN / "provenance_test.json").read_text())["config"]["model"]["rate"] == 0.5


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_folder_that_is_being_written_is_refused_before_anything_is_written(
    failing: Callable[..., str], command: str
) -> None:
    with locked(RUN):
        said = failing(command, *FIT[1:])
        assert said == "run is being written by this process, elsewhere; wait until it ends, or choose another folder."
        assert [path.name for path in RUN.iterdir()] == [NAME]
    train(*FIT, "--trainer.max_steps=2")
    assert not (RUN / NAME).exists()


def test_a_failed_training_lets_go_of_its_folder(failing: Callable[..., str]) -> None:
    for _ in range(2):
        assert "not finite" in failing(*FIT, "--model.nan_at=0")
        assert not (RUN / NAME).exists()


@pytest.mark.parametrize(
    ("given", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "4", "LOCAL_RANK": "0"}, False),  # the first of another machine
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "3", "RANK": "0"}, True),
    ],
)
def test_the_first_rank_is_known_before_the_ranks_meet(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], first: bool
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert first_rank() is first
