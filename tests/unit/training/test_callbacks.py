from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from stand_in import Data, Layer, Model
from torch import nn

from mois.training.callbacks import AllLearn, DataShares, SeedEachStep, SeldomReadBar, StopAtNaN
from mois.training.checkpoints.checkpoint_io import SafeCheckpointIO, read_checkpoint
from mois.training.checkpoints.last_checkpoint import LastCheckpoint
from mois.training.cost import count_parameters


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Trainer]:
    def run(model: Model, *callbacks: object, steps: int = 4) -> Trainer:
        trainer = Trainer(
            default_root_dir=tmp_path,
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            callbacks=list(callbacks),  # type: ignore[arg-type]
            enable_checkpointing=any(isinstance(callback, LastCheckpoint) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[SafeCheckpointIO()],
        )
        trainer.fit(model, datamodule=Data())
        return trainer

    return run


def test_parameters_are_counted_once_and_by_part() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 3)  # 2 * 3 + 3
            self.second = nn.Sequential(self.first, nn.Linear(3, 1))  # the same again, and 3 + 1 frozen ones
            self.second[1].requires_grad_(False)

    assert count_parameters(Shared()) == [("first", 9, 9), ("second", 4, 0), ("all", 13, 9)]


def test_the_first_loss_that_is_not_finite_stops_the_training_before_the_weights_are_lost(
    fit: Callable[..., Trainer],
) -> None:
    model = Model(Layer(), nan_at=2)
    with pytest.raises(ValueError, match=r"^train/loss_prior is not finite at step 2; lower model.optimisation"):
        fit(model, StopAtNaN())
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_weights_that_are_not_finite_are_named(fit: Callable[..., Trainer]) -> None:
    model = Model(Layer())
    model.layer.trained.bias.data.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"train/loss_fit is not finite at step 0; weights .*: layer.trained.bias; "):
        fit(model, StopAtNaN())


class Stray(Model):
    """A model with a trained tensor that its loss does not use; without others where `alone`."""

    def __init__(self, alone: bool) -> None:
        super().__init__(Layer())
        self.stray = nn.Parameter(torch.zeros(2))
        if alone:
            self.layer.requires_grad_(False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


def test_trained_tensors_that_no_loss_reaches_are_said_once(fit: Callable[..., Trainer]) -> None:
    with pytest.warns(UserWarning, match=r"^no loss reaches 1 trained tensors \(stray\)") as said:
        fit(Stray(alone=False), AllLearn())
    assert sum("no loss reaches" in str(one.message) for one in said) == 1


def test_a_loss_that_depends_on_nothing_trained_is_refused(fit: Callable[..., Trainer]) -> None:
    with pytest.raises(ValueError, match=r"^no loss reaches 1 trained tensors \(stray\), so that they learn nothing"):
        fit(Stray(alone=True), AllLearn())


def test_ranks_do_not_wait_for_tensors_that_no_loss_reaches() -> None:
    trainer: Any = SimpleNamespace(world_size=2, strategy=SimpleNamespace(_ddp_kwargs={}))
    with pytest.raises(ValueError, match=r"^no loss reaches 3 trained tensors \(stray, layer\.trained\.weight\)"):
        AllLearn().on_after_backward(trainer, Stray(alone=False))
    trainer.strategy._ddp_kwargs["find_unused_parameters"] = True
    with pytest.warns(UserWarning, match="no loss reaches 3 trained tensors"):
        AllLearn().on_after_backward(trainer, Stray(alone=False))


def test_a_step_draws_the_same_whatever_was_drawn_before_it(fit: Callable[..., Trainer]) -> None:
    ends = []
    for before in (1, 2):
        torch.manual_seed(0)
        model = Model(Layer())
        torch.manual_seed(before)
        fit(model, SeedEachStep(5))
        ends.append(model.layer.trained.weight.detach().clone())
    assert torch.equal(*ends)


def test_last_is_saved_every_so_many_steps_and_at_the_end(fit: Callable[..., Trainer], tmp_path: Path) -> None:
    last = LastCheckpoint(tmp_path / "kept", every_n_steps=3)
    saved: list[int] = []
    io = SafeCheckpointIO.save_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            SafeCheckpointIO,
            "save_checkpoint",
            lambda self, checkpoint, path, storage_options=None: (
                saved.append(checkpoint["global_step"]),
                io(self, checkpoint, path),
            ),
        )
        fit(Model(Layer()), last, steps=7)
    assert saved == [3, 6, 7]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert read_checkpoint(tmp_path / "kept" / "previous.ckpt")["global_step"] == 6


