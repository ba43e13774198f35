"""The lines on the progress of a training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mois.machine.interrupts import HOW_TO_GO_ON
from mois.training import epoch_lines
from mois.training.epoch_lines import EpochLines


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(epoch_lines, "say", lambda trainer, line: lines.append(line))
    return lines


def trainer_after(steps: int, *callbacks: Any, stops: bool = False, last: bool = True) -> Any:
    """Return a trainer after some of 100 steps."""
    progress = SimpleNamespace(batch_progress=SimpleNamespace(is_last_batch=last))
    return SimpleNamespace(
        global_step=steps, estimated_stepping_batches=100, callbacks=list(callbacks), should_stop=stops, max_epochs=4,
        current_epoch=0, is_global_zero=True, sanity_checking=False, callback_metrics={"val/right": 0.5},
        enable_validation=True, val_dataloaders=None, state=SimpleNamespace(fn="fit"),
        fit_loop=SimpleNamespace(epoch_loop=progress),
    )  # fmt: skip


def begin(monkeypatch: pytest.MonkeyPatch) -> tuple[EpochLines, Any]:
    """Return the lines of a training that began at 0 s, and a clock."""
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(epoch_lines, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    lines, model = EpochLines(), SimpleNamespace()
    lines.on_train_start(trainer_after(0), model)  # type: ignore[arg-type]
    return lines, clock


@pytest.mark.parametrize(
    ("callbacks", "left"), [([], "36 s left"), ([SimpleNamespace(left_s=20.0)], "20 s left")], ids=["steps", "limit"]
)
def test_the_time_left_ends_with_the_minutes_that_were_given(
    monkeypatch: pytest.MonkeyPatch, said: list[str], callbacks: list[Any], left: str
) -> None:
    """10 of 100 steps in 4 s: the other 90 take 36 s, but the limit may come first."""
    lines, clock = begin(monkeypatch)
    clock.now_s = 4.0
    lines.on_train_epoch_end(trainer_after(10, *callbacks), SimpleNamespace())  # type: ignore[arg-type]
    assert said == [f"epoch 1 of 4, step 10: {left}"]


def test_a_training_that_ends_has_no_time_left_and_says_its_last_figures_once(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    lines, clock = begin(monkeypatch)
    clock.now_s = 4.0
    stopped, model = trainer_after(1, stops=True, last=False), SimpleNamespace()
    lines.on_validation_end(stopped, model)  # type: ignore[arg-type]
    lines.on_train_epoch_end(stopped, model)  # type: ignore[arg-type]
    assert said == ["epoch 1, step 1: right 0.50"]


@pytest.mark.parametrize(("trains_for_another", "shown"), [(False, True), (True, False)])
def test_only_a_training_of_the_users_names_its_own_option(
    monkeypatch: pytest.MonkeyPatch, said: list[str], trains_for_another: bool, shown: bool
) -> None:
    monkeypatch.delenv(HOW_TO_GO_ON, raising=False)
    if trains_for_another:
        monkeypatch.setenv(HOW_TO_GO_ON, "give the same command again")
    EpochLines().on_sanity_check_start(trainer_after(0), SimpleNamespace())  # type: ignore[arg-type]
    assert ("--validate_first" in said[0]) is shown
