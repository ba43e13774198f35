"""Signals and lost ranks, as far as they need no second process (the rest: tests/integration/test_faults.py)."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment
from stand_in import trainer

from mois.cli.messages import explain
from mois.machine.processes import lost_contact
from mois.training.checkpoints.last_checkpoint import may_save
from mois.training.signals import IMPATIENCE_S, StopAtSignal

pytestmark = pytest.mark.usefixtures("same_handlers")


def test_accumulated_gradients_are_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    stop, module = StopAtSignal(), torch.nn.Identity()
    stop.on_train_start(trainer(4), module)
    os.kill(os.getpid(), signal.SIGTERM)
    for batch, steps in enumerate([4, 5]):  # the first of two batches makes no step
        stop.on_train_batch_start(trainer(4), module, None, batch)
        stop.on_train_batch_end(trainer(steps), module, None, None, batch)
    with pytest.raises(SystemExit, match="143"):
        stop.on_train_batch_start(trainer(5), module, None, 2)
    assert capsys.readouterr().err == "stopped by SIGTERM after step 5; nothing was saved yet: start it again\n"


@pytest.mark.parametrize(("first", "asked"), [(True, [signal.SIGUSR1]), (False, [])], ids=["rank 0", "rank 1"])
def test_slurms_signal_before_a_validation_requeues_the_job_and_saves_nothing(first: bool, asked: list[int]) -> None:
    job, requeued, saved = trainer(4), [], []
    job.is_global_zero, job.save_checkpoint = first, saved.append
    stop, module = StopAtSignal(), torch.nn.Identity()
    stop.on_train_start(job, module)
    stop._requeueing = signal.SIGUSR1
    stop._before[signal.SIGUSR1] = lambda number, _: (job.save_checkpoint("hpc.ckpt"), requeued.append(number))
    stop._note(signal.SIGUSR1, None)
    with pytest.raises(SystemExit, match=str(128 + signal.SIGUSR1)) if first else nullcontext():
        stop.on_validation_batch_start(job, module, None, 0)  # another rank leaves it to rank 0
    assert requeued == asked
    assert saved == []


class Collective:
    """Waits as a collective operation does, where no signal makes Python's handlers run: for a mutex that is taken."""

    def __init__(self) -> None:
        self._libc, self._mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
        self._libc.pthread_mutex_init(self._mutex, None)
        self._libc.pthread_mutex_lock(self._mutex)

    def wait(self, seconds: float) -> int:
        """Wait for its end, but not for longer; return 0 where it came."""
        until = (ctypes.c_long * 2)(*divmod(int((time.time() + seconds) * 1e9), 10**9))
        return int(self._libc.pthread_mutex_timedlock(self._mutex, until))

    def end(self) -> None:
        """Let the waiting one go on."""
        self._libc.pthread_mutex_unlock(self._mutex)


@pytest.mark.parametrize("validating", [True, False])
def test_slurms_signal_is_heard_while_rank_0_waits_for_another_ranks_validation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], validating: bool
) -> None:
    job, module, stop, ended = trainer(4), torch.nn.Identity(), StopAtSignal(), []
    job._accelerator_connector.cluster_environment = SLURMEnvironment(auto_requeue=True)
    collective = Collective()

    def leave(code: int) -> None:
        ended.append((code, stop._noted))
        stop._over.set()
        collective.end()

    monkeypatch.setattr("mois.training.signals.VALIDATION_S", 0.2)
    monkeypatch.setattr(os, "_exit", leave)
    before = signal.signal(signal.SIGUSR1, lambda *_: ended.append("requeued"))  # as Lightning's handler does
    try:
        stop.on_train_start(job, module)
        if validating:
            stop.on_validation_start(job, module)

        def signal_meanwhile() -> None:
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGUSR1)
            if not validating:
                time.sleep(1)  # in which nothing happens
                collective.end()

        threading.Thread(target=signal_meanwhile).start()
        assert collective.wait(60) == 0
    finally:
        stop.on_train_end(job, module)
        signal.signal(signal.SIGUSR1, before)
    assert ended == (["requeued", (128 + signal.SIGUSR1, 0)] if validating else [])  # 0: the handler had not run
    assert stop._noted == signal.SIGUSR1
    assert capsys.readouterr().err.startswith("stopped by SIGUSR1 after step 4; ") == validating
    assert signal.set_wakeup_fd(-1) == -1


