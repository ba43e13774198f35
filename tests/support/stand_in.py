"""A model and data so small that the command line can be tested around them in a second."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class Layer(nn.Module):
    """A layer that a config names by class_path."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"model.layer.init_args.width={width} is too small; choose 1 or more.")
        self.trained = nn.Linear(width, 1)
        self.frozen = nn.Linear(1, 1).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(nn.functional.dropout(self.trained(x), 0.5))


class Model(LightningModule):
    """Learns a line; its dropout makes every loss depend on the random state."""

    def __init__(self, layer: Layer, rate: float = 0.1, nan_at: int = -1) -> None:
        super().__init__()
        self.layer, self.rate, self.nan_at = layer, rate, nan_at
        self.strict_loading = False

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        fit = (self.layer(batch) - 1).square().mean()
        prior = torch.tensor(float("nan") if self.global_step == self.nan_at else 0.0)
        self.log_dict({"train/loss_fit": fit, "train/loss_prior": prior, "train/loss": fit + prior})
        return fit + prior

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        figure = 1 - (self.layer(batch) - 1).square().mean()
        self.log_dict({"val/right": figure, "val/score": figure})

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test/right", 1 - (self.layer(batch) - 1).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.layer.trained.parameters(), lr=self.rate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if "trained" in k}


class Numbers(Dataset[Tensor]):
    """Item i is the number i + 1, as often as the width says."""

    def __init__(self, width: int, count: int) -> None:
        self.width, self.count = width, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((self.width,), float(index + 1))


class Resumable(DataLoader[Tensor]):
    """Goes on after the batches that were handed out when its state was saved."""

    handed_out = 0

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        first = self.handed_out % len(self)
        for number, batch in enumerate(super().__iter__()):
            if number >= first:
                self.handed_out += 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"handed_out": self.handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.handed_out = state["handed_out"]


@dataclass(frozen=True)
class Shares:
    """Settings within settings."""

    first: float = 0.5


class Data(LightningDataModule):
    """Eight numbers in order, in batches of two; the first two validate."""

    def __init__(
        self,
        root: str = "somewhere",
        seed: int = 0,
        batch_size: int = 2,
        names: list[str] | None = None,
        shares: Shares = Shares(),
    ) -> None:
        super().__init__()
        self.root, self.seed, self.batch_size = root, seed, batch_size

    def fingerprint(self) -> str:
        return f"numbers {self.root}"

    def train_dataloader(self) -> DataLoader[Tensor]:
        return Resumable(Numbers(3, 8), batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(Numbers(3, 2), batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(Numbers(3, 2), batch_size=self.batch_size)


class DataWithoutSeed(Data):
    """Whoever needs no seed takes none."""

    def __init__(self, root: str = "somewhere") -> None:
        super().__init__(root)


def trainer(steps: int, world: int = 1, device: str = "cpu") -> Any:
    """Return as much of a Lightning trainer as callbacks ask for after so many steps."""
    progress = SimpleNamespace(is_last_batch=False)
    epoch = SimpleNamespace(batch_progress=progress, _should_check_val_fx=lambda fetcher: False)
    return SimpleNamespace(
        global_step=steps,
        default_root_dir=os.devnull,
        received_sigterm=False,
        world_size=world,
        is_global_zero=True,
        checkpoint_callbacks=[],
        state=SimpleNamespace(fn="fit"),
        strategy=SimpleNamespace(root_device=torch.device(device)),
        fit_loop=SimpleNamespace(epoch_loop=epoch, _data_fetcher=None),
        _accelerator_connector=SimpleNamespace(cluster_environment=None),
    )
