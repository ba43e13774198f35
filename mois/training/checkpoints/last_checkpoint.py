"""`last.ckpt`, from which an interrupted training goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from mois.machine.interrupts import HOW_TO_GO_ON


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, from which an interrupted training goes on.

    It is written every N steps and at the end. If a validation follows the step, it is written after the validation: a
    training that goes on from it would otherwise skip the validation.

    Args:
        folder: Folder of the run's checkpoints.
        every_n_steps: Steps between two writes.
    """

    def __init__(self, folder: Path, every_n_steps: int) -> None:
        self.folder = folder
        super().__init__(
            dirpath=str(folder),
            filename=self.CHECKPOINT_NAME_LAST,
            every_n_train_steps=every_n_steps,
            save_top_k=1,
            enable_version_counter=False,
        )

    @property
    def state_key(self) -> str:
        """The same for all settings, because a run has one such callback."""
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: last.ckpt belongs to the folder alone."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the state is empty."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after every N steps within an epoch."""
        if may_save(trainer):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation within an epoch, if the step is a multiple of N."""
        within = trainer.state.fn == "fit" and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if within and trainer.global_step % self._every_n_train_steps == 0:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of an epoch, if the step is a multiple of N."""
        if trainer.global_step % self._every_n_train_steps == 0:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of the training."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save, unless this step was saved already. All ranks have to call this method."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))


def may_save(trainer: Trainer) -> bool:
    """Return whether a training can go on exactly from a checkpoint of this step: no validation follows the step.

    A validation by the clock (trainer.val_check_interval as a time) does not count: ranks do not share a clock.
    """
    loop = trainer.fit_loop
    if loop.epoch_loop.batch_progress.is_last_batch:
        return False
    by_the_clock = getattr(trainer, "_val_check_time_interval", None) is not None
    return by_the_clock or not loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]


def how_to_go_on(trainer: Trainer) -> str:
    """Return the end of a message: how to go on after an interruption."""
    if hint := os.environ.get(HOW_TO_GO_ON):
        return hint
    for callback in trainer.checkpoint_callbacks if trainer.state.fn == "fit" else ():
        if isinstance(callback, LastCheckpoint) and (callback.folder / "last.ckpt").is_file():
            return f"go on with --ckpt_path last ({callback.folder / 'last.ckpt'})"
    return "nothing was saved yet: start it again" if trainer.state.fn == "fit" else "start it again"
