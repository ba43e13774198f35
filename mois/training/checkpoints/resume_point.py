"""The place where a training goes on from a checkpoint: within an epoch, or between two epochs.

Lightning counts each stage of batches, epochs and validations. From the differences it guesses when the checkpoint was
written. Some guesses are wrong: then steps count twice, an epoch begins again, or a validation is left out. Our
checkpoints are written after a step, and after the validation that follows the step. So only two places are possible,
and the counters are set to one of them.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

_EPOCHS = "epoch_progress"
_BATCHES = "epoch_loop.batch_progress"
_STEPS = "epoch_loop.automatic_optimization.optim_progress"
_VALIDATION = "epoch_loop.val_loop.batch_progress"
_LOGGED = "epoch_loop.state_dict"


class ResumePoint(Callback):
    """Lets a training go on exactly where its checkpoint was written, also after the last step."""

    def __init__(self) -> None:
        self._between_epochs = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Correct the counters before Lightning reads them."""
        if trainer.state.fn == "fit":
            self._between_epochs = settle(checkpoint["loops"]["fit_loop"])
        else:  # figures of a test are logged at the step of its checkpoint
            trainer.fit_loop.epoch_loop._batches_that_stepped = checkpoint["global_step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the next epoch from its first batch: the epoch before it is complete."""
        if self._between_epochs:
            trainer.fit_loop._restarting = trainer.fit_loop.epoch_loop.restarting = False
            self._between_epochs = False


def settle(loop: dict[str, Any]) -> bool:
    """Set the counters of a fit loop to one of the two places. Return whether it is between epochs.

    Args:
        loop: State of the fit loop in a checkpoint; it is changed. It counts epochs and batches that are ready,
            started, processed and completed.
    """
    epochs, batches = loop[_EPOCHS], loop[_BATCHES]
    steps = loop[_STEPS]["optimizer"]["step"]["total"]["completed"]
    begun, within, handed_out = (
        counts["started"] for counts in (epochs["total"], batches["current"], batches["total"])
    )
    between = bool(batches["is_last_batch"]) or not within
    over = begun if between else max(0, begun - 1)
    for counts in epochs.values():
        _set(counts, ready=begun, started=begun, processed=over, completed=over)
    if between:
        _set(batches["total"], ready=handed_out, started=handed_out, processed=handed_out, completed=handed_out)
        _set(batches["current"], ready=0, started=0, processed=0, completed=0)
    else:  # at the end of a batch that is not yet counted as completed
        for counts, count in ((batches["total"], handed_out), (batches["current"], within)):
            _set(counts, ready=count, started=count, processed=count, completed=count - 1)
    batches["is_last_batch"] = False
    loop[_LOGGED]["_batches_that_stepped"] = steps if between else steps - 1
    for counts in (loop[_VALIDATION]["total"], loop[_VALIDATION]["current"]):
        _set(counts, ready=0, started=0, processed=0, completed=0)
    loop[_VALIDATION]["is_last_batch"] = False
    return between


def _set(counts: dict[str, int], **values: int) -> None:
    counts.update({name: value for name, value in values.items() if name in counts})
