"""Checkpoints: read without running code, written whole or not at all, and gone on from exactly."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_warn

from mois.backbones.checkpoint_files import cut_short
from mois.errors import DataError
from mois.files.atomic import whole_file, write_text
from mois.machine.interrupts import HOW_TO_GO_ON
from mois.sharing.provenance import collect_provenance
from mois.sharing.remarks import trained_on_remarks
from mois.tracking.loggers import CarefulWandbLogger
from mois.tracking.tracker import Tracker
from mois.training.checkpoint_content import RECORD, ValidationRecord, checked_training
from mois.training.same_run import Resumed, check_same_data

NAMED = ("best", "last", "previous", "start")
"""Names that `--ckpt_path` accepts.

previous.ckpt is the last.ckpt before the present file. start.ckpt is the model before the first step.
"""

_EPOCHS = "epoch_progress"
_BATCHES = "epoch_loop.batch_progress"
_STEPS = "epoch_loop.automatic_optimization.optim_progress"
_VALIDATION = "epoch_loop.val_loop.batch_progress"
_LOGGED = "epoch_loop.state_dict"


def read_checkpoint(path: Path) -> Any:
    """Return the content of a checkpoint. No code in the file runs.

    Raises:
        ValueError: If the file does not exist, is damaged, or holds other objects than tensors and plain values.
    """
    if not path.is_file():
        raise ValueError(f"ckpt_path={path}: there is no such file; {_others(path)}")
    previous = path.with_name("previous.ckpt")
    cure = "go on from the one before it with --ckpt_path previous"
    cure = cure if path.name == "last.ckpt" and previous.is_file() else "give another one"
    try:
        with path.open("rb") as file, ZipFile(file) as archive:
            if any(member.compress_type != ZIP_STORED for member in archive.infolist()):  # torch never compresses them
                raise DataError(f"ckpt_path={path}: it is packed, which train.py never does; {cure}")
            damaged = archive.testzip()  # torch.load does not check the check sums
        if damaged is not None:
            raise DataError(f"ckpt_path={path}: it is damaged (the check sum of {damaged} is wrong); {cure}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        reason = "holds more than tensors and plain values, and loading it could run foreign code"
        raise DataError(f"ckpt_path={path}: it {reason}; give a checkpoint that train.py wrote") from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # any error of a damaged pickle; none of its code ran
        how = "cut short" if cut_short(path) else "damaged or no checkpoint"
        raise DataError(f"ckpt_path={path}: it is {how}; {cure}") from error


def read_training(path: Path) -> dict[str, Any]:
    """Return the checked content of a training's checkpoint (`checked_training`).

    Raises:
        ValueError: See `read_checkpoint`.
        DataError: If it is no checkpoint of a training.
    """
    return checked_training(read_checkpoint(path), f"ckpt_path={path}")


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, and always reads them with `weights_only=True`.

    A checkpoint is written under a temporary name in the same folder, and then renamed.

    Args:
        folder: Folder of the run's checkpoints. Only files in it, and files that this object wrote, are removed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint. If the process is killed, the file at `path` is the old or the new checkpoint.

        The old last.ckpt is kept as previous.ckpt.

        Raises:
            OSError: If it cannot be written, for example on a full disk. The old checkpoint stays.
        """
        del storage_options  # Lightning passes None
        target = Path(path)
        try:
            with whole_file(target) as part:
                with part.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                if target.name == "last.ckpt" and target.is_file():
                    give_second_name(target, target.with_name("previous.ckpt"))
            self._written.add(_place(target))
        except (OSError, RuntimeError) as error:
            if (cause := _write_error(error)) is None:
                raise
            stands = "the one before it stands" if target.is_file() else "there is none yet"
            reason = f"{cause.strerror}, so that no checkpoint was written; {stands}"
            raise OSError(cause.errno, f"{reason}; make room, then go on with --ckpt_path last", str(target)) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Return the checkpoint of a training (`read_training`), on the CPU."""
        del map_location, weights_only
        return read_training(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint of this run, and warn for any other path. Lightning would also remove folders."""
        place = _place(Path(path))
        own = place in self._written or (self._folder is not None and place.parent == _place(self._folder / "_").parent)
        if own and place.suffix == ".ckpt" and place.is_file() and not place.is_symlink():
            place.unlink()
        else:
            rank_zero_warn(f"{path} is no checkpoint of this run and is not removed")


def _place(path: Path) -> Path:
    """Return the path of a file with the links of its folders resolved. A link in the place of the file stays."""
    return path.parent.resolve() / path.name


