"""The LightningModule: a frozen backbone, an adapter, a propagation, and what they learn from episodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from mois.evaluation.figures import SubjectReport
from mois.evaluation.protocol import evaluate_volume
from mois.evaluation.result_files import add_confidence, write_result_files
from mois.evaluation.settings import ProtocolSettings
from mois.evaluation.statistics import means
from mois.files.json_records import as_record
from mois.inference.feature_store import GIB
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.inference.shared_work import SharedWork
from mois.interfaces import Adapter, Backbone, Propagation
from mois.records import Episode, Volume
from mois.report.evaluation_page import write_report
from mois.scans.image_files import write_volume
from mois.sharing.calibration import Calibration
from mois.sharing.identity import rules_apart
from mois.sharing.remarks import does_harm, made_worse
from mois.tracking.tracker import Tracker
from mois.training.checkpoint_content import BackboneFacts
from mois.training.episode_step import EpisodeLearning, learn, names, pictures
from mois.training.feature_cache import CachedEncoder, CacheSettings
from mois.training.pending_scalar import Reduction, logs_now


def of_prefix(figures: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Return the figures of one propagation, under their plain names."""
    own = {name.removeprefix(prefix): value for name, value in figures.items() if name.startswith(prefix)}
    return {name: value for name, value in own.items() if "/" not in name}


