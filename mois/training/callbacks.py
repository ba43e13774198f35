"""Callbacks of a training: cost, waiting for data, advice on the cache, progress bar, seeds, stop at the first NaN."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.optim import Optimizer

from mois.inference.feature_store import GIB
from mois.machine.pending_scalar import PendingReduction, PendingScalar
from mois.tracking.tracker import Tracker
from mois.training.cost import PartCost, count_parameters, noise_episode, step_cost, validation_seconds
from mois.training.feature_cache import CachedEncoder
from mois.training.module import ExemplarSegmenter


class CostTable(Callback):
    """Prints the parameters of each part, and the cost of a step and of a validation, at the start of a training.

    Args:
        dry_step: Whether to make a step on an episode of noise, and print its memory and seconds by part. The shape of
            the episode is that of the datamodule. The step changes nothing (`step_cost`).
    """

    def __init__(self, dry_step: bool = True) -> None:
        self.dry_step = dry_step

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the tables and record them."""
        rows = count_parameters(pl_module)
        total, trained = rows[-1][1:]
        tracker = Tracker.of(trainer)
        tracker.table("parameters", ["part", "parameters", "trained"], rows, trainer.global_step)
        if not trainer.is_global_zero:
            return
        show("part", ("parameters", "trained"), [(name, f"{count:,}", f"{some:,}") for name, count, some in rows])
        Console(stderr=True).print(f"{100 * trained / max(total, 1):.2f} % of {total:,} parameters are trained")
        costs = self._costs(trainer, pl_module)
        if costs:
            tracker.table("cost", ["part", "MiB", "seconds"], costs, trainer.global_step)
            show(
                "a step", ("MiB", "seconds"), [(cost.part, f"{cost.mib:,.0f}", f"{cost.seconds:.2f}") for cost in costs]
            )

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and record what the validation before the first step cost. Every later one will cost the same."""
        seconds = validation_seconds(getattr(pl_module, "reports", {}).get("", ()))
        if seconds and self.dry_step and trainer.is_global_zero:
            Tracker.of(trainer).table("validation_cost", ["part", "seconds"], seconds, trainer.global_step)
            show("a validation", ("seconds",), [(part, f"{spent:.2f}") for part, spent in seconds])

    def _costs(self, trainer: Trainer, module: LightningModule) -> list[PartCost]:
        """Return the cost of one episode times the batch size: saved tensors add up, and on a CPU also seconds."""
        data = getattr(trainer, "datamodule", None)
        shape = getattr(data, "settings", None)  # shape of an episode; only our datamodules have it
        if not (self.dry_step and shape is not None and isinstance(module, ExemplarSegmenter)):
            return []
        if not any(p.requires_grad for p in module.parameters()):
            return []  # `configure_optimizers` refuses it
        episode = noise_episode(shape.exemplars, shape.clip, shape.patch_px)
        costs = step_cost(module, episode, trainer.precision_plugin.train_step_context)
        batch = getattr(data, "batch_size", 1)
        parts = [cost._replace(mib=batch * cost.mib, seconds=batch * cost.seconds) for cost in costs[:-2]] + costs[-2:]
        return [*parts, PartCost("all", sum(cost.mib for cost in parts), sum(cost.seconds for cost in parts))]


class DataShares(Callback):
    """Logs how long steps waited for data, and how many images were in the feature cache.

    `train/waiting` is the share of the time in which the slowest rank waited for its loader and for `model.cache`. Both
    count their seconds (`waited_s`). The cache makes digests before a step, and reads and writes files within it.
    `train/cache_hits` is the share of the images in the cache, over all ranks. Both count the steps since the last log.
    """

    def __init__(self) -> None:
        self._loader_s = 0.0  # last `waited_s` of the loader
        self._cache_s = 0.0  # last `waited_s` of the cache
        self._digests_s = 0.0
        self._began_s = 0.0
        self._step = 0
        self._forget()

    def _forget(self) -> None:
        self._waited_s = 0.0
        self._passed_s = 0.0
        self._hits: list[float] = []  # of each batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note when the step began."""
        self._digests_s = getattr(_cache(pl_module), "waited_s", 0.0) - self._cache_s
        self._began_s = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch; log at the steps that log."""
        self._passed_s += self._digests_s + time.perf_counter() - self._began_s
        if cache := _cache(pl_module):
            self._hits.append(cache.hits)
            self._waited_s += cache.waited_s - self._cache_s
            self._cache_s = cache.waited_s
        loader_s = getattr(trainer.train_dataloader, "waited_s", None)
        if loader_s is not None:
            # a reloaded loader counts from 0
            waited = loader_s - (self._loader_s if loader_s >= self._loader_s else 0.0)
            self._waited_s += waited
            self._passed_s += waited
            self._loader_s = loader_s
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not (every and stepped and trainer.global_step % every == 0):
            return
        if loader_s is not None:  # loaders of others may not count
            share = self._waited_s / self._passed_s
            slowest = PendingReduction(torch.full((), share, device=pl_module.device), of="max").read()
            pl_module.log("train/waiting", slowest, batch_size=1)
        if self._hits:
            hits = PendingReduction(torch.full((), sum(self._hits) / len(self._hits), device=pl_module.device)).read()
            pl_module.log("train/cache_hits", hits, batch_size=1)
        self._forget()


def _cache(module: LightningModule) -> Any:
    return getattr(module, "encoder", None)


class CacheAdvice(Callback):
    """Warns at the start of a training if its feature cache is of no use, or too small."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the cache with the patches that the datamodule gives."""
        cache, data = _cache(pl_module), getattr(trainer, "datamodule", None)
        if cache is None or not hasattr(data, "views") or not isinstance(pl_module, ExemplarSegmenter):
            return
        learns = any(parameter.requires_grad for parameter in pl_module.backbone.parameters())
        for sentence in _cache_faults(cache, data, trainer.max_epochs or 0, learns):
            rank_zero_warn(sentence)


