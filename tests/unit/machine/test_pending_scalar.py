"""What the host learns of a training while it runs, and that it does not wait for it."""

from __future__ import annotations

import signal
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.exceptions import SIGTERMException
from stand_in import trainer
from torch import Tensor

from mois.inference.feature_store import FeatureStore
from mois.machine.pending_scalar import PendingScalar
from mois.records import Features
from mois.training.callbacks import DataShares, StopAtNaN
from mois.training.signals import StopAtSignal
from tests.support.pretended_gpu import pretended_gpu

pytestmark = pytest.mark.usefixtures("same_handlers")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what is done to CUDA's events, in turn."""
    done: list[str] = []
    event = SimpleNamespace(record=lambda: done.append("recorded"), synchronize=lambda: done.append("waited for"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    return done


def test_a_number_is_read_after_it_has_come(events: list[str]) -> None:
    with pretended_gpu() as waits:
        coming = PendingScalar(torch.zeros((), device="cuda"))
        assert (events, not waits) == (["recorded"], True)
        assert coming.read() == 1
    assert (events, not waits) == (["recorded", "waited for"], True)
    value = torch.tensor(0.25)
    coming = PendingScalar(value)
    value.zero_()
    assert coming.read() == 0.25


def test_the_loss_is_waited_for_after_the_backward_pass_was_asked_for(events: list[str]) -> None:
    stop = StopAtNaN()
    with pretended_gpu() as waits:
        loss = torch.zeros((), device="cuda")
        for _ in range(2):  # batches of one step
            stop.on_before_backward(None, None, loss)  # type: ignore[arg-type]
        assert events == ["recorded"] * 2
        stop.on_before_optimizer_step(None, None, None)  # type: ignore[arg-type]
    assert events[2:] == ["waited for"] * 2
    assert not waits


def test_what_the_ranks_agree_on_at_a_step_is_read_at_the_next(
    events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_: None)
    stop, job, module = StopAtSignal(), trainer(0, world=2, device="cuda"), torch.nn.Identity()
    stop.on_train_start(job, module)
    with pretended_gpu() as waits:
        for _ in range(2):
            job.global_step += 1
            stop.on_train_batch_end(job, module, None, None, 0)
    assert events == ["recorded", "recorded", "waited for"]
    assert not waits


def test_ranks_agree_one_step_after_a_signal_and_at_an_epochs_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_: None)
    agreed = []
    for at_the_end in (False, True):
        stop, job, module = StopAtSignal(), trainer(0, world=2), torch.nn.Identity()
        stop.on_train_start(job, module)
        for step in (1, 2):
            stop._note(signal.SIGTERM, None)
            job.global_step = step
            job.fit_loop.epoch_loop.batch_progress.is_last_batch = at_the_end
            stop.on_train_batch_end(job, module, None, None, 0)
            agreed.append(stop._agreed)
        if at_the_end:
            stop.on_train_epoch_end(job, module)
            agreed.append(stop._agreed)
    assert agreed == [0, signal.SIGTERM, 0, 0, signal.SIGTERM]


def test_lightnings_own_agreement_on_signals_is_left_out(events: list[str]) -> None:
    job = trainer(0, world=2, device="cuda")
    loop = job.fit_loop.epoch_loop = _TrainingEpochLoop(job)
    with pretended_gpu() as waits:
        with suppress(SIGTERMException):  # all that comes from there is a one
            loop._broadcast_sigterm_tensor()
        before = dict(waits)
        StopAtSignal().on_train_start(job, torch.nn.Identity())
        waits.clear()
        loop._broadcast_sigterm_tensor()
    assert (before != {}, dict(waits), events) == (True, {}, [])


def test_tiles_that_are_encoded_one_by_one_are_waited_for_once() -> None:
    def encode(images: Tensor) -> Features:
        return Features((images.unsqueeze(1),), images.unsqueeze(1), images.unsqueeze(1))

    with pretended_gpu() as waits:
        store = FeatureStore(encode, torch.device("cuda"), torch.float16, budget_gib=1)
        images = torch.zeros(12, 8, 8, device="cuda")
        store.select(torch.arange(12).numpy(), images)
    assert store.encoded == 12
    assert waits == {"_local_scalar_dense": 1}


def test_tiles_that_come_from_the_host_are_not_waited_for_on_their_way() -> None:
    def encode(images: Tensor) -> Features:
        return Features((images.unsqueeze(1),), images.unsqueeze(1), images.unsqueeze(1))

    with pretended_gpu() as waits:
        store = FeatureStore(encode, torch.device("cuda"), torch.float16, budget_gib=0)
        for _ in range(2):  # the second time they are read from a file
            store.select(torch.arange(3).numpy(), torch.zeros(3, 8, 8))
    assert (store.encoded, store.rows_in_file) == (3, 3)
    assert waits == {"_local_scalar_dense": 1, "cuda to cpu": 3}  # into the file


def test_shares_are_logged_without_a_wait() -> None:
    job, module = trainer(0, world=1, device="cuda"), torch.nn.Identity()
    logged: dict[str, Tensor] = {}
    module.device = torch.device("cuda")
    module.log = lambda name, value, **_: logged.update({name: value})
    job.train_dataloader, job.global_step, job.log_every_n_steps = SimpleNamespace(waited_s=0.0), 0, 1
    shares = DataShares()
    with pretended_gpu() as waits:
        shares.on_train_start(job, module)
        shares.on_train_batch_start(job, module, None, 0)
        job.train_dataloader.waited_s, job.global_step = 1.0, 1
        shares.on_train_batch_end(job, module, None, None, 0)
    assert set(logged) == {"train/waiting"}
    assert waits == {}
