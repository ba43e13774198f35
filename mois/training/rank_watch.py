"""Ends a training within seconds, and with one line, when one of its processes dies. Without it, the others hang."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer

from mois.machine.processes import lost_contact
from mois.training.checkpoints.last_checkpoint import how_to_go_on

POLL_S = 0.5
OWN_WORDS_S = 3.0
"""Seconds that a rank has to end by itself after another rank ended with an error. Most errors occur on all ranks."""

LIGHTNINGS_WATCH = "child-process-observer"
"""Name of the thread by which Lightning watches its ranks."""

PARENT = "MOIS_RANK_0"
"""Environment variable with the process id of the rank 0 that started the other ranks."""


class RankWatch(Callback):
    """Ends all processes of a training as soon as one process is gone.

    - Lightning starts the ranks -> rank 0 watches the other ranks, and they watch rank 0.
    - torchrun or SLURM starts the ranks -> torchrun or SLURM watches. A rank ends by itself when it loses contact.
    - A rank lives but does not answer -> the training ends after trainer.strategy.init_args.timeout.
    """

    def __init__(self) -> None:
        self._children: list[subprocess.Popen[bytes]] = []  # ranks that this rank started, in order
        self._over = threading.Event()
        self._watch: threading.Thread | None = None

    def start(self, trainer: Trainer) -> None:
        """Start to watch, before the ranks meet. `teardown` ends it."""
        if trainer.world_size == 1:
            return
        parent = os.environ.get(PARENT)
        if trainer.local_rank == 0:
            os.environ[PARENT] = str(os.getpid())
            action = self._watch_children
        elif parent == str(os.getppid()):
            action = self._watch_parent
        else:
            return
        self._watch = threading.Thread(target=action, args=(trainer,), name="rank-watch", daemon=True)
        self._watch.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching: from now on, ranks may end at different times."""
        self._over.set()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End this process if another rank is gone. On an error of this rank, end the ranks that it started."""
        if trainer.world_size == 1:
            return
        if not lost_contact(exception):
            self._over.set()
            self._kill()
            return
        if launched := self._watch is not None and (trainer.local_rank > 0 or bool(self._children)):
            # if it knows which rank is gone, it writes that and ends this process
            self._watch.join(2 * POLL_S + OWN_WORDS_S)
        # rank 0 may be the rank that is gone
        speaks = trainer.global_rank == 0 if launched else trainer.global_rank < 2
        reason = "another rank died, or did not answer within trainer.strategy.init_args.timeout"
        self._end(trainer, reason if speaks else "")

    def _watch_children(self, trainer: Trainer) -> None:
        while not self._over.wait(POLL_S):
            if not self._children and any(thread.name == LIGHTNINGS_WATCH for thread in threading.enumerate()):
                self._take_over(trainer.strategy.launcher)
            ended = {trainer.global_rank + 1 + n: child.poll() for n, child in enumerate(self._children)}
            # killed ranks, with codes below 0, first
            failed = sorted((code, rank) for rank, code in ended.items() if code)
            if not failed:
                continue
            code, rank = failed[0]
            if code < 0:
                self._end(trainer, f"rank {rank} was killed by {signal.Signals(-code).name}")
            if not self._over.wait(OWN_WORDS_S):
                self._end(trainer, f"rank {rank} ended with code {code} (see what it said above)")

    def _take_over(self, launcher: Any) -> None:
        """Take the list of ranks from Lightning's own watch, which would kill all ranks without a message."""
        self._children = list(launcher.procs)
        launcher.procs.clear()
        launcher.procs = self._children

    def _watch_parent(self, trainer: Trainer) -> None:
        parent = os.environ[PARENT]
        while not self._over.wait(POLL_S):
            if str(os.getppid()) != parent:
                self._end(trainer, "rank 0 died" if trainer.local_rank == 1 else "")

    def _end(self, trainer: Trainer, reason: str) -> NoReturn:
        if reason:
            sys.stderr.write(f"error: {reason}, which ends the training on all ranks; {how_to_go_on(trainer)}\n")
            sys.stderr.flush()
        self._kill()
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(1)  # the main thread may wait for the rank that is gone

    def _kill(self) -> None:
        for child in self._children:
            child.kill()