def test_ctrl_c_ends_the_training_after_its_step_and_once_more_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now_s = [100.0]
    monkeypatch.setattr("mois.training.signals.time", SimpleNamespace(monotonic=lambda: now_s[0]))
    stop, module = StopAtSignal(), torch.nn.Identity()
    stop.on_train_start(trainer(4), module)
    for _ in range(2):  # the terminal's, and the same one passed on by a launcher
        os.kill(os.getpid(), signal.SIGINT)
    now_s[0] += 2 * IMPATIENCE_S
    with pytest.raises(SystemExit, match="130"):
        os.kill(os.getpid(), signal.SIGINT)
    stop.on_train_batch_end(trainer(5), module, None, None, 0)
    with pytest.raises(SystemExit, match="130"):
        stop.on_train_batch_start(trainer(5), module, None, 1)
    assert capfd.readouterr().err.count("once more") == 1


def test_ctrl_c_twice_ends_at_once_also_a_training_that_sigterm_is_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr("mois.training.signals.time", SimpleNamespace(monotonic=lambda: now_s[0]))
    StopAtSignal().on_train_start(trainer(4), torch.nn.Identity())
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    now_s[0] += 2 * IMPATIENCE_S
    with pytest.raises(SystemExit, match="130"):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_ctrl_c_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for a job in the background
    stop = StopAtSignal()
    stop.on_train_start(trainer(4), torch.nn.Identity())
    os.kill(os.getpid(), signal.SIGINT)
    assert stop._noted == 0


def test_nothing_is_saved_where_a_validation_follows() -> None:
    job = trainer(4)
    assert may_save(job)
    job.fit_loop.epoch_loop._should_check_val_fx = lambda fetcher: True
    assert not may_save(job)


@pytest.mark.parametrize("order", [[signal.SIGUSR1, signal.SIGTERM], [signal.SIGTERM, signal.SIGUSR1]])
def test_a_sigterm_before_the_steps_end_does_not_keep_slurms_signal_from_requeueing(order: list[int]) -> None:
    job, requeued, stop, module = trainer(4), [], StopAtSignal(), torch.nn.Identity()
    job._accelerator_connector.cluster_environment = SLURMEnvironment(auto_requeue=True)
    before = signal.signal(signal.SIGUSR1, lambda number, _: requeued.append(number))
    try:
        stop.on_train_start(job, module)
        for number in order:
            os.kill(os.getpid(), number)
        job.global_step = 5
        stop.on_train_batch_end(job, module, None, None, 0)
    finally:
        stop.on_train_end(job, module)
        signal.signal(signal.SIGUSR1, before)
    assert requeued == [signal.SIGUSR1]


def test_slurms_signal_on_one_rank_outweighs_a_sigterm_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    job, requeued = trainer(4), []
    job.world_size, job.is_global_zero = 2, False
    stop, module = StopAtSignal(), torch.nn.Identity()
    stop.on_train_start(job, module)
    stop._requeueing = signal.SIGUSR1
    stop._before[signal.SIGUSR1] = lambda number, _: requeued.append(number)
    stop._note(signal.SIGTERM, None)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda noted, _: noted.fill_(3))  # the other rank's
    stop.on_train_epoch_end(job, module)
    assert requeued == [signal.SIGUSR1]


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711"), True),
        (RuntimeError("[../gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv"), True),
        (torch.distributed.DistBackendError("NCCL communicator was aborted on rank 0"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ConnectionResetError("Connection reset by peer"), False),  # of a data worker, or of W&B
    ],
)
def test_lost_contact_is_told_from_other_errors(error: Exception, lost: bool) -> None:
    assert lost_contact(error) == lost


def test_a_killed_worker_and_a_full_disk_are_no_faults_of_the_program() -> None:
    worker = RuntimeError("DataLoader worker (pid(s) 11, 12) exited unexpectedly")
    assert str(explain(worker)).startswith("DataLoader worker (pid(s) 11, 12) exited unexpectedly, maybe for want of")
    assert explain(OSError(28, "No space left on device", "run/metrics.csv")) == (
        "run/metrics.csv: No space left on device; make room, or choose another disk"
    )
    assert explain(RuntimeError("another one")) is None
