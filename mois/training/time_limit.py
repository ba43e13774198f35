"""Ends a training in time for its last validation, and lets the learning rate fall until then."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mois.training.epoch_lines import duration_in_words, say

MEASURED_STEPS = 5
"""Steps after which the pace is known. The first step is not counted: it also loads kernels and fills tables."""
FURTHER = 1.25
"""The pace is measured again after this many times the steps of the last measurement. A first pace misleads where
episodes were drawn ahead: later steps wait for them."""


class TimeLimit(Callback):
    """Ends a training within some minutes, with a validation at the end.

    - The validation before the first step says how long a validation takes.
    - After a few steps, the pace says how many steps there will be. The learning rate then falls to its end within
      these steps. If they are fewer than planned, only the last validation is made. The pace is measured again and
      again, and the learning rate follows it.
    - The clock decides when the training ends, whatever was expected.

    Args:
        minutes: Minutes from the start of the training to the end of its last validation. They begin anew when a
            training goes on.

    Raises:
        ValueError: If there is no time.
    """

    def __init__(self, minutes: float) -> None:
        if not minutes > 0:
            raise ValueError(f"minutes={minutes:g}: a training needs time; choose more than 0.")
        self.limit_s = 60 * minutes
        self._began_s = self._validation_began_s = time.monotonic()
        self._validation_s = 0.0  # of the longest validation until now
        self._first_step, self._first_step_s = 0, 0.0
        self._step_s = 0.0
        self._measure_at, self._said = float(MEASURED_STEPS), 0  # steps
        self._validated = 0  # since the first step

    @property
    def left_s(self) -> float:
        """Seconds until the limit."""
        return self.limit_s - (time.monotonic() - self._began_s)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began_s = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of a validation, also of that before the first step."""
        self._validation_began_s = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note how long the validation took. It is no part of the steps' pace."""
        took_s = time.monotonic() - self._validation_began_s
        self._validation_s = max(self._validation_s, took_s)
        if self._first_step_s:
            self._first_step_s += took_s
            self._validated += 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the first step. Say so if the validations alone take all the time."""
        self._first_step = trainer.global_step
        if 2 * self._validation_s > self.limit_s:
            cost = duration_in_words(self._validation_s)
            say(trainer, f"minutes={self.limit_s / 60:g} leaves no time to learn: a validation takes {cost}; give more")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the training if a further step and a validation do not fit."""
        now = time.monotonic()
        made = trainer.global_step - self._first_step
        if made == 1 and not self._first_step_s:
            self._first_step_s = now
        elif made > 1:
            self._step_s = (now - self._first_step_s) / (made - 1)
        left_s = self.left_s - self._validation_s
        if made >= self._measure_at:
            self._measure_at = FURTHER * made
            self._expect(trainer, pl_module, left_s)
        trainer.should_stop = trainer.should_stop or bool(trainer.strategy.broadcast(left_s < self._step_s))
        if trainer.should_stop:
            trainer.check_val_every_n_epoch = 1  # the last weights are compared with the start, in any epoch

    def _expect(self, trainer: Trainer, pl_module: LightningModule, left_s: float) -> None:
        """Tell the schedule of the learning rate how many steps there will be."""
        every = trainer.check_val_every_n_epoch or 1
        between_s = self._validation_s * max(0, (trainer.max_epochs or 0) // every - 1 - self._validated)
        planned = trainer.estimated_stepping_batches
        needed_s = self._step_s * (planned - trainer.global_step) + between_s
        steps = planned if needed_s <= left_s else trainer.global_step + max(0.0, left_s) // max(self._step_s, 1e-6)
        steps = int(trainer.strategy.broadcast(steps))
        expect_steps = getattr(pl_module, "expect_steps", None)
        if callable(expect_steps):
            expect_steps(steps)
        if steps < planned:
            trainer.check_val_every_n_epoch = trainer.max_epochs  # no validation but the last takes time
            if not self._said / FURTHER <= steps <= self._said * FURTHER:
                self._said = steps
                say(trainer, f"minutes={self.limit_s / 60:g}: time for about {steps} of {planned:.0f} steps")