def _others(path: Path) -> str:
    """Return the end of a message on a missing checkpoint: which checkpoints exist."""
    if str(path) == path.stem:  # a word is meant as one of our names
        names = f"{', '.join(NAMED[:-1])} or {NAMED[-1]}"
        return f"give {names} (of trainer.default_root_dir/checkpoints), or the path of a checkpoint"
    there = sorted(file.stem for file in path.parent.glob("*.ckpt"))
    if not there:
        return f"{path.parent} holds no checkpoint, train first (fit)"
    taken = [f"--ckpt_path {name if name in NAMED else path.with_name(f'{name}.ckpt')}" for name in there]
    return f"there is {', '.join(taken)}"


def give_second_name(file: Path, name: Path) -> None:
    """Give a file a second name. The file keeps its first name at every moment."""
    with whole_file(name) as part:
        part.unlink()
        try:
            part.hardlink_to(file)
        except OSError:  # the file system may have no links
            shutil.copyfile(file, part)


def _write_error(error: BaseException | None) -> OSError | None:
    """Return the system's error behind an error of `torch.save`; None if there is none."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, from which an interrupted training goes on.

    It is written every N steps and at the end. If a validation follows the step, it is written after the validation: a
    training that goes on from it would otherwise skip the validation.

    Args:
        folder: Folder of the run's checkpoints.
        every_n_steps: Steps between two writes.
    """

    def __init__(self, folder: Path, every_n_steps: int) -> None:
        self.folder = folder
        super().__init__(
            dirpath=str(folder),
            filename=self.CHECKPOINT_NAME_LAST,
            every_n_train_steps=every_n_steps,
            save_top_k=1,
            enable_version_counter=False,
        )

    @property
    def state_key(self) -> str:
        """The same for all settings, because a run has one such callback."""
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: last.ckpt belongs to the folder alone."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the state is empty."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after every N steps within an epoch."""
        if may_save(trainer):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation within an epoch, if the step is a multiple of N."""
        within = trainer.state.fn == "fit" and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if within and trainer.global_step % self._every_n_train_steps == 0:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of an epoch, if the step is a multiple of N."""
        if trainer.global_step % self._every_n_train_steps == 0:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of the training."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save, unless this step was saved already. All ranks have to call this method."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))


def may_save(trainer: Trainer) -> bool:
    """Return whether a training can go on exactly from a checkpoint of this step: no validation follows the step.

    A validation by the clock (trainer.val_check_interval as a time) does not count: ranks do not share a clock.
    """
    loop = trainer.fit_loop
    if loop.epoch_loop.batch_progress.is_last_batch:
        return False
    by_the_clock = getattr(trainer, "_val_check_time_interval", None) is not None
    return by_the_clock or not loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]


def how_to_go_on(trainer: Trainer) -> str:
    """Return the end of a message: how to go on after an interruption."""
    if hint := os.environ.get(HOW_TO_GO_ON):
        return hint
    for callback in trainer.checkpoint_callbacks if trainer.state.fn == "fit" else ():
        if isinstance(callback, LastCheckpoint) and (callback.folder / "last.ckpt").is_file():
            return f"go on with --ckpt_path last ({callback.folder / 'last.ckpt'})"
    return "nothing was saved yet: start it again" if trainer.state.fn == "fit" else "start it again"


class ResumePoint(Callback):
    """Lets a training go on exactly where its checkpoint was written, also after the last step.

    Lightning counts each stage of batches, epochs and validations. From the differences it guesses when the checkpoint
    was written. Some guesses are wrong: then steps count twice, an epoch begins again, or a validation is left out. Our
    checkpoints are written after a step, and after the validation that follows the step. So only two places are
    possible, within an epoch or between two epochs, and the counters are set to one of them.
    """

    def __init__(self) -> None:
        self._between_epochs = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Correct the counters before Lightning reads them."""
        if trainer.state.fn == "fit":
            self._between_epochs = settle(checkpoint["loops"]["fit_loop"])
        else:  # figures of a test are logged at the step of its checkpoint
            trainer.fit_loop.epoch_loop._batches_that_stepped = checkpoint["global_step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the next epoch from its first batch: the epoch before it is complete."""
        if self._between_epochs:
            trainer.fit_loop._restarting = trainer.fit_loop.epoch_loop.restarting = False
            self._between_epochs = False


def settle(loop: dict[str, Any]) -> bool:
    """Set the counters of a fit loop to one of the two places. Return whether it is between epochs.

    Args:
        loop: State of the fit loop in a checkpoint; it is changed. It counts epochs and batches that are ready,
            started, processed and completed.
    """
    epochs, batches = loop[_EPOCHS], loop[_BATCHES]
    steps = loop[_STEPS]["optimizer"]["step"]["total"]["completed"]
    begun, within, handed_out = (
        counts["started"] for counts in (epochs["total"], batches["current"], batches["total"])
    )
    between = bool(batches["is_last_batch"]) or not within
    over = begun if between else max(0, begun - 1)
    for counts in epochs.values():
        _set(counts, ready=begun, started=begun, processed=over, completed=over)
    if between:
        _set(batches["total"], ready=handed_out, started=handed_out, processed=handed_out, completed=handed_out)
        _set(batches["current"], ready=0, started=0, processed=0, completed=0)
    else:  # at the end of a batch that is not yet counted as completed
        for counts, count in ((batches["total"], handed_out), (batches["current"], within)):
            _set(counts, ready=count, started=count, processed=count, completed=count - 1)
    batches["is_last_batch"] = False
    loop[_LOGGED]["_batches_that_stepped"] = steps if between else steps - 1
    for counts in (loop[_VALIDATION]["total"], loop[_VALIDATION]["current"]):
        _set(counts, ready=0, started=0, processed=0, completed=0)
    loop[_VALIDATION]["is_last_batch"] = False
    return between


def _set(counts: dict[str, int], **values: int) -> None:
    counts.update({name: value for name, value in values.items() if name in counts})


class RunRecord(Callback):
    """Writes the provenance of a run: beside its results, into every checkpoint, and to the loggers.

    Args:
        config: All settings of the run.
        seed: Seed of the run.
        resumed: The checkpoint from which the training goes on; None for a new training.
        training: Provenance in the checkpoint of a test or a validation.
    """

    def __init__(
        self,
        config: dict[str, Any],
        seed: int | None,
        resumed: Resumed | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.seed = seed
        self.resumed = resumed
        self.training = training or {}  # provenance of the checkpoint
        self.record: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Collect the provenance, after the datamodule knows its files. One rank reads all files."""
        datamodule = getattr(trainer, "datamodule", None) if trainer.is_global_zero else None
        provenance = collect_provenance(pl_module, datamodule, self.config, self.seed)
        provenance = replace(provenance, data=trainer.strategy.broadcast(provenance.data))
        if stage == "fit" and self.resumed is not None:
            check_same_data(self.resumed.provenance, provenance.data, self.resumed.name)
            provenance = replace(provenance, resumed=self.resumed.record(provenance))
        if stage in ("validate", "test"):
            provenance = replace(
                provenance, trained_on=self._trained_on(datamodule, str(getattr(stage, "value", stage)))
            )
            for sentence in trained_on_remarks(provenance.trained_on):
                rank_zero_warn(sentence)
        self.record = provenance.as_dict()
        model: Any = pl_module
        model.provenance = self.record
        tracker = Tracker.of(trainer)
        tracker.settings(self.record)
        if trainer.is_global_zero:
            command = "" if stage == "fit" else f"_{getattr(stage, 'value', stage)}"  # Lightning's enum prints its name
            provenance.write(tracker.folder / f"provenance{command}.json")

    def _trained_on(self, datamodule: object, stage: str) -> list[str]:
        asked = getattr(datamodule, "trained_on", None)  # a datamodule of others may lack it
        given = ((self.training.get("config") or {}).get("data") or {}).get("init_args") or {}
        return list(asked(given, stage)) if callable(asked) else []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the earlier values of changed settings at the top of config.yaml."""
        path = Path(trainer.default_root_dir) / "config.yaml"
        lines = [
            f"# until step {part['step']}: {name}: {json.dumps(values[0])}\n"
            for part in self.record.get("resumed", [])
            for name, values in part["changed"].items()
        ]
        if lines and trainer.is_global_zero and path.is_file():
            write_text(path, "".join(lines) + path.read_text(encoding="utf-8"))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add provenance, id of the run at W&B, and results of the latest validation to a checkpoint."""
        logged = {f"val/{name}": value for name, value in getattr(pl_module, "step_0", {}).items()}
        logged = trainer.callback_metrics if trainer.global_step else logged  # Lightning forgets the figures of step 0
        run_ids = [logger.run_id for logger in trainer.loggers if isinstance(logger, CarefulWandbLogger)]
        checkpoint[RECORD] = {
            "provenance": self.record,
            "run_id": run_ids[0] if run_ids else None,
            "step_0": dict(getattr(pl_module, "step_0", {})),
            "validation": {
                prefix: ValidationRecord.of(reports, logged, prefix).as_dict()
                for prefix, reports in getattr(pl_module, "reports", {}).items()
                if reports
            },
        }