def _cache_faults(cache: CachedEncoder, data: Any, epochs: int, backbone_learns: bool) -> Iterator[str]:
    """Yield what is wrong with a feature cache.

    Args:
        cache: The encoder with the cache.
        data: The datamodule: its views, its settings of an episode, and its episodes per epoch.
        epochs: Epochs of the training; 0 or less for no limit.
        backbone_learns: Whether the training also tracks over clips, which needs more images.
    """
    views = data.views
    if views < 1 or 0 < epochs <= views:
        again = "no patch comes again" if views < 1 else f"none comes again within trainer.max_epochs={epochs}"
        yield (
            f"model.cache.folder={cache.cache.folder} serves only another run of the same seed: with "
            f"data.init_args.views={views} {again}; set it to 1 or more, below the epochs, or leave model.cache out"
        )
        return
    shape, episodes = data.settings, views * data.episodes_per_epoch
    images = 2 * shape.exemplars + 1 + (shape.clip if shape.clip > 1 and backbone_learns else 0)
    each = images * cache.bytes_per_image(shape.patch_px)
    if each * episodes > cache.cache.most_bytes:
        share = cache.cache.most_bytes / (each * episodes)
        yield (
            f"model.cache.gib={cache.cache.most_bytes / GIB:.4g} holds {100 * share:.0f} % of what this training looks "
            f"at: {each / 1e6:.3g} MB an episode x {episodes} episodes = {each * episodes / GIB:.3g} GiB; the rest is "
            "computed again in every epoch. Set it so high, or lower data.init_args.views or "
            "data.init_args.episodes_per_epoch"
        )


