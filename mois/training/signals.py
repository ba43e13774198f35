"""Ctrl-C, SIGTERM, and the signal of SLURM before a job's time is over: write a checkpoint after the step, and end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

from mois.machine.interrupts import GIVE_COMMAND_AGAIN, STDERR, end_now
from mois.machine.pending_scalar import PendingScalar
from mois.training.checkpoints.last_checkpoint import LastCheckpoint, how_to_go_on, may_save

VALIDATION_S = 10.0
"""Seconds that rank 0 has after the signal of SLURM to reach its next scan. Then the job is requeued without it."""

POLL_S = 0.2

IMPATIENCE_S = 1.0
"""Seconds after Ctrl-C before a second Ctrl-C counts. A launcher may repeat the signal of the terminal."""


class StopAtSignal(Callback):
    """Ends a training after a step on which all ranks agree, and after `last.ckpt` is written.

    Lightning's own handlers save in the middle of a step. Its ranks wait for each other inside a handler, perhaps
    without end.

    - A signal in a step -> the step ends, `last.ckpt` is written, and the training ends.
    - A signal of SLURM in a step -> as above. The handler of Lightning's SLURM plug-in requeues the job.
    - A signal in a validation -> the training ends before the next scan. The next run repeats the steps since
      `last.ckpt` and the validation.
    - A signal of SLURM while rank 0 waits for the scans of other ranks -> no handler runs there. A thread reads the
      signal and requeues the job.
    - A second Ctrl-C -> the training ends at once.
    """

    def __init__(self) -> None:
        self._noted = 0  # number of the signal that this rank received
        self._agreed = 0
        self._asked: PendingScalar | None = None  # most important signal of all ranks, asked for at the last step
        self._step = 0
        self._before: dict[int, Any] = {}  # earlier handlers by signal
        self._requeueing = 0  # number of the signal of SLURM
        self._interrupted_s: float | None = None  # time of the first Ctrl-C
        self._how_to_go_on: Callable[[], str] = lambda: GIVE_COMMAND_AGAIN
        self._speaks = True
        self._validating_s: float | None = None  # start of the present validation
        self._over = threading.Event()
        self._wakeup: tuple[int, int] | None = None  # earlier file descriptor, and our end of the pipe to the thread

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handlers. Lightning restores them when the training ends."""
        self._agreed, self._asked, self._interrupted_s = 0, None, None
        self._step, self._speaks = trainer.global_step, trainer.is_global_zero
        self._how_to_go_on = partial(how_to_go_on, trainer)
        loop: Any = trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor = lambda: None  # Lightning's own agreement on SIGTERM would wait at every step
        self._noted = signal.SIGTERM if trainer.received_sigterm else 0
        if threading.current_thread() is not threading.main_thread():
            return
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeueing = int(environment.requeue_signal or 0)
        for number in filter(None, self._order()):
            # ignored in a job in the background of a shell
            if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        if self._requeueing and trainer.is_global_zero:
            self._listen(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note when the validation began."""
        self._validating_s = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the validation is over."""
        self._validating_s = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop listening: after the last step there is no step to wait for."""
        self._hear_no_more()
        if signal.SIGINT in self._before and signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._hear_no_more()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agree whether to stop, and save, if the weights changed and no validation follows."""
        if trainer.global_step == self._step:  # gradients are being accumulated
            return
        self._step = trainer.global_step
        if may_save(trainer):
            self._agree(trainer)
            self._save_if_agreed(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agree whether to stop, and save."""
        self._agree(trainer, at_once=True)
        self._save_if_agreed(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop, after the figures of the last epoch were logged."""
        self._stop(trainer, self._agreed)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop, after the figures of the last step were logged."""
        self._stop(trainer, self._agreed)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop before the next scan."""
        if trainer.state.fn == "fit":
            if not self._agreed:
                self._requeue_unsaved(trainer, self._noted)
            # a rank without scans left waits where no signal reaches it, so only rank 0 can requeue the job
            alone = self._noted != self._requeueing or trainer.is_global_zero
            self._stop(trainer, self._agreed or (self._noted if alone else 0))

    def _order(self) -> list[int]:
        """Return the signals from the least to the most important, in the same order on all ranks."""
        return [0, signal.SIGINT, signal.SIGTERM, self._requeueing]

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Note the most important signal. The signal of SLURM requeues the job, also if SIGTERM follows."""
        if number == signal.SIGINT:
            if self._interrupted_s is None:
                self._interrupted_s = time.monotonic()
                if self._speaks:
                    until = "step" if self._validating_s is None else "scan"
                    line = f"\nthe training ends after this {until}; Ctrl-C once more ends it at once\n"
                    os.write(STDERR, line.encode())
            elif time.monotonic() - self._interrupted_s > IMPATIENCE_S:
                end_now(self._how_to_go_on())
        self._noted = max(self._noted, number, key=self._order().index)

    def _agree(self, trainer: Trainer, at_once: bool = False) -> None:
        """Find the most important signal of all ranks; with several ranks, of the last step, so that no rank waits."""
        if trainer.world_size == 1:
            self._agreed = self._noted
            return
        order = self._order()
        noted = torch.full((), order.index(self._noted), device=trainer.strategy.root_device)
        torch.distributed.all_reduce(noted, torch.distributed.ReduceOp.MAX)
        before, self._asked = self._asked, PendingScalar(noted)
        if at_once:
            before, self._asked = self._asked, None
        self._agreed = order[int(before.read())] if before else 0

    def _save_if_agreed(self, trainer: Trainer) -> None:
        if not self._agreed:
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.save(trainer)
        if self._agreed == self._requeueing:
            self._before[self._agreed](self._agreed, None)
            if trainer.is_global_zero:  # the requeued job goes on from last.ckpt, not from this copy
                for copy in Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"):
                    copy.unlink()

    def _listen(self, trainer: Trainer) -> None:
        """Let Python write every signal into a pipe, even while the main thread waits. A thread reads the pipe."""
        ours, pythons = os.pipe()
        os.set_blocking(pythons, False)
        self._wakeup = signal.set_wakeup_fd(pythons, warn_on_full_buffer=False), pythons
        self._over = threading.Event()
        threading.Thread(target=self._hear, args=(trainer, ours, self._over), name="requeue", daemon=True).start()

    def _hear_no_more(self) -> None:
        self._over.set()
        if self._wakeup is not None:
            before, pythons = self._wakeup
            self._wakeup = None
            signal.set_wakeup_fd(before)
            os.close(pythons)  # this ends the thread, if it still reads

    def _hear(self, trainer: Trainer, pipe: int, over: threading.Event) -> None:
        while (read := os.read(pipe, 1)) and read[0] != self._requeueing:  # no byte: the other end was closed
            pass
        os.close(pipe)
        heard_s = time.monotonic()
        while not over.wait(POLL_S):
            began_s = self._validating_s
            if began_s is not None and time.monotonic() - max(began_s, heard_s) > VALIDATION_S:
                self._requeue_unsaved(trainer, self._requeueing)
                _say(trainer, self._requeueing)
                for worker in multiprocessing.active_children():
                    worker.kill()
                os._exit(128 + self._requeueing)

    def _requeue_unsaved(self, trainer: Trainer, number: int) -> None:
        """Put the job back into the queue without a checkpoint: to save would wait for ranks without scans left."""
        if not number or number != self._requeueing or not trainer.is_global_zero:
            return
        unsaving: Any = trainer
        unsaving.save_checkpoint = lambda *_: None
        try:
            self._before[number](number, None)
        finally:
            del unsaving.save_checkpoint

    def _stop(self, trainer: Trainer, number: int) -> None:
        if not number:
            return
        if trainer.is_global_zero:
            _say(trainer, number)
        raise SystemExit(128 + number)


def _say(trainer: Trainer, number: int) -> None:
    name = signal.Signals(number).name
    sys.stderr.write(f"stopped by {name} after step {trainer.global_step}; {how_to_go_on(trainer)}\n")
    sys.stderr.flush()
