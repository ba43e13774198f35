"""`mois fit | validate | test | predict` and train.py: LightningCLI with our defaults, loggers, errors of one line."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from mois.cli.arguments import OneLineParser, command_line
from mois.cli.memory_advice import what_frees_memory
from mois.cli.old_training_options import TrainingNames
from mois.cli.resuming import checkpoint_path, compared_run, deciding_figure
from mois.cli.settings import read_settings
from mois.cli.shipped_configs import with_shipped_configs
from mois.cli.training_callbacks import training_callbacks
from mois.cli.training_checks import (
    channels_of_data,
    check_accelerator,
    check_groups,
    check_new_folder,
    check_patch_edge,
    check_precision,
    check_scales,
    check_seed,
    check_strategy,
    choose_precision,
    pixel_mm_of_data,
)
from mois.files.folder_lock import locked
from mois.machine.full_memory import memory_cure
from mois.machine.interrupts import ctrl_c_ends
from mois.machine.processes import first_rank
from mois.sharing.calibration import Calibration
from mois.sharing.provenance import code_version
from mois.sharing.start_from import start_from
from mois.tracking.loggers import LateLoggers, make_loggers
from mois.tracking.settings import TrackingSettings
from mois.tracking.tracker import Tracker
from mois.tracking.wandb_server import trial_of_agent
from mois.training.checkpoints.best_checkpoint import SCORE, BestCheckpoint, check_mode, what_is_delivered
from mois.training.checkpoints.checkpoint_content import RECORD, CheckProgress, ValidationRecord
from mois.training.checkpoints.checkpoint_io import SafeCheckpointIO, read_training
from mois.training.checkpoints.last_checkpoint import LastCheckpoint, how_to_go_on
from mois.training.checkpoints.resume_point import ResumePoint
from mois.training.checkpoints.run_record import RunRecord
from mois.training.checkpoints.same_run import Resumed
from mois.training.epoch_lines import say
from mois.training.export import BundleSettings, export_bundles
from mois.training.module import ExemplarSegmenter
from mois.training.rank_watch import RankWatch
from mois.training.records.model_artifacts import record_model
from mois.training.time_limit import TimeLimit
from mois.training.whole_scans import recorded_figures

TRAINER_DEFAULTS = {
    "gradient_clip_val": 1.0,
    "use_distributed_sampler": False,  # the datamodules split by rank themselves; Lightning would halve the data again
    "num_sanity_val_steps": 0,  # a whole volume would be scored before the first step
    "enable_model_summary": False,  # CostTable shows more
    "log_every_n_steps": 10,
}


@dataclass
class CheckpointSettings:
    """Which checkpoints a training keeps, in `checkpoints/` of its folder.

    Attributes:
        monitor: Validation figure that decides which checkpoint is `best.ckpt`. The default is the unprompted Dice.
        mode: Whether a larger or a smaller figure is better. The opposite of what the figure means is refused.
        every_n_steps: Number of steps between two writes of `last.ckpt`. `--ckpt_path last` goes on from this file,
            and `--ckpt_path previous` from the file before it.
    """

    monitor: str = SCORE
    mode: Literal["max", "min"] = "max"
    every_n_steps: int = 100


class TrainParser(OneLineParser, LightningArgumentParser):
    """Parser of Lightning with errors of one line."""


class NamedConfig(SaveConfigCallback):
    """Saves the whole config in the run's folder: `config.yaml` for fit, `config_COMMAND.yaml` for other commands."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Name the file after the command."""
        if stage != "fit":
            self.config_filename = f"config_{getattr(stage, 'value', stage)}.yaml"  # Lightning's enum prints its name
        super().setup(trainer, pl_module, stage)