def show(first: str, others: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table of names and numbers to stderr. Its last row is bold.

    Args:
        first: Title of the column of names.
        others: Titles of the other columns.
        rows: Texts of each row.
    """
    table = Table(first)
    for other in others:
        table.add_column(other, justify="right")
    for row in rows:
        table.add_row(*row, style="bold" if row is rows[-1] else None)
    Console(stderr=True).print(table)


class StopAtNaN(Callback):
    """Stops the training at the first loss that is not finite, before it changes the weights. The message names it."""

    def __init__(self) -> None:
        self._losses: list[PendingScalar] = []  # losses since the last change of the weights

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the losses of an earlier training."""
        self._losses = []

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Ask the accelerator for the loss, without waiting for it."""
        self._losses.append(PendingScalar(loss))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the losses. If one is not finite, check its parts and the weights.

        Raises:
            ValueError: If a loss is not finite.
        """
        losses, self._losses = self._losses, []
        if all(math.isfinite(loss.read()) for loss in losses):
            return
        logged = trainer.callback_metrics
        parts = [name for name, value in logged.items() if name.startswith("train/loss_") and not is_finite(value)]
        weights = [name for name, value in pl_module.named_parameters() if value.requires_grad and not is_finite(value)]
        culprit = f"; weights that are not finite either: {', '.join(weights[:3])}" if weights else ""
        raise ValueError(
            f"{', '.join(parts) or 'train/loss'} is not finite at step {trainer.global_step}{culprit}; lower "
            "model.optimisation.learning_rate or set trainer.precision=32-true, and go on with --ckpt_path last"
        )


class AllLearn(Callback):
    """Names trained tensors that no loss reaches, after the first backward pass.

    - One process -> a warning: these tensors learn nothing.
    - Several processes -> an error: the processes would wait for their gradients.
    """

    def __init__(self) -> None:
        self._looked = False

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check that the loss depends on a trained tensor.

        Raises:
            ValueError: If it depends on no trained tensor.
        """
        if not loss.requires_grad:
            raise ValueError(_without_gradient([name for name, p in pl_module.named_parameters() if p.requires_grad]))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the gradients after the first backward pass.

        Raises:
            ValueError: If a trained tensor has no gradient, and several processes would wait for it.
        """
        if self._looked:
            return
        self._looked = True
        without = [name for name, p in pl_module.named_parameters() if p.requires_grad and p.grad is None]
        if not without:
            return
        options = getattr(trainer.strategy, "_ddp_kwargs", {})
        if trainer.world_size > 1 and not options.get("find_unused_parameters"):
            raise ValueError(_without_gradient(without))
        rank_zero_warn(_without_gradient(without))


def _without_gradient(names: Sequence[str]) -> str:
    return (
        f"no loss reaches {len(names)} trained tensors ({', '.join(names[:2])}), so that they learn nothing; leave "
        "their part out of model.adapter.init_args.placement.parts, or set data.init_args.clip=3 where they are of the "
        "memory"
    )


class StartToBeat(Callback):
    """Lets every `EarlyStopping` of Lightning begin with the figure of the validation before the first step.

    Lightning hides that validation from it. So a training that is never better than its start would wait too long.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the figure to a new training. One that goes on has it in its checkpoint."""
        step_0: dict[str, float] = getattr(pl_module, "step_0", {})
        for callback in trainer.early_stopping_callbacks if trainer.ckpt_path is None else ():
            figure = step_0.get(str(callback.monitor).removeprefix("val/"))
            if figure is not None and math.isfinite(figure):
                callback.best_score = torch.tensor(figure)


class SeldomReadBar(Callback):
    """Limits the progress bar to one reading of its figures per second: for each reading, the host waits for the GPU.

    The limit does not apply at the end of an epoch and in a validation.
    """

    def __init__(self) -> None:
        self._bar: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the method by which the progress bar reads its figures."""
        bar: Any = trainer.progress_bar_callback
        if bar is None or bar is self._bar:
            return
        self._bar, read, read_s, figures = bar, bar.get_metrics, -math.inf, {}

        def get_metrics(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
            nonlocal read_s, figures
            within = trainer.training and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
            if not within or time.monotonic() - read_s >= 1.0:
                read_s, figures = time.monotonic(), read(trainer, pl_module)
            return figures

        bar.get_metrics = get_metrics


class SeedEachStep(Callback):
    """Seeds the random draws of a step by (seed, epoch, batch, rank), so that a resumed run repeats them exactly."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed torch, NumPy and Python."""
        del pl_module, batch
        seed = step_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)


def step_seed(*numbers: int) -> int:
    """Return a seed of 63 bits, a digest of these numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1


def is_finite(value: Tensor) -> bool:
    """Return whether a tensor holds no NaN and no infinity."""
    return bool(torch.isfinite(value.detach()).all())
