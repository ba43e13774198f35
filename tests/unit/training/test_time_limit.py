"""A training ends in time for its last validation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mois.training import time_limit
from mois.training.time_limit import TimeLimit


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


class Model:
    """Notes how many steps it is told of."""

    steps = 0

    def expect_steps(self, steps: int) -> None:
        self.steps = steps


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time_limit, "time", clock)
    return clock


def run(
    clock: Clock, minutes: float, planned: int = 100, step_s: float = 2.0, validation_s: float = 30.0, ahead: int = 0
) -> Any:
    """Train with this pace until the limit or the plan ends it; return the trainer, with the model that was told.

    The episodes of the first `ahead` steps were drawn ahead: these steps take a quarter of the time.
    """
    limit, model = TimeLimit(minutes), Model()
    trainer: Any = SimpleNamespace(
        global_step=0, should_stop=False, check_val_every_n_epoch=2, max_epochs=4, estimated_stepping_batches=planned,
        strategy=SimpleNamespace(broadcast=lambda value: value), is_global_zero=False, model=model,
    )  # fmt: skip
    limit.on_fit_start(trainer, model)  # type: ignore[arg-type]
    limit.on_validation_start(trainer, model)  # type: ignore[arg-type]
    clock.now_s += validation_s
    limit.on_validation_end(trainer, model)  # type: ignore[arg-type]
    limit.on_train_start(trainer, model)  # type: ignore[arg-type]
    while not trainer.should_stop and trainer.global_step < planned:
        clock.now_s += step_s / 4 if trainer.global_step < ahead else step_s
        trainer.global_step += 1
        limit.on_train_batch_end(trainer, model, None, None, 0)  # type: ignore[arg-type]
    return trainer


def test_four_minutes_leave_time_for_ninety_steps(clock: Clock) -> None:
    """240 s, two validations of 30 s: 180 s for steps of 2 s."""
    trainer = run(clock, minutes=4)
    assert trainer.global_step == 90
    assert trainer.model.steps == 90
    assert trainer.should_stop
    assert trainer.check_val_every_n_epoch == 1  # in whatever epoch it is


def test_a_pace_that_falls_is_measured_again(clock: Clock) -> None:
    """20 steps of .5 s, then 2 s each: 10 + 170 s are 105 steps. The first pace alone would say 360."""
    trainer = run(clock, minutes=4, planned=400, ahead=20)
    assert trainer.global_step == 105
    assert trainer.model.steps == pytest.approx(105, rel=0.1)


def test_a_limit_that_is_not_reached_changes_nothing(clock: Clock) -> None:
    trainer = run(clock, minutes=60)
    assert (trainer.global_step, trainer.model.steps) == (100, 100)
    assert not trainer.should_stop
    assert trainer.check_val_every_n_epoch == 2


def test_validations_that_take_all_the_time_leave_one_step(clock: Clock) -> None:
    trainer = run(clock, minutes=0.5)
    assert trainer.global_step == 1
    assert trainer.should_stop


def test_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="minutes=0: a training needs time; choose more than 0"):
        TimeLimit(0)
