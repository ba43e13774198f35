"""What loggers get of every validation: a table of all lesions, and pictures of the same scans each time."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mois.records import Volume
from mois.report.lesion_table import COLUMNS, DrawnScan, lesion_rows
from mois.tracking.tracker import Tracker
from mois.training.module import ExemplarSegmenter


class ValidationTables(Callback):
    """Records the table `val/lesions`, and the pictures `val/scan1`, `val/scan2` and so on with masks by class.

    Args:
        scans: Number of scans with pictures: the first of the validation, on the first process.
    """

    def __init__(self, scans: int = 2) -> None:
        self.scans = scans
        self._drawn: dict[str, DrawnScan] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the model write the results of these scans."""
        if isinstance(pl_module, ExemplarSegmenter):
            pl_module.pictured_scans = max(1, self.scans)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the pictures of the last validation."""
        self._drawn = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw a scan, if it is one of those with pictures."""
        if not (isinstance(pl_module, ExemplarSegmenter) and isinstance(batch, Volume)):
            return
        tracker = Tracker.of(trainer)
        tracker.know([batch.subject, batch.patient], [batch.path] if batch.path else [])
        if not (trainer.is_global_zero and batch_idx < self.scans):
            return
        report = pl_module.reports[""][-1]
        drawn = DrawnScan.of(batch, report, pl_module.results_folder("validation"))
        self._drawn[batch.subject] = drawn
        dice = report.figures.unprompted_dice
        caption = f"{batch.subject}: unprompted Dice {'-' if dice is None else f'{dice:.2f}'}"
        names = class_names(trainer)
        tracker.masks(f"val/scan{batch_idx + 1}", drawn.masked(names), trainer.global_step, caption)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the table of all lesions of all processes."""
        if not isinstance(pl_module, ExemplarSegmenter) or not trainer.is_global_zero:
            return
        rows = lesion_rows(pl_module.reports[""], self._drawn, class_names(trainer))
        tracker = Tracker.of(trainer)
        tracker.know([name for report in pl_module.reports[""] for name in (report.subject, report.patient)], [])
        if rows:
            tracker.table("val/lesions", COLUMNS, rows, trainer.global_step)


def class_names(trainer: Trainer) -> dict[int, str]:
    """Return the names of the lesion types by class; a datamodule of others may not know them."""
    asked = getattr(getattr(trainer, "datamodule", None), "class_names", None)
    return dict(asked()) if callable(asked) else {}
