"""Wherever a training is cut, it goes on with the next batch, and each step is counted and logged once."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from datamodules import loading
from datamodules.loading import EpisodeLoader
from mois.errors import DataError
from mois.tracking.loggers import CsvLogger
from mois.training.checkpoints.best_checkpoint import BestCheckpoint
from mois.training.checkpoints.checkpoint_content import check_progress
from mois.training.checkpoints.checkpoint_io import SafeCheckpointIO
from mois.training.checkpoints.last_checkpoint import LastCheckpoint
from mois.training.checkpoints.resume_point import ResumePoint


class Addresses(Dataset[Tensor]):
    """An item is its own address."""

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        return torch.tensor(key)


class Recorder(LightningModule):
    """Notes which items make each step, and at which steps it is validated."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[Any] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch_idx, batch.tolist()))
        self.log("train/loss", float(len(self.seen)))
        return self.weight.sum() + 1.0

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen.append(f"validated at {self.global_step}")
        self.log("val/right", 1.0 / (1 + self.global_step))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(autouse=True)
def plain_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "collate", torch.stack)


def fit(
    run: Path, steps: int, batches: int, ckpt: str | None = None, *, accumulate: int = 1, **options: Any
) -> Recorder:
    module, checkpoints = Recorder(), run / "checkpoints"
    path = None if ckpt is None else str(checkpoints / f"{ckpt}.ckpt")
    done = 0 if path is None else torch.load(path, weights_only=True)["global_step"]
    trainer = Trainer(
        default_root_dir=run,
        max_steps=steps,
        callbacks=[ResumePoint(), BestCheckpoint(checkpoints, "val/right"), LastCheckpoint(checkpoints, 1)],
        logger=CsvLogger(run, done),
        plugins=[SafeCheckpointIO(checkpoints)],
        accelerator="cpu",
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=accumulate,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **options,
    )
    loader = EpisodeLoader(Addresses(), batch_size=1, episodes_per_epoch=batches * accumulate, trainer=trainer)
    trainer.fit(module, loader, DataLoader([0]), ckpt_path=path)
    return module


def logged(run: Path) -> list[int]:
    with (run / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]


VALIDATIONS = {
    "each epoch": {},
    "every other epoch": {"check_val_every_n_epoch": 2},
    "twice an epoch": {"val_check_interval": 0.5},
    "every three batches": {"val_check_interval": 3, "check_val_every_n_epoch": None},
    "never": {"limit_val_batches": 0},
}


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize(("validations", "accumulate"), [*((name, 1) for name in VALIDATIONS), ("each epoch", 2)])
def test_a_training_that_is_cut_after_any_steps_is_the_same_training(
    tmp_path: Path, validations: str, accumulate: int
) -> None:
    options = {**VALIDATIONS[validations], "accumulate": accumulate}
    whole = fit(tmp_path / "whole", 11, 4, **options).seen
    for cuts in ([4, 8, 11], [3, 6, 11], [8, 8, 9, 11]):
        run, seen = tmp_path / "-".join(map(str, cuts)), []
        for number, cut in enumerate(cuts):
            seen += fit(run, cut, 4, "last" if number else None, **options).seen
        assert seen == whole, cuts
        assert logged(run) == list(range(11)), cuts


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_training_goes_on_from_its_best_checkpoint(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", 12, 4).seen
    fit(tmp_path / "run", 10, 4)  # the first validation, after 4 steps, is the best
    assert fit(tmp_path / "run", 12, 4, "best").seen == whole[5:]
    assert logged(tmp_path / "run") == list(range(12))


def test_a_training_goes_on_with_more_or_fewer_batches_a_step(tmp_path: Path) -> None:
    fit(tmp_path / "run", 5, 4, accumulate=2)
    with pytest.raises(ValueError, match="trained with 2 episodes a step, this run has 1"):
        fit(tmp_path / "run", 6, 8, "last")


@pytest.mark.parametrize("best", [math.inf, 0.4, -0.4])
def test_a_schedule_that_waits_for_a_better_figure_goes_on_from_its_best(best: float) -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser)
    loop: dict[str, Any] = {"state_dict": {"combined_loader": []}}
    trainer: Any = SimpleNamespace(
        ckpt_path="last",
        fit_loop=SimpleNamespace(state_dict=lambda: loop),
        optimizers=[optimiser],
        lr_scheduler_configs=[SimpleNamespace(scheduler=schedule)],
    )
    content = {
        "loops": {"fit_loop": loop},
        "optimizer_states": [optimiser.state_dict()],
        "lr_schedulers": [{**schedule.state_dict(), "best": best}],
    }
    check_progress(content, trainer)
    content["lr_schedulers"] = [{**schedule.state_dict(), "best": math.nan}]
    with pytest.raises(DataError, match=r"lr_schedulers\.0\.best is nan"):
        check_progress(content, trainer)
