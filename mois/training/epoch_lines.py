"""Lines on the progress of a training: a line for each epoch, and a line a minute in long epochs."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mois.errors import counted
from mois.machine.interrupts import HOW_TO_GO_ON

SCAN_SHOWN = ("right", "no_exemplars", "prompted_dice", "unprompted_dice")
"""Figures in the line of a scan, if they were measured."""

SHOWN = ("score", "right", "wrong", "no_exemplars", "prompted_dice", "unprompted_dice", "lesion_f1")
"""Figures in the line of a validation, if they were measured. Figures of companions are in metrics.csv alone."""

EVERY_S = 60.0


class EpochLines(Callback):
    """Writes loss, figures and time left of each epoch to stderr, on one rank.

    If stderr is no terminal, no bar shows the progress. Then there are also lines for steps in long epochs, and for
    scans of a validation, test or prediction.
    """

    def __init__(self) -> None:
        self._began_s = self._said_s = 0.0
        self._first_step = self._steps = self._said_step = 0
        self._total: Any = 0.0  # sum of the losses of this epoch, on their device
        self._batches = 0
        self._validated = ""
        self._scan_s, self._scans = 0.0, 0  # start of the present scan, number of scans
        self._step_0_s = 0.0  # start of the validation before the first step

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write why the first step does not begin yet."""
        self._step_0_s = time.monotonic()
        # a command that trains for its user, such as `mois adapt`, has no such option
        without = "" if HOW_TO_GO_ON in os.environ else " (--validate_first false leaves it out)"
        say(trainer, f"validating before the first step, to compare with later{without}")

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the figures of the model before the training, and what a validation costs."""
        if sum(trainer.num_sanity_val_batches):
            scans = len(getattr(pl_module, "reports", {}).get("", ()))  # those of all ranks
            cost = duration_in_words(time.monotonic() - self._step_0_s)
            figures = _figures_text(getattr(pl_module, "step_0", {}))
            say(trainer, f"step 0: {figures}; each validation of {counted(scans, 'scan')} takes {cost}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and the counters; say if nothing will be compared with the start."""
        if not trainer.enable_validation or (trainer.val_dataloaders is not None and not sum(trainer.num_val_batches)):
            say(trainer, "no scans to validate on: nothing is compared with the start, the bundle has the last weights")
        self._began_s = self._said_s = time.monotonic()
        self._first_step = self._steps = trainer.global_step
        self._forget()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the loss; in a long epoch, write a line once a minute."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:
            self._total = self._total + loss.detach() * trainer.accumulate_grad_batches
            self._batches += 1
        stepped, self._steps = trainer.global_step > self._steps, trainer.global_step
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch  # the line of the epoch comes next
        if stepped and not last and not sys.stderr.isatty() and time.monotonic() - self._said_s >= EVERY_S:
            self._write(trainer, f"epoch {trainer.current_epoch + 1}, step {trainer.global_step}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the figures for the line of the epoch. In the middle of an epoch, write them now."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        logged = {name.removeprefix("val/"): value for name, value in trainer.callback_metrics.items()}
        self._validated = _figures_text(logged)
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._write(trainer, f"epoch {trainer.current_epoch + 1}, step {trainer.global_step}")
            self._validated = ""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the line of the epoch, unless the last step ended the training and has its line."""
        if trainer.should_stop and self._said_step == trainer.global_step:
            return
        of = f" of {trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        self._write(trainer, f"epoch {trainer.current_epoch + 1}{of}, step {trainer.global_step}")
        self._forget()

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note when the scan began; before the first scan, write the number of scans."""
        self._scan_s = time.monotonic()
        if batch_idx == 0 and _counts_scans(trainer):
            stage = str(getattr(trainer.state.fn, "value", ""))
            self._scans = sum(getattr(trainer, f"num_{'val' if stage == 'validate' else stage}_batches"))
            say(trainer, f"{stage}: {counted(self._scans, 'scan')}")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the line of the scan. After the first scan of step 0, write how long a validation will take."""
        if trainer.sanity_checking and batch_idx == 0 and (scans := int(sum(trainer.num_sanity_val_batches))) > 1:
            first_s = time.monotonic() - self._step_0_s
            whole = duration_in_words(first_s * scans)
            say(trainer, f"step 0: the first scan took {duration_in_words(first_s)}, a validation takes about {whole}")
        if not _counts_scans(trainer):
            return
        reports = getattr(pl_module, "reports", {}).get("") or []
        figures = vars(reports[-1].figures) if reports and trainer.state.fn != "predict" else {}
        figures_text = ", ".join(f"{name} {figures[name]:.2f}" for name in SCAN_SHOWN if figures.get(name) is not None)
        parts = [figures_text, duration_in_words(time.monotonic() - self._scan_s)]
        name = getattr(batch, "subject", "")
        say(trainer, f"scan {batch_idx + 1} of {self._scans}, {name}: {'; '.join(filter(None, parts))}")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write where the results are."""
        if (report := Path(trainer.default_root_dir) / "test" / "report.html").is_file():
            say(trainer, f"report: {report}")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write where the results are."""
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
        self._said_step = trainer.global_step
        say(trainer, f"{where}: {'; '.join(filter(None, [*loss, self._validated, self._time_left(trainer)]))}")

    def _time_left(self, trainer: Trainer) -> str:
        if trainer.should_stop:
            return ""
        made, wanted = trainer.global_step - self._first_step, trainer.estimated_stepping_batches
        if made <= 0 or not math.isfinite(wanted):
            return "time left unknown"
        passed_s = time.monotonic() - self._began_s
        by_steps_s = passed_s / made * max(0.0, wanted - trainer.global_step)
        by_limit_s = min((getattr(one, "left_s", math.inf) for one in _callbacks(trainer)), default=math.inf)
        return f"{duration_in_words(max(0.0, min(by_steps_s, by_limit_s)))} left"


def _callbacks(trainer: Trainer) -> Sequence[Callback]:
    return trainer.callbacks  # type: ignore[attr-defined, no-any-return]


def _counts_scans(trainer: Trainer) -> bool:
    """Return whether each scan has a line: outside of a training, if no bar counts the scans."""
    return trainer.state.fn != "fit" and not sys.stderr.isatty()


def duration_in_words(seconds: float) -> str:
    """Return a duration for readers: 40 s, 12 min, 1 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _figures_text(figures: Any) -> str:
    return ", ".join(f"{name} {float(figures[name]):.2f}" for name in SHOWN if name in figures)


def say(trainer: Trainer, line: str) -> None:
    """Write a line to stderr, on one rank; on a terminal, above the progress bar."""
    if not trainer.is_global_zero:
        return
    bar: Any = trainer.progress_bar_callback
    console = getattr(getattr(bar, "progress", None), "console", None)
    if console is not None and sys.stderr.isatty():  # above the bar, not into it
        console.print(line, soft_wrap=True, markup=False, highlight=False)
        return
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
