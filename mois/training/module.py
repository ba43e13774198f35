"""The LightningModule: it trains an adapter and a propagation on episodes, and validates on whole scans.

The hooks are here. Other modules do the work: `episode_step` computes the losses, `whole_scans` scores and writes,
`checkpoint_content` checks checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from mois.evaluation.figures import SubjectReport
from mois.evaluation.settings import ProtocolSettings
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.interfaces import Adapter, Backbone, Propagation
from mois.machine.pending_scalar import PendingReduction
from mois.records import Episode, Volume
from mois.sharing.calibration import Calibration
from mois.sharing.remarks import made_worse
from mois.tracking.tracker import Tracker
from mois.training.checkpoints.checkpoint_content import BackboneFacts, check_fit
from mois.training.episode_step import EpisodeLearning, StepResult, learn, names, pictures
from mois.training.feature_cache import CachedEncoder, CacheSettings
from mois.training.graphed_step import GraphedSteps
from mois.training.optimisation import Optimisation
from mois.training.whole_scans import (
    figures_of,
    gather_reports,
    harm_warning,
    mean_figures,
    predict_scan,
    score_scan,
    validates_on_trained_scans,
    validation_warnings,
    with_score,
    write_test_results,
)


class ExemplarSegmenter(LightningModule):
    """Learns from episodes, and is validated on whole volumes.

    Args:
        backbone: The backbone, such as SAM2.
        adapter: Makes parts of the backbone trainable.
        propagation: Finds all lesions that look like the exemplars.
        companions: Further propagations that learn from the same features of the same episodes, for a fair comparison.
            The names of their figures begin with their class.
        learning: How an episode becomes a loss.
        optimisation: Optimiser and schedule.
        inference: How whole volumes are cut, blended and tracked.
        protocol: How whole volumes are scored.
        cache: Folder for features of the frozen part of the encoder. It helps if patches come again
            (data.init_args.views).
        graphs: Whether a training records each kind of step as a CUDA graph and replays it (`graphed_step`). It helps
            a small backbone on one GPU, where Python starts thousands of kernels a step.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: Adapter,
        propagation: Propagation,
        companions: Sequence[Propagation] = (),
        learning: EpisodeLearning = EpisodeLearning(),  # noqa: B008 (frozen)
        optimisation: Optimisation = Optimisation(),  # noqa: B008
        inference: InferenceSettings = InferenceSettings(),  # noqa: B008
        protocol: ProtocolSettings = ProtocolSettings(),  # noqa: B008
        cache: CacheSettings = CacheSettings(),  # noqa: B008
        graphs: bool = False,
    ) -> None:
        super().__init__()
        inference.check_backbone(backbone)
        if learning.clip_px is not None and cache.folder is not None:
            raise ValueError(
                f"model.learning.clip_px={learning.clip_px} cuts clips that model.cache.folder={cache.folder} would "
                "keep whole; leave out one of them."
            )
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
        self.graphs = graphs
        self._graphed: GraphedSteps | None = None
        self._segmenters: dict[Propagation, VolumeSegmenter] = {}  # kept, because each compiles at its second use
        self._loss: PendingReduction | None = None  # loss of the present batch
        self._keys: list[str] = []  # cache keys of the pictures of the present batch
        self.reports: dict[str, list[SubjectReport]] = {}  # by the prefix of a propagation
        self._steps = 1  # number of steps of the training, known when it starts
        self.provenance: dict[str, Any] = {}  # set by the command line, written with every result
        self.step_0: dict[str, float] = {}  # figures of the validation before the first step
        self.validated: dict[str, float] = {}  # figures of the validation of the present weights
        self.pictured_scans = 1  # number of validation scans whose results are written, on the first process
        self.calibrations: dict[str, Calibration] = {}  # of the tested checkpoint, by propagation prefix
        # A checkpoint holds only the trained tensors. on_load_checkpoint checks that all of them are there.
        self.strict_loading = False
        # DDP would broadcast the buffers, all of them constants, before every forward pass, also in a validation. A
        # rank with more volumes than others would then wait without end (test_every_trainer_part_trains).
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
        """Return the segmenter of whole scans with this model's present weights."""
        chosen = propagation or self.propagation
        if chosen not in self._segmenters:
            self._segmenters[chosen] = VolumeSegmenter(self.backbone, chosen, self.inference)
        return self._segmenters[chosen]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Compute the cache keys of a batch's pictures, before the batch moves to the device."""
        del dataloader_idx
        if self.encoder is not None and isinstance(batch, Episode):
            self._keys = self.encoder.keys(pictures(self.backbone, batch), str(self.trainer.precision))
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move episodes to the device. Whole scans stay on the CPU, and their tiles move later."""
        return batch if isinstance(batch, Volume) else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def training_step(self, episode: Episode, batch_idx: int) -> Tensor:
        """Compute the loss of a batch of episodes, and log its parts. Lightning calls it for every training batch.

        Returns:
            The sum of the losses, a scalar.
        """
        if self._graphed is not None:
            result = self._graphed(episode, self.global_step)
        else:
            result = self._learn(episode, self.global_step)
        total = torch.stack(list(result.losses.values())).sum()
        batch_size = episode.query_images.shape[0]
        if self.trainer.world_size == 1 or _logs_now(self.trainer):
            self._loss = PendingReduction(total)  # the reduction runs during the backward pass
        self.log_dict({f"train/loss_{name}": loss for name, loss in result.losses.items()}, batch_size=batch_size)
        self.log_dict({f"train/{name}": value for name, value in result.figures.items()}, batch_size=batch_size)
        return total

    def _learn(self, episode: Episode, step: int) -> StepResult:
        """Compute losses and figures of a batch of episodes, at a step of this number."""
        encode = None
        if self.encoder is not None:
            # A datamodule may replace the hook that computes the keys: then they are computed here.
            keys = self._keys or self.encoder.keys(pictures(self.backbone, episode), str(self.trainer.precision))
            encode = partial(self.encoder, keys=keys)
            self._keys = []
        tracking = self.inference.tracking(self.backbone)
        return learn(self.backbone, self.propagations, episode, self.learning, step, encode, tracking=tracking)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log `train/loss` after a batch. With several ranks it is their mean, at the steps that log."""
        if self._loss is not None:
            loss, self._loss = self._loss.read(), None
            self.log("train/loss", loss, prog_bar=True, batch_size=1)

    def validation_step(self, volume: Volume, batch_idx: int) -> None:
        """Score a whole scan of the validation. The first scan of each validation is also logged as pictures."""
        pictured = batch_idx < self.pictured_scans and self.global_rank == 0
        out = self.results_folder("validation") if pictured else None
        self._score(volume, out)
        if out is not None and batch_idx == 0:
            for report in self.reports[""][-1].classes:
                overlay = out / "overlays" / f"{volume.subject}_class{report.target_class}.png"
                Tracker.of(self.trainer).picture(f"val/overlay_class{report.target_class}", overlay, self.global_step)

    def test_step(self, volume: Volume, batch_idx: int) -> None:
        """Score a whole scan of the test, and write its predictions and pictures."""
        self._score(volume, self.results_folder("test"))

    def predict_step(self, volume: Volume, batch_idx: int) -> None:
        """Write the lesions found in a scan as `predict/predictions/*.nii.gz`, on the scanner's grid.

        Annotated lesions of the scan are prompted as in a test; a scan without any is searched without exemplars.
        """
        predict_scan(self.segmenter(), volume, self.protocol, self.results_folder("predict"))

    def on_validation_epoch_start(self) -> None:
        """Forget the reports of the last round."""
        self.reports = {prefix: [] for prefix in self.propagations}

    def on_test_epoch_start(self) -> None:
        """Forget the reports of the last round."""
        self.reports = {prefix: [] for prefix in self.propagations}

    def on_validation_epoch_end(self) -> None:
        """Log the mean figures over the scans of all ranks; warn where exemplars do not help."""
        figures = self._log_figures("val")
        if self.trainer.sanity_checking:  # before the first step Lightning logs nothing
            self.step_0 = figures
            Tracker.of(self.trainer).scalars({f"val/{name}": value for name, value in figures.items()}, 0)
            return
        for prefix in self.propagations:
            for sentence in validation_warnings(figures, self.step_0, prefix, validates_on_trained_scans(self.trainer)):
                rank_zero_warn(sentence)

    def on_test_epoch_end(self) -> None:
        """Log the mean figures; write metrics.json, tables and a report. Each companion has its own folder."""
        figures = self._log_figures("test")
        for prefix in self.propagations:
            if sentence := harm_warning("test", figures, prefix):
                rank_zero_warn(sentence)
        if self.trainer.is_global_zero:
            run_name = Path(self.trainer.default_root_dir).resolve().name
            for prefix, reports in self.reports.items():
                write_test_results(
                    self.results_folder("test") / prefix,
                    f"{run_name} {prefix.rstrip('/')}".rstrip(),
                    reports,
                    self.record(prefix),
                    self.protocol,
                    self.calibrations.get(prefix),
                )

    def record(self, prefix: str = "") -> dict[str, Any]:
        """Return the record of a propagation's results: provenance, trained fraction, figures that got worse."""
        worse = made_worse(figures_of(self.step_0, prefix), figures_of(self.validated, prefix))
        warnings = {"made_worse": worse} if worse else {}
        return {**self.provenance, "trainable_fraction": round(self.trainable_fraction, 4), **warnings}

    def results_folder(self, name: str) -> Path:
        """Return the results' folder NAME in the run's folder; `trainer.log_dir` would wait for all ranks."""
        return Path(self.trainer.default_root_dir) / name

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW, with a warm-up and a cosine schedule. Lightning calls it before a training.

        Raises:
            ValueError: If nothing is trainable.
        """
        adapter = self._adapter_tensors()
        if not adapter and (idle := self.optimisation.of_adapter()):
            rank_zero_warn(f"{idle} has no effect: {type(self.adapter).__name__} trains nothing of the backbone")
        own = {id(p) for p in adapter}
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in own]
        groups = self.optimisation.groups(adapter, others)
        if not groups:
            raise ValueError(
                f"nothing to train: {type(self.adapter).__name__} trains nothing of the backbone and "
                f"{type(self.propagation).__name__} has no weights; choose another model.adapter or model.propagation."
            )
        optimiser = torch.optim.AdamW(groups, lr=self.optimisation.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: self.optimisation.factor(step, self._steps)
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Refuse a training without an end, and graphs where they cannot be, before the validation of step 0.

        Raises:
            ValueError: If it has no end, or cannot have graphs.
        """
        if self.graphs:
            self._check_graphs()
        if self.trainer.max_epochs == -1 and self.trainer.max_steps == -1:
            raise ValueError(
                "trainer.max_epochs=-1 without trainer.max_steps has no end, which the learning rate needs; set one."
            )

    def on_train_start(self) -> None:
        """Take the number of steps of the training, for the schedule of the learning rate.

        In `configure_optimizers` that would make the loader before a checkpoint says where in the data to go on, and
        Lightning would forget what it says (test_a_training_that_is_killed_goes_on_as_if_it_had_not_been).
        """
        self.reports = {prefix: [] for prefix in self.propagations}  # start.ckpt alone records those of step 0
        self._steps = int(self.trainer.estimated_stepping_batches)
        if self.graphs:
            self._graphed = GraphedSteps(self._learn, self, self.learning.corrections)
        for schedule in (config.scheduler for config in self.trainer.lr_scheduler_configs):
            for group, rate in zip(schedule.optimizer.param_groups, schedule.base_lrs, strict=True):
                group["lr"] = rate * self.optimisation.factor(schedule.last_epoch, self._steps)

    def expect_steps(self, steps: int) -> None:
        """Take another number of steps for the schedule of the learning rate, in the midst of a training."""
        self._steps = max(1, steps)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave the adapter as it is after its share of the steps: its gradients are dropped."""
        if not self.optimisation.adapter_learns(self.global_step, self._steps):
            for parameter in self._adapter_tensors():
                parameter.grad = None

    def _adapter_tensors(self) -> list[nn.Parameter]:
        """Return what the adapter trains of the backbone."""
        return [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]

    def _check_graphs(self) -> None:
        """Check that steps can be CUDA graphs.

        Raises:
            ValueError: If this training cannot have them.
        """
        allowed = {
            "a CUDA device (trainer.accelerator=gpu)": self.device.type == "cuda",
            "one process (trainer.devices=1)": self.trainer.world_size == 1,
            "no cache of features (model.cache)": self.encoder is None,
        }
        if missing := [name for name, there in allowed.items() if not there]:
            raise ValueError(f"model.graphs=true needs {', '.join(missing)}; leave it out.")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only the trained tensors, and record the backbone that they belong to."""
        checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in self._trained()}
        checkpoint["backbone"] = asdict(BackboneFacts.of(self.backbone))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not fit this model, before Lightning loads it.

        Raises:
            ValueError: If trained tensors are missing, unknown or of another shape, or the backbone is another one.
        """
        facts = check_fit(checkpoint, self._trained(), self.backbone)
        if facts.behaviour is None and self.backbone.behaviour():
            rank_zero_info("the checkpoint records no rules of its backbone: those of its time are taken")
            self.backbone.behave({})
            if self.encoder is not None:  # its keys hold the rules
                self.encoder = CachedEncoder(self.backbone, self.cache)

    def _trained(self) -> dict[str, Tensor]:
        """Return the trained tensors by name: what a checkpoint holds."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def _score(self, volume: Volume, out: Path | None) -> None:
        """Score a scan with every propagation, and keep the reports for the end of the epoch."""
        segmenters = {prefix: self.segmenter(propagation) for prefix, propagation in self.propagations.items()}
        for prefix, report in score_scan(segmenters, volume, self.protocol, out).items():
            self.reports[prefix].append(report)

    def _log_figures(self, split: Literal["val", "test"]) -> dict[str, float]:
        """Log the mean figures over the scans of all ranks, and return them."""
        self.reports = gather_reports(self.reports, self.trainer.world_size)
        figures = with_score(mean_figures(self.reports)) if split == "val" else mean_figures(self.reports)
        self.log_dict({f"{split}/{name}": value for name, value in figures.items()}, sync_dist=True)
        return figures


def _logs_now(trainer: Trainer) -> bool:
    """Return whether the present batch ends a step that is logged."""
    loop, every = trainer.fit_loop.epoch_loop, trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and not loop._should_accumulate() and (loop._batches_that_stepped + 1) % every == 0