def test_a_checkpoint_that_could_not_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "last.ckpt"
    SafeCheckpointIO().save_checkpoint({"step": 1}, path)

    def disk_full(content: object, file: object) -> None:
        file.write(b"half of it")  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match=r"No space left on device.*the one before it stands"):
        SafeCheckpointIO().save_checkpoint({"step": 2}, path)
    assert read_checkpoint(path) == {"step": 1}
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_nothing_can_ask_for_an_unsafe_load(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "whole_module.ckpt")
    with pytest.raises(ValueError, match="could run foreign code"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "whole_module.ckpt", weights_only=False)


class Steps:
    """What DataShares sees of a training: a clock, steps of one second, a loader, and a cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, every: int) -> None:
        self.watch, self.now = DataShares(), 0.0
        self.shares: list[float] = []
        self.hits: list[float] = []
        self.cache, self.loader = SimpleNamespace(waited_s=0.0, hits=0.0), SimpleNamespace(waited_s=0.0)
        self.module: Any = SimpleNamespace(log=self.log, encoder=self.cache, device=torch.device("cpu"))
        self.trainer: Any = SimpleNamespace(global_step=0, log_every_n_steps=every, train_dataloader=self.loader)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def log(self, name: str, share: float, **how: Any) -> None:
        """Note what is logged; ranks have agreed on it before, without the barrier that `sync_dist` costs."""
        assert "sync_dist" not in how
        {"train/waiting": self.shares, "train/cache_hits": self.hits}[name].append(share)

    def make(self, waited_s: float = 0.0, digests_s: float = 0.0, files_s: float = 0.0, last: bool = True) -> None:
        """Make a step, or one of its batches."""
        self.loader.waited_s += waited_s
        self.cache.waited_s += digests_s
        self.watch.on_train_batch_start(self.trainer, self.module, None, 0)
        self.cache.waited_s += files_s
        self.now += files_s + 1.0
        self.trainer.global_step += last
        self.watch.on_train_batch_end(self.trainer, self.module, None, None, 0)


def test_the_share_of_waiting_holds_what_the_cache_took(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, every=1)
    steps.make(waited_s=1, digests_s=1, files_s=2)
    steps.make(digests_s=1, files_s=2)
    assert steps.shares == pytest.approx([4 / 5, 3 / 4])


@pytest.mark.parametrize("late", range(5))
def test_shares_are_those_of_all_steps_since_they_were_last_logged(monkeypatch: pytest.MonkeyPatch, late: int) -> None:
    steps = Steps(monkeypatch, every=5)
    for step in range(10):
        steps.cache.hits = 0.5
        steps.make(last=False)  # gradients are accumulated over two batches
        steps.cache.hits = float(step % 5 == late)
        steps.make(waited_s=10 if step % 5 == late else 0)
    assert steps.shares == pytest.approx([10 / 20] * 2)
    assert steps.hits == pytest.approx([(5 * 0.5 + 1) / 10] * 2)


def test_the_share_of_waiting_stays_a_share_when_the_loader_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, every=1)
    steps.make(waited_s=10)
    steps.make(waited_s=10)
    steps.loader.waited_s = 0.0  # the third step's loader is a new one
    steps.make(waited_s=3)
    assert steps.shares == pytest.approx([10 / 11, 10 / 11, 3 / 4])


def test_the_bar_reads_its_figures_once_a_second_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    now, read = [5.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bar = SimpleNamespace(get_metrics=lambda trainer, module: read.append((trainer, module)) or {"loss": len(read)})
    progress = SimpleNamespace(is_last_batch=False)
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    trainer: Any = SimpleNamespace(progress_bar_callback=bar, training=True, fit_loop=loop)
    module, seldom, shown = nn.Identity(), SeldomReadBar(), []
    for _ in range(2):  # a second training
        seldom.on_fit_start(trainer, module)
    for now[0] in (5.0, 5.5, 6.0, 6.9, 7.0):
        shown.append(bar.get_metrics(trainer, module)["loss"])
    progress.is_last_batch = True
    shown.append(bar.get_metrics(trainer, module)["loss"])
    progress.is_last_batch, trainer.training = False, False
    shown.append(bar.get_metrics(trainer, module)["loss"])
    assert shown == [1, 1, 2, 2, 3, 4, 5]
    assert read == [(trainer, module)] * 5
