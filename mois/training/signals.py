"""Ctrl-C, SIGTERM, and SLURM's signal before a job's time is up: a checkpoint at the end of the step, and the end."""

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
from mois.training.checkpoints import LastCheckpoint, how_to_go_on, may_save

VALIDATION_S = 10.0
"""How long after SLURM's signal rank 0 has to come to its next scan, before its job is requeued for it."""

POLL_S = 0.2

IMPATIENCE_S = 1.0
"""How long after Ctrl-C another one is meant; a launcher may pass on what the terminal had sent to everybody."""


class StopAtSignal(Callback):
    """Ends a training at a step that all ranks agree on, after `last.ckpt` was written, so that it goes on exactly.

    Lightning's own handlers save in the middle of a step, and its ranks wait for each other inside a handler, maybe
    forever. That of its SLURM plug-in is called at the end of the step instead: it puts the job back into the queue.
    A validation is not waited for: whoever goes on repeats the steps since `last.ckpt`, and validates then. No handler
    runs while rank 0, done with its scans, waits for the others: a thread hears SLURM's signal there, and requeues.
    A second Ctrl-C ends the training at once.
    """

    def __init__(self) -> None:
        self._noted = 0  # number of the signal that this rank received
        self._agreed = 0
        self._asked: PendingScalar | None = None  # what matters most to any rank, asked at the last step
        self._step = 0
        self._before: dict[int, Any] = {}  # handlers that were there, by signal
        self._requeueing = 0  # number of SLURM's signal
        self._interrupted_s: float | None = None  # when Ctrl-C came first
        self._how_to_go_on: Callable[[], str] = lambda: GIVE_COMMAND_AGAIN
        self._speaks = True
        self._validating_s: float | None = None  # when the present validation began
        self._over = threading.Event()
        self._wakeup: tuple[int, int] | None = None  # what was there before, and our end of the thread's pipe

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over from Lightning's handlers, which it restores itself when the training ends."""
        self._agreed, self._asked, self._interrupted_s = 0, None, None
        self._step, self._speaks = trainer.global_step, trainer.is_global_zero
        self._how_to_go_on = partial(how_to_go_on, trainer)
        loop: Any = trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor = lambda: None  # Lightning's agreement on SIGTERM, which waits at every step
        self._noted = signal.SIGTERM if trainer.received_sigterm else 0
        if threading.current_thread() is not threading.main_thread():
            return
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeueing = int(environment.requeue_signal or 0)
        for number in filter(None, self._order()):
            if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:  # as of a job behind a shell
                self._before[number] = signal.signal(number, self._note)
        if self._requeueing and trainer.is_global_zero:
            self._listen(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note since when no step is made."""
        self._validating_s = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that steps are made again."""
        self._validating_s = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop listening; what comes after the last step has no step to wait for."""
        self._hear_no_more()
        if signal.SIGINT in self._before and signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop listening."""
        self._hear_no_more()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agree whether to stop, and save, wherever the weights changed and no validation follows."""
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
        """Stop after what was logged of the last epoch."""
        self._stop(trainer, self._agreed)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop after what was logged of the last step."""
        self._stop(trainer, self._agreed)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop before another scan is looked at."""
        if trainer.state.fn == "fit":
            if not self._agreed:
                self._requeue_unsaved(trainer, self._noted)
            # a rank that is done with its scans waits where no signal reaches it: rank 0 alone can requeue the job
            alone = self._noted != self._requeueing or trainer.is_global_zero
            self._stop(trainer, self._agreed or (self._noted if alone else 0))

    def _order(self) -> list[int]:
        """Return the signals, on all ranks alike; later ones matter more."""
        return [0, signal.SIGINT, signal.SIGTERM, self._requeueing]

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Note what matters most: SLURM's signal requeues the job, also where SIGTERM follows it."""
        if number == signal.SIGINT:
            if self._interrupted_s is None:
                self._interrupted_s = time.monotonic()
                if self._speaks:
                    until = "step" if self._validating_s is None else "scan"
                    told = f"\nthe training ends after this {until}; Ctrl-C once more ends it at once\n"
                    os.write(STDERR, told.encode())
            elif time.monotonic() - self._interrupted_s > IMPATIENCE_S:
                end_now(self._how_to_go_on())
        self._noted = max(self._noted, number, key=self._order().index)

    def _agree(self, trainer: Trainer, at_once: bool = False) -> None:
        """Learn what matters most to any rank: of several, what did at the last step, for which nobody has to wait."""
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
            if trainer.is_global_zero:  # the requeued job goes on from last.ckpt, and so does everybody else
                for copy in Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"):
                    copy.unlink()

    def _listen(self, trainer: Trainer) -> None:
        """Have every signal written into a pipe, which happens whatever the main thread waits for."""
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
            os.close(pythons)  # which ends the thread, if it still reads

    def _hear(self, trainer: Trainer, pipe: int, over: threading.Event) -> None:
        while (read := os.read(pipe, 1)) and read[0] != self._requeueing:  # nothing: the other end was closed
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
        """Have the job put back into the queue: saving would wait for ranks that may be done with their scans."""
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
