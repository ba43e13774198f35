"""What a training says of itself where nobody watches its bar: a line an epoch, and a line a minute in long ones."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

SCAN_SHOWN = ("right", "no_exemplars", "prompted_dice", "unprompted_dice")
"""Figures of a scan, as far as they were measured."""

SHOWN = ("right", "wrong", "no_exemplars", "prompted_dice", "unprompted_dice", "lesion_f1")
"""Figures of a validation, as far as they were measured; of companions metrics.csv tells."""

EVERY_S = 60.0


class EpochLines(Callback):
    """Writes to stderr, on one rank, what was learned in an epoch and how long the rest will take.

    Steps in between, and scans of a validation, test or prediction, are told where stderr is no terminal, whose bar
    shows them.
    """

    def __init__(self) -> None:
        self._began_s = self._said_s = 0.0
        self._first_step = self._steps = 0
        self._total: Any = 0.0  # of the losses since the last epoch began, where they are computed
        self._batches = 0
        self._validated = ""
        self._scan_s, self._scans = 0.0, 0  # when the present scan began, and how many there are

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why the first step does not come yet."""
        say(trainer, "validating before the first step, to compare with later (--validate_first false leaves it out)")

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell what the model found before it learned anything."""
        say(trainer, f"step 0: {_figures_text(getattr(pl_module, 'step_0', {}))}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._began_s = self._said_s = time.monotonic()
        self._first_step = self._steps = trainer.global_step
        self._forget()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the loss; tell of a long epoch once a minute."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:
            self._total = self._total + loss.detach() * trainer.accumulate_grad_batches
            self._batches += 1
        stepped, self._steps = trainer.global_step > self._steps, trainer.global_step
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch  # the epoch's own line comes next
        if stepped and not last and not sys.stderr.isatty() and time.monotonic() - self._said_s >= EVERY_S:
            self._write(trainer, f"epoch {trainer.current_epoch + 1}, step {trainer.global_step}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the figures for the epoch's line; where the epoch goes on, tell them now."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        logged = {name.removeprefix("val/"): value for name, value in trainer.callback_metrics.items()}
        self._validated = _figures_text(logged)
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._write(trainer, f"epoch {trainer.current_epoch + 1}, step {trainer.global_step}")
            self._validated = ""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell of the epoch."""
        of = f" of {trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        self._write(trainer, f"epoch {trainer.current_epoch + 1}{of}, step {trainer.global_step}")
        self._forget()

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note when the scan began; say beforehand how many there are."""
        self._scan_s = time.monotonic()
        if batch_idx == 0 and _counts_scans(trainer):
            stage = str(getattr(trainer.state.fn, "value", ""))
            self._scans = sum(getattr(trainer, f"num_{'val' if stage == 'validate' else stage}_batches"))
            say(trainer, f"{stage}: {self._scans} {'scan' if self._scans == 1 else 'scans'}")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Tell of the scan."""
        if not _counts_scans(trainer):
            return
        reports = getattr(pl_module, "reports", {}).get("") or []
        figures = vars(reports[-1].figures) if reports and trainer.state.fn != "predict" else {}
        figures_text = ", ".join(f"{name} {figures[name]:.2f}" for name in SCAN_SHOWN if figures.get(name) is not None)
        parts = [figures_text, duration_in_words(time.monotonic() - self._scan_s)]
        name = getattr(batch, "subject", "")
        say(trainer, f"scan {batch_idx + 1} of {self._scans}, {name}: {'; '.join(filter(None, parts))}")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where to look."""
        if (report := Path(trainer.default_root_dir) / "test" / "report.html").is_file():
            say(trainer, f"report: {report}")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where to look."""
        say(trainer, f"label maps: {Path(trainer.default_root_dir) / 'predict' / 'predictions'}")

    on_validation_batch_start = on_predict_batch_start = on_test_batch_start
    on_validation_batch_end = on_predict_batch_end = on_test_batch_end

    def _forget(self) -> None:
        self._total, self._batches, self._validated = 0.0, 0, ""

    def _write(self, trainer: Trainer, where: str) -> None:
        self._said_s = time.monotonic()
        if not trainer.is_global_zero:
            return
        loss = [f"loss {float(self._total) / self._batches:.3f}"] if self._batches else []
        say(trainer, f"{where}: {'; '.join([*loss, *filter(None, [self._validated]), self._time_left(trainer)])}")

    def _time_left(self, trainer: Trainer) -> str:
        made, wanted = trainer.global_step - self._first_step, trainer.estimated_stepping_batches
        if made <= 0 or not math.isfinite(wanted):
            return "time left unknown"
        passed_s = time.monotonic() - self._began_s
        return f"{duration_in_words(passed_s / made * max(0.0, wanted - trainer.global_step))} left"


def _counts_scans(trainer: Trainer) -> bool:
    """Tell whether each scan is told of: where no bar counts them, and no epoch sums them up."""
    return trainer.state.fn != "fit" and not sys.stderr.isatty()


def duration_in_words(seconds: float) -> str:
    """Return a duration as a reader wants it: 40 s, 12 min, 1 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _figures_text(figures: Any) -> str:
    return ", ".join(f"{name} {float(figures[name]):.2f}" for name in SHOWN if name in figures)


def say(trainer: Trainer, line: str) -> None:
    """Write a line to stderr, on one rank and above the bar where there is one."""
    if not trainer.is_global_zero:
        return
    bar: Any = trainer.progress_bar_callback
    console = getattr(getattr(bar, "progress", None), "console", None)
    if console is not None and sys.stderr.isatty():  # above the bar, not into it
        console.print(line, soft_wrap=True, markup=False, highlight=False)
        return
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