class MoisCLI(LightningCLI):
    """Command line of fit, validate, test and predict.

    Args:
        arguments: Words of the command line, without the program's name.
        model_class: Class of the model; tests give another class.
    """

    def __init__(self, arguments: Sequence[str], model_class: type[LightningModule] = ExemplarSegmenter) -> None:
        names = TrainingNames(arguments)
        self.arguments = names.arguments(arguments)
        self.resumed: dict[str, Any] = {}
        self.resumed_run: Resumed | None = None
        self.rank_watch = RankWatch()
        self.ckpt_path: str | None = None
        with ExitStack() as self.held:
            super().__init__(
                model_class,
                LightningDataModule,
                save_config_callback=NamedConfig,
                save_config_kwargs={"overwrite": True},
                trainer_defaults=dict(TRAINER_DEFAULTS),
                seed_everything_default=0,
                parser_class=type("Parser", (TrainParser,), {"with_new_keys": staticmethod(names.config)}),
                parser_kwargs={"parser_mode": "omegaconf"},
                subclass_mode_data=True,
                args=self.arguments,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,  # nothing of ours builds classes that a checkpoint names
            )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning asks the instance
        """Return the command that was given, as Lightning knows it; all four if none was given.

        A parser of a command takes a tenth of a second. `weights_only` is left out, because checkpoints are always read
        that way.
        """
        known = LightningCLI.subcommands()
        return {name: {*known[name], "weights_only"} for name in known.keys() & {*self.arguments[:1]} or known}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add our settings, and let one seed serve data, model and training."""
        parser.add_argument("--tracking", type=TrackingSettings, default=TrackingSettings())
        parser.add_argument("--checkpoints", type=CheckpointSettings, default=CheckpointSettings())
        parser.add_argument("--bundle", type=BundleSettings, default=BundleSettings())
        parser.add_argument(
            "--start_from",
            type=str | None,
            default=None,
            help="Bundle of another training whose adapter and propagation a new training begins with.",
        )
        parser.add_argument("--dry_step", type=bool, default=True, help="Show before a training what a step will cost.")
        parser.add_argument(
            "--minutes",
            type=float | None,
            default=None,
            help="End a training within so many minutes, its validations included; a shorter training ends by itself.",
        )
        parser.add_argument(
            "--validate_first",
            type=bool,
            default=True,
            help="Validate before the first step, so that a training which makes things worse says so; it takes as "
            "long as every later validation.",
        )
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)
        if isinstance(self.model_class, type) and issubclass(self.model_class, ExemplarSegmenter):
            parser.set_defaults({"model.inference.pixel_mm": None, "model.inference.channels": None})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments. Lightning's own method warns if a program gives the arguments, as the demo does."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Do nothing. Lightning would let the checkpoint change the config; our config is what the user wrote."""

    def before_instantiate_classes(self) -> None:
        """Set the values that the config leaves open: folder, precision, checkpoint.

        Raises:
            ValueError: If a setting cannot work, the checkpoint cannot be read, a new training would overwrite an old
                training, or another process writes into the run's folder.
        """
        given_settings = list(read_settings(self.arguments))
        check_seed(given_settings, self.settings["seed_everything"])
        check_groups(given_settings, self._parser(self.subcommand).groups or {})
        plain = self.plain_config()
        inference = self.settings["model"].get("inference")
        if inference is not None:
            for key, value in (("pixel_mm", pixel_mm_of_data(plain)), ("channels", channels_of_data(plain))):
                if inference[key] is None:
                    inference[key] = plain["model"]["inference"][key] = value
        check_scales(plain)
        trainer = self.settings["trainer"]
        check_strategy(trainer["strategy"], trainer["devices"])
        check_accelerator(trainer["accelerator"])
        if trainer["default_root_dir"] is None:
            trainer["default_root_dir"] = str(Path("runs") / self._name() / trial_of_agent())
        if trainer["precision"] is None:
            trainer["precision"] = choose_precision(trainer["accelerator"])
        check_precision(str(trainer["precision"]), trainer["accelerator"])
        if first_rank():
            self.held.enter_context(locked(self.folder))
        given = self.settings["ckpt_path"]
        if self.settings["checkpoints"]["every_n_steps"] < 1:
            raise ValueError(
                f"checkpoints.every_n_steps={self.settings['checkpoints']['every_n_steps']}: choose 1 or more"
            )
        path = checkpoint_path(given, self.checkpoints, new=self.subcommand == "fit")
        self.ckpt_path = None if path is None else str(path)
        if self.subcommand == "fit":
            self.settings["ckpt_path"] = None  # config.yaml describes the whole run, not its second half
        if path is not None:
            checkpoint = read_training(path)
            self.resumed = {"step": checkpoint.get("global_step"), **checkpoint.get(RECORD, {})}
            if self.subcommand == "fit":
                self.settings["checkpoints"]["monitor"] = deciding_figure(
                    self.settings["checkpoints"]["monitor"], self.resumed.get("provenance") or {}
                )
                if path.parent.resolve() != self.checkpoints.resolve() and first_rank():
                    check_new_folder(self.folder, self.checkpoints)
                self.resumed_run = compared_run(f"ckpt_path={path}", self.resumed, self.plain_config())
        elif self.subcommand == "fit" and given is None and first_rank():
            check_new_folder(self.folder, self.checkpoints)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Return the trainer of the config, with our loggers, callbacks and checkpoint files."""
        check_patch_edge(self._get(self.config_init, "model"), self._get(self.config_init, "data"))
        given = self._get(self.config_init, "trainer")
        plugins = given["plugins"] or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), SafeCheckpointIO(self.checkpoints)]
        kwargs["logger"] = self._loggers(given["logger"])
        if self._validates_first(given):
            kwargs["num_sanity_val_steps"] = -1  # all of the validation, and its random draws are undone
        self.trainer_defaults["callbacks"] = self._callbacks(given["enable_checkpointing"] is not False)
        trainer = super().instantiate_trainer(**kwargs)
        LateLoggers(trainer)
        self.rank_watch.start(trainer)
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "ckpt_path": self.ckpt_path}

    def _run_subcommand(self, subcommand: str) -> None:
        if isinstance(self.model, ExemplarSegmenter):
            if (bundle := self.settings["start_from"]) is not None:
                self._start_from(bundle, self.model)
            self.model.step_0 = dict(self.resumed.get("step_0", {}))
            self.model.validated = recorded_figures(self.resumed.get("validation", {}))

        def frees(error: BaseException) -> str:
            return what_frees_memory(error, self.plain_config(), subcommand)

        with ctrl_c_ends(lambda: how_to_go_on(self.trainer)), memory_cure(frees):
            super()._run_subcommand(subcommand)
            Tracker.of(self.trainer).finish()

    def _start_from(self, bundle: str, model: ExemplarSegmenter) -> None:
        """Load the weights of the bundle that `start_from` names, and print which settings differ."""
        parts = model.backbone, model.adapter, model.propagation
        sees = model.inference.pixel_mm, model.inference.channels
        for sentence in start_from(bundle, self.plain_config()["model"], *parts, *sees):
            rank_zero_info(sentence)
        if len(model.companions):
            rank_zero_info(f"start_from={bundle}: companions begin as they were made")

    def after_fit(self) -> None:
        """Write the bundle of the best checkpoint, and give the checkpoint to loggers that keep artifacts."""
        tracker = Tracker.of(self.trainer)
        best = self.checkpoints / "best.ckpt"
        checkpoint = read_training(best) if best.is_file() else None
        validated = any(name.startswith("val/") for name in self.trainer.callback_metrics)
        delivered = what_is_delivered(checkpoint, validated, bool(self.trainer.checkpoint_callbacks))
        if isinstance(self.model, ExemplarSegmenter) and self.trainer.is_global_zero:
            validation: dict[str, Any] = {}
            if checkpoint is not None:
                self.model.load_state_dict(checkpoint["state_dict"], strict=False)
                validation = checkpoint.get(RECORD, {}).get("validation", {})
            self.model.validated = recorded_figures(validation)
            self.model.provenance = {**self.model.provenance, "delivered": delivered}
            for prefix in self.model.propagations:
                for sentence in self.model.record(prefix).get("made_worse", []):
                    rank_zero_warn(f"{self.folder / 'bundle'} is worse than what the training began with: {sentence}")
            settings = BundleSettings(**self.settings["bundle"].as_dict())
            normalisation = getattr(self.datamodule, "normalisation_of_images", lambda: None)()  # others may lack it
            model = self.plain_config()["model"]
            export_bundles(self.model, self.folder, model, validation, settings, normalisation)
            say(self.trainer, f"bundle: {self.folder / 'bundle'}")
        rank_zero_info(delivered)
        if self.tracking.artifact:
            record_model(tracker, best, self.model, self.settings["start_from"])

    def before_test(self) -> None:
        """Give the test the calibration of the checkpoint's bundle, for the confidence of every candidate."""
        for prefix, validation in self.resumed.get("validation", {}).items():
            record = ValidationRecord(**validation)
            if record.peaks:
                getattr(self.model, "calibrations", {})[prefix] = Calibration.fit(record.peaks, record.hits)

    @property
    def settings(self) -> Any:
        """Parsed settings of the command."""
        return self.config[self.subcommand]

    @property
    def tracking(self) -> TrackingSettings:
        """What loggers record of the run."""
        return TrackingSettings(**self.settings["tracking"].as_dict())

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.settings["trainer"]["default_root_dir"])

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.folder / "checkpoints"

    def plain_config(self) -> dict[str, Any]:
        """Return the settings of the command as plain values."""
        plain: dict[str, Any] = yaml.safe_load(self._parser(self.subcommand).dump(self.settings, skip_unset=False))
        return plain

    def _name(self) -> str:
        files = [Path(file.absolute).stem for file in self.settings["config"] or []]
        return files[0] if files else "run"

    def _loggers(self, given: Logger | list[Logger] | bool | None) -> list[Logger] | bool:
        if given is False:
            return False
        resume_step = self.resumed.get("step", 0) if self.subcommand == "fit" else None
        tracking = self.tracking
        if given not in (None, True):  # loggers of the user, beside metrics.csv
            tracking.wandb = "disabled"
        others = given if isinstance(given, list) else [given] if isinstance(given, Logger) else []
        return make_loggers(
            self.folder,
            tracking,
            run_id=self.resumed.get("run_id"),
            resume_step=resume_step,
            job=str(self.subcommand),
            others=others,
        )

    def _callbacks(self, checkpointing: bool) -> list[Callback]:
        seed = self.settings["seed_everything"]
        record = RunRecord(self.plain_config(), seed, self.resumed_run, self.resumed.get("provenance"))
        callbacks = [self.rank_watch, CheckProgress(), ResumePoint(), record]
        callbacks += training_callbacks(bool(self.settings["dry_step"]), int(seed), self.tracking.scans)
        if (minutes := self.settings["minutes"]) is not None:
            callbacks.append(TimeLimit(minutes))
        if checkpointing:
            kept = self.settings["checkpoints"]
            check_mode(kept["monitor"], kept["mode"])
            callbacks.append(BestCheckpoint(self.checkpoints, kept["monitor"], kept["mode"]))
            callbacks.append(LastCheckpoint(self.checkpoints, kept["every_n_steps"]))
        return callbacks

    def _validates_first(self, trainer: Any) -> bool:
        """Return whether a new training is validated before its first step.

        It is, if it is validated later as well and the config does not forbid it.
        """
        wanted = self.settings["validate_first"] if self.subcommand == "fit" else False
        if not wanted or self.ckpt_path is not None or not isinstance(self.model, ExemplarSegmenter):
            return False
        epochs, every = trainer["max_epochs"], trainer["check_val_every_n_epoch"]
        never = epochs is not None and every is not None and 0 <= epochs < every
        return not (never or trainer["num_sanity_val_steps"])


def quieten() -> None:
    """Hide warnings and tips of Lightning that need no action."""
    warnings.filterwarnings("ignore", message="Checkpoint directory .* is not empty|The number of training batches")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message="You have overridden `.*` in `LightningModule`")  # for all data
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")  # frozen parts are, on purpose
    for name in ("", ".utilities.rank_zero", ".trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch{name}").addFilter(_needs_action)


def _needs_action(record: logging.LogRecord) -> bool:
    """Tell whether a message of Lightning needs an action: no advertisement, and no default that MOIS never uses."""
    return not any(words in record.getMessage() for words in ("Tip: For seamless", "`weights_only` was not set"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line. A mistake in it or in the data ends in one line; MOIS_TRACEBACK=1 shows the traceback."""
    arguments = with_shipped_configs(sys.argv[1:] if arguments is None else arguments)
    if list(arguments[:1]) == ["--version"]:
        sys.stdout.write(f"mois {code_version()}\n")
        return
    quieten()
    with ctrl_c_ends(), command_line(arguments):
        MoisCLI(arguments)
