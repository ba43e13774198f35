"""Ends a training after so much CPU time."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mois.training.module import ExemplarSegmenter

MEASURED_STEPS = 5
"""Steps after which the pace is known."""


class CpuLimit(Callback):
    """Ends a training after so much CPU time of this process, and lets the learning rate fall until then.

    Args:
        minutes: CPU minutes from the first step on.
    """

    def __init__(self, minutes: float) -> None:
        self.limit_s = 60 * minutes
        self.spent_s = self._began_s = self._first_s = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began_s = time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the training when its time is over."""
        self.spent_s = time.process_time() - self._began_s
        if trainer.global_step == 1:
            self._first_s = self.spent_s
        if trainer.global_step == MEASURED_STEPS and isinstance(pl_module, ExemplarSegmenter):
            step_s = (self.spent_s - self._first_s) / (MEASURED_STEPS - 1)
            pl_module.expect_steps(MEASURED_STEPS + int((self.limit_s - self.spent_s) / step_s))
        trainer.should_stop = self.spent_s >= self.limit_s