@dataclass(frozen=True)
class Optimisation:
    """AdamW with a linear warm-up and a cosine to a hundredth.

    Attributes:
        learning_rate: At the end of the warm-up.
        weight_decay: Of matrices and kernels; biases, norms and tokens have none.
        warm_up: Share of all steps.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warm_up: float = 0.05

    def factor(self, step: int, steps: int) -> float:
        """Return what the learning rate is multiplied by at a step of so many."""
        warm_up = max(1, round(self.warm_up * steps))
        if step < warm_up:
            return (step + 1) / warm_up
        along = min(1.0, (step - warm_up) / max(1, steps - warm_up))
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * along))


class ExemplarSegmenter(LightningModule):
    """Learns from episodes, and is validated on whole volumes.

    Args:
        backbone: SAM2 behind `Backbone`.
        adapter: What of it becomes trainable.
        propagation: From exemplars to all lesions like them.
        companions: Further propagations that learn from the same features of the same episodes, for a comparison at
            equal budget; their figures carry their class's name.
        learning: How an episode becomes a loss.
        optimisation: Optimiser and schedule.
        inference: How whole volumes are cut, blended and tracked.
        protocol: How whole volumes are scored.
        cache: Where to keep what the frozen part of the encoder sees in training patches; it pays where patches come
            again (data.init_args.views).
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: Adapter,
        propagation: Propagation,
        companions: Sequence[Propagation] = (),
        learning: EpisodeLearning = EpisodeLearning(),  # noqa: B008 (frozen)
        optimisation: Optimisation = Optimisation(),
        inference: InferenceSettings = InferenceSettings(),  # noqa: B008
        protocol: ProtocolSettings = ProtocolSettings(),  # noqa: B008
        cache: CacheSettings = CacheSettings(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapter = adapter
        self.propagation = propagation
        self.companions = nn.ModuleList(companions)
        for module in self.propagations.values():
            module.build(backbone)
        adapter.attach(backbone, propagation)
        self.learning = learning
        self.optimisation = optimisation
        self.inference = inference
        self.protocol = protocol
        self.cache = cache
        self.encoder = CachedEncoder(backbone, cache) if cache.folder is not None else None
        self._segmenters: dict[Propagation, VolumeSegmenter] = {}  # kept, since each compiles at its second use
        self._loss: Reduction | None = None  # of the present batch
        self._keys: list[str] = []  # of the pictures of the present batch
        self.reports: dict[str, list[SubjectReport]] = {}  # by the prefix of a propagation
        self._steps = 1  # of the training, as soon as it starts
        self.provenance: dict[str, Any] = {}  # filled in by the command line, written with every result
        self.step_0: dict[str, float] = {}  # what a validation before the first step gave
        self.validated: dict[str, float] = {}  # likewise of the validation that goes with the present weights
        self.calibrations: dict[str, Calibration] = {}  # likewise; a companion's under its prefix, for a test
        self.strict_loading = (
            False  # a checkpoint holds what was trained; on_load_checkpoint checks that it is all there
        )
        # DDP would broadcast the buffers, all of them constants, before every forward pass of a validation too: a rank
        # with more volumes than others would wait forever (test_every_trainer_part_trains)
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    @property
    def propagations(self) -> dict[str, Propagation]:
        """All propagations by the prefix of their figures, the model's own first ("")."""
        return names([self.propagation, *self.companions])  # type: ignore[list-item]

    @property
    def trainable_fraction(self) -> float:
        """Trainable parameters over all parameters of backbone, adapter and propagation."""
        parameters = [*self.backbone.parameters(), *self.propagation.parameters()]
        return sum(p.numel() for p in parameters if p.requires_grad) / sum(p.numel() for p in parameters)

    def segmenter(self, propagation: Propagation | None = None) -> VolumeSegmenter:
        """Return what turns a volume and exemplars into lesions, by this model as it stands."""
        chosen = propagation or self.propagation
        if chosen not in self._segmenters:
            self._segmenters[chosen] = VolumeSegmenter(self.backbone, chosen, self.inference)
        return self._segmenters[chosen]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Work out what a batch's pictures are called in the cache, while they are on the CPU."""
        del dataloader_idx
        if self.encoder is not None and isinstance(batch, Episode):
            self._keys = self.encoder.keys(pictures(self.backbone, batch), str(self.trainer.precision))
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move episodes; whole volumes stay where they are, and go to the device tile by tile."""
        return batch if isinstance(batch, Volume) else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def training_step(self, episode: Episode, batch_idx: int) -> Tensor:
        """Learn from a batch of episodes."""
        encode = None
        if self.encoder is not None:
            keys = self._keys or self.encoder.keys(pictures(self.backbone, episode), str(self.trainer.precision))
            encode, self._keys = partial(self.encoder, keys=keys), []  # a datamodule may have that hook to itself
        outcome = learn(
            self.backbone,
            self.propagations,
            episode,
            self.learning,
            self.global_step,
            encode,
            tracking=self.inference.tracking(self.backbone),
        )
        total = torch.stack(list(outcome.losses.values())).sum()
        batch_size = episode.query_images.shape[0]
        if self.trainer.world_size == 1 or logs_now(self.trainer):
            self._loss = Reduction(total)  # on its way while the backward pass runs
        self.log_dict({f"train/loss_{name}": loss for name, loss in outcome.losses.items()}, batch_size=batch_size)
        self.log_dict({f"train/{name}": value for name, value in outcome.figures.items()}, batch_size=batch_size)
        return total

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the loss, the mean of all ranks: with several, of the steps that are logged alone."""
        if self._loss is not None:
            loss, self._loss = self._loss.read(), None
            self.log("train/loss", loss, prog_bar=True, batch_size=1)

    def validation_step(self, volume: Volume, batch_idx: int) -> None:
        """Score a whole volume; the first one of each round leaves an overlay in the log."""
        out = self.results_folder("validation") if batch_idx == 0 and self.global_rank == 0 else None
        self._score(volume, out)
        if out is not None:
            for report in self.reports[""][-1].classes:
                overlay = out / "overlays" / f"{volume.subject}_class{report.target_class}.png"
                Tracker.of(self.trainer).picture(f"val/overlay_class{report.target_class}", overlay, self.global_step)

    def test_step(self, volume: Volume, batch_idx: int) -> None:
        """Score a whole volume, and write what was found."""
        self._score(volume, self.results_folder("test"))

    def predict_step(self, volume: Volume, batch_idx: int) -> None:
        """Write what is found in a scan as `predict/predictions/*.nii.gz`, on the scanner's grid.

        Annotated lesions of the scan are prompted as in a test; a scan without any is searched without exemplars.
        """
        out = self.results_folder("predict")
        if bool(volume.lesions.any()):
            evaluate_volume(self.segmenter(), volume, self.protocol, out)
            return
        segmenter = self.segmenter()
        encoded = segmenter.encode(volume)
        grid = encoded.grid
        found = segmenter.lesions(segmenter.propagate(encoded), volume.voxel_ml, grid.edges_mm)
        path = out / "predictions" / f"{volume.subject}.nii.gz"
        write_volume(grid.to_volume(torch.from_numpy(found)), volume.affine, path)

    def on_validation_epoch_start(self) -> None:
        """Forget the volumes of the last round."""
        self.reports = {prefix: [] for prefix in self.propagations}

    def on_test_epoch_start(self) -> None:
        """Forget the volumes of the last round."""
        self.reports = {prefix: [] for prefix in self.propagations}

    def on_validation_epoch_end(self) -> None:
        """Log the mean over all volumes of all ranks, each counted once; warn of exemplars that are of no use."""
        figures = self._log_figures("val")
        if self.trainer.sanity_checking:  # before the first step, where Lightning logs nothing
            self.step_0 = figures
            Tracker.of(self.trainer).scalars({f"val/{name}": value for name, value in figures.items()}, 0)
            self.reports = {prefix: [] for prefix in self.propagations}  # no checkpoint's validation is of step 0
            return
        for prefix in self.propagations:
            right, wrong = figures.get(f"{prefix}right"), figures.get(f"{prefix}wrong")
            if right is not None and wrong is not None and right > 0.1 and wrong > 0.8 * right:
                rank_zero_warn(
                    f"val/{prefix}right={right:.2f} and val/{prefix}wrong={wrong:.2f} are close: the propagation "
                    "ignores its exemplars. Give the episodes more of another class (data.init_args.mix), or train on."
                )
            self._warn_of_harm("val", figures, prefix)
            for sentence in made_worse(of_prefix(self.step_0, prefix), of_prefix(figures, prefix)):
                rank_zero_warn(f"val/{prefix}{sentence}")

    def on_test_epoch_end(self) -> None:
        """Log as validation does; write metrics.json, tables and a report, a companion's into a folder of its name."""
        figures = self._log_figures("test")
        for prefix in self.propagations:
            self._warn_of_harm("test", figures, prefix)
        if self.trainer.is_global_zero:
            run = Path(self.trainer.default_root_dir).resolve().name
            for prefix, reports in self.reports.items():
                folder = self.results_folder("test") / prefix
                write_result_files(folder, reports, self.record(prefix), protocol=self.protocol)
                if prefix in self.calibrations:
                    add_confidence(folder / "candidates.csv", self.calibrations[prefix])
                write_report(folder, f"{run} {prefix.rstrip('/')}".rstrip())

    def _warn_of_harm(self, split: Literal["val", "test"], figures: Mapping[str, float], prefix: str) -> None:
        right, without = figures.get(f"{prefix}right"), figures.get(f"{prefix}no_exemplars")
        if does_harm(right, without):
            rank_zero_warn(
                f"{split}/{prefix}right={right:.3f} is below {split}/{prefix}no_exemplars={without:.3f}: the exemplars "
                "do harm. Train on, or compare with the model before the training (test without --ckpt_path)."
            )

    def record(self, prefix: str = "") -> dict[str, Any]:
        """Return what made a propagation's result: the run's provenance, how much was trained, what that spoiled."""
        worse = made_worse(of_prefix(self.step_0, prefix), of_prefix(self.validated, prefix))
        told = {"made_worse": worse} if worse else {}
        return {**self.provenance, "trainable_fraction": round(self.trainable_fraction, 4), **told}

    def results_folder(self, name: str) -> Path:
        """Return where whole-volume results are written; not `trainer.log_dir`, which waits for all ranks."""
        return Path(self.trainer.default_root_dir) / name

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with warm-up and cosine.

        Raises:
            ValueError: If nothing is trainable.
        """
        decayed = [p for p in self.parameters() if p.requires_grad and p.ndim > 1]
        plain = [p for p in self.parameters() if p.requires_grad and p.ndim <= 1]
        if not decayed and not plain:
            raise ValueError(
                f"nothing to train: {type(self.adapter).__name__} trains nothing of the backbone and "
                f"{type(self.propagation).__name__} has no weights; choose another model.adapter or model.propagation."
            )
        groups = [
            {"params": decayed, "weight_decay": self.optimisation.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=self.optimisation.learning_rate
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: self.optimisation.factor(step, self._steps)
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Warn of a cache that this training fills for nothing, or that cannot hold what it needs."""
        data: Any = getattr(self.trainer, "datamodule", None)
        epochs = self.trainer.max_epochs
        views = getattr(data, "views", None)
        if self.encoder is None or views is None:
            return
        if views < 1 or 0 < (epochs or 0) <= views:
            again = "no patch comes again" if views < 1 else f"none comes again within trainer.max_epochs={epochs}"
            rank_zero_warn(
                f"model.cache.folder={self.encoder.cache.folder} serves only another run of the same seed: with "
                f"data.init_args.views={views} {again}; set it to 1 or more, below the epochs, or leave model.cache out"
            )
            return
        shape, episodes = data.settings, views * data.episodes_per_epoch
        images = 2 * shape.exemplars + 1 + (shape.clip if shape.clip > 1 and self._backbone_learns() else 0)
        each = images * self.encoder.bytes_per_image(shape.patch_px)
        if each * episodes > self.encoder.cache.most_bytes:
            share = self.encoder.cache.most_bytes / (each * episodes)
            rank_zero_warn(
                f"model.cache.gib={self.encoder.cache.most_bytes / GIB:.4g} holds {100 * share:.0f} % of what this "
                f"training looks at: {each / 1e6:.3g} MB an episode x {episodes} episodes = "
                f"{each * episodes / GIB:.3g} GiB; the rest is worked out in every epoch. Set it so high, or lower "
                "data.init_args.views or data.init_args.episodes_per_epoch"
            )

    def on_train_start(self) -> None:
        """Ask for the number of steps that the learning rate follows.

        In `configure_optimizers` that would make the loader before a checkpoint says where in the data to go on, and
        Lightning would forget what it says (test_a_training_that_is_killed_goes_on_as_if_it_had_not_been).

        Raises:
            ValueError: If the training has no end.
        """
        if self.trainer.estimated_stepping_batches == math.inf:
            raise ValueError(
                "trainer.max_epochs=-1 without trainer.max_steps has no end, which the learning rate needs; set one."
            )
        self._steps = int(self.trainer.estimated_stepping_batches)
        for schedule in (config.scheduler for config in self.trainer.lr_scheduler_configs):
            for group, rate in zip(schedule.optimizer.param_groups, schedule.base_lrs, strict=True):
                group["lr"] = rate * self.optimisation.factor(schedule.last_epoch, self._steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was trained, and say which backbone it belongs to."""
        checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in self._trained()}
        identity = self.backbone.identity
        checkpoint["backbone"] = {"name": identity.name, "source": identity.source, "sha256": identity.sha256}
        checkpoint["backbone"]["behaviour"] = self.backbone.behaviour()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that is not of this model.

        Raises:
            ValueError: If trained tensors are missing, unknown or of another shape, or the backbone is another one.
        """
        given, trained = checkpoint["state_dict"], self._trained()
        if given.keys() != trained.keys():
            missing, unknown = sorted(trained.keys() - given.keys()), sorted(given.keys() - trained.keys())
            raise ValueError(
                f"the checkpoint does not fit the model: {len(missing)} of {len(trained)} trained tensors are missing "
                f"({', '.join(missing[:3])}), {len(unknown)} are unknown ({', '.join(unknown[:3])}); use the config it "
                "was trained with."
            )
        for name, tensor in trained.items():
            if given[name].dtype != tensor.dtype:
                raise ValueError(
                    f"the checkpoint does not fit the model: {name} is {given[name].dtype} there and {tensor.dtype} "
                    "here; give a checkpoint that train.py wrote."
                )
            if given[name].shape != tensor.shape:
                raise ValueError(
                    f"the checkpoint does not fit the model: {name} has shape {tuple(given[name].shape)} there and "
                    f"{tuple(tensor.shape)} here; use the config it was trained with."
                )
        if "backbone" not in checkpoint:
            raise ValueError("the checkpoint does not say which backbone it belongs to; give one that train.py wrote.")
        theirs = as_record(checkpoint["backbone"], BackboneFacts, "the checkpoint's backbone", later=("behaviour",))
        ours = self.backbone.identity
        if theirs.sha256 != ours.sha256:
            raise ValueError(
                f"the checkpoint belongs to backbone {theirs.name} ({theirs.source}, sha256 {theirs.sha256[:12]}), "
                f"this one is {ours.name} ({ours.source}, sha256 {ours.sha256[:12]}); set model.backbone.weights "
                "accordingly."
            )
        if theirs.behaviour is None:
            if self.backbone.behaviour():
                rank_zero_info("the checkpoint records no rules of its backbone: those of its time are taken")
                self.backbone.behave({})
                if self.encoder is not None:  # its keys hold the rules
                    self.encoder = CachedEncoder(self.backbone, self.cache)
        elif theirs.behaviour != (now := self.backbone.behaviour()):
            raise ValueError(
                f"the checkpoint was trained with other rules of its backbone ({rules_apart(theirs.behaviour, now)} "
                f"instead of {rules_apart(now, theirs.behaviour)}); set model.backbone.init_args.rules accordingly."
            )

    def _backbone_learns(self) -> bool:
        return any(parameter.requires_grad for parameter in self.backbone.parameters())

    def _trained(self) -> dict[str, Tensor]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def _score(self, volume: Volume, out: Path | None) -> None:
        shared = SharedWork()
        for prefix, propagation in self.propagations.items():
            folder = None if out is None else out / prefix
            report = evaluate_volume(self.segmenter(propagation), volume, self.protocol, folder, shared)
            self.reports[prefix].append(report)

    def _log_figures(self, split: Literal["val", "test"]) -> dict[str, float]:
        parts = [self.reports]
        if self.trainer.world_size > 1:
            parts = [{} for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(parts, self.reports)
        self.reports = {
            prefix: sorted((report for part in parts for report in part[prefix]), key=lambda report: report.subject)
            for prefix in self.propagations
        }
        figures = {
            prefix + name: value
            for prefix, reports in self.reports.items()
            for name, value in means(reports).items()
            if value is not None
        }
        self.log_dict({f"{split}/{name}": value for name, value in figures.items()}, sync_dist=True)
        return figures
