"""Checkpoints: who made them, written whole or not at all, and read without running code."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from mois.backbones.checkpoint_files import cut_short
from mois.errors import DataError
from mois.files.atomic import whole_file, write_text
from mois.machine.interrupts import HOW_TO_GO_ON
from mois.sharing.provenance import Provenance, collect_provenance
from mois.sharing.remarks import of_trained_on
from mois.tracking.loggers import CarefulWandbLogger
from mois.tracking.tracker import Tracker
from mois.training.checkpoint_content import RECORD, ValidationRecord, checked_training, score_of
from mois.training.same_run import check_same_data

NAMED = ("best", "last", "previous")
"""What `--ckpt_path` knows by name; previous.ckpt is the last.ckpt before the present one."""


def read_checkpoint(path: Path) -> Any:
    """Return what a checkpoint holds, without running any code that it may carry.

    Raises:
        ValueError: If there is no such file, it is damaged, or it holds more than tensors and plain values.
    """
    if not path.is_file():
        raise ValueError(f"ckpt_path={path}: there is no such file; {_others(path)}")
    previous = path.with_name("previous.ckpt")
    cure = "go on from the one before it with --ckpt_path previous"
    cure = cure if path.name == "last.ckpt" and previous.is_file() else "give another one"
    try:
        with path.open("rb") as file, ZipFile(file) as archive:
            if any(member.compress_type != ZIP_STORED for member in archive.infolist()):  # torch never packs them
                raise DataError(f"ckpt_path={path}: it is packed, which train.py never does; {cure}")
            damaged = archive.testzip()  # torch.load does not look at the check sums
        if damaged is not None:
            raise DataError(f"ckpt_path={path}: it is damaged (the check sum of {damaged} is wrong); {cure}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        reason = "holds more than tensors and plain values, and loading it could run foreign code"
        raise DataError(f"ckpt_path={path}: it {reason}; give a checkpoint that train.py wrote") from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # whatever a pickle that somebody made brings up: nothing of it was run
        how = "cut short" if cut_short(path) else "damaged or no checkpoint"
        raise DataError(f"ckpt_path={path}: it is {how}; {cure}") from error


def read_training(path: Path) -> dict[str, Any]:
    """Return the checkpoint of a training (`checked_training`); raises as `read_checkpoint` does, and for what is none.

    Raises:
        DataError: If it is of no training.
    """
    return checked_training(read_checkpoint(path), f"ckpt_path={path}")


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name in the same folder and renames; reads with `weights_only=True`, whatever is asked.

    Args:
        folder: Of the run's checkpoints; besides what was written here, only files in it are ever removed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; killed at any moment, the file at `path` is the old one or the new one.

        The last.ckpt that another one replaces is kept as previous.ckpt.

        Raises:
            OSError: If it cannot be written, most likely for want of room; the old one stands.
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
                    _keep(target, target.with_name("previous.ckpt"))
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
        """Remove a checkpoint of this run; anything else stays, whoever asks (Lightning would remove whole folders)."""
        place = _place(Path(path))
        own = place in self._written or (self._folder is not None and place.parent == _place(self._folder / "_").parent)
        if own and place.suffix == ".ckpt" and place.is_file() and not place.is_symlink():
            place.unlink()
        else:
            rank_zero_warn(f"{path} is no checkpoint of this run and is not removed")


def _place(path: Path) -> Path:
    """Return where a file lies, links in the folders before it followed, but not the file itself."""
    return path.parent.resolve() / path.name


def _others(path: Path) -> str:
    """Return, for the end of a message, which checkpoints there are instead of one that is missing."""
    if str(path) == path.stem:  # a word: it was meant for one of ours
        names = f"{', '.join(NAMED[:-1])} or {NAMED[-1]}"
        return f"give {names} (of trainer.default_root_dir/checkpoints), or the path of a checkpoint"
    there = sorted(file.stem for file in path.parent.glob("*.ckpt"))
    if not there:
        return f"{path.parent} holds no checkpoint, train first (fit)"
    taken = [f"--ckpt_path {name if name in NAMED else path.with_name(f'{name}.ckpt')}" for name in there]
    return f"there is {', '.join(taken)}"


def _keep(file: Path, name: Path) -> None:
    """Give a file a second name, so that it is there under its first one at every moment."""
    with whole_file(name) as part:
        part.unlink()
        try:
            part.hardlink_to(file)
        except OSError:  # some file systems have no links
            shutil.copyfile(file, part)


def _write_error(error: BaseException | None) -> OSError | None:
    """Return the system's error behind one of `torch.save`, which covers it with complaints about the file's end."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, the checkpoint with the best validation figure so far."""

    def __init__(self, folder: Path, monitor: str, mode: str = "max") -> None:
        super().__init__(
            dirpath=str(folder),
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    @property
    def state_key(self) -> str:
        """The same for all settings: there is one of it."""
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """Return the best score so far; no paths, which mean nothing in another folder."""
        return {"monitor": self.monitor, "best_model_score": self.best_model_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score over for the best.ckpt of this folder; without one, the best is found anew."""
        path = _own_path(self)
        score = score_of(state_dict, self.monitor)
        if score is not None and path.is_file():
            self.best_k_models = {str(path): score}
            self.best_model_path = self.kth_best_model_path = str(path)
            self.best_model_score = self.kth_value = self.current_score = score

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lay down where to save; without validation there is no best, and `last.ckpt` is what remains."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not trainer.enable_validation:
            self.save_top_k = 0

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if self.monitor not in monitor_candidates:
            there = ", ".join(sorted(name for name in monitor_candidates if name.startswith("val/"))) or "nothing"
            raise ValueError(f"checkpoints.monitor={self.monitor} is no figure of the validation; it logged {there}")
        super()._save_topk_checkpoint(trainer, monitor_candidates)


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, to go on from after an interruption: every so many steps, and at the end.

    Where a validation follows it is saved afterwards: who goes on from one saved before would never validate.
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
        """The same for all settings: there is one of it."""
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: last.ckpt is that of the folder, whatever stood there before."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing over."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every so many steps within an epoch."""
        if may_save(trainer):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation within an epoch, if it is its turn."""
        within = trainer.state.fn == "fit" and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if within and trainer.global_step % self._every_n_train_steps == 0:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of an epoch, if it is its turn."""
        if trainer.global_step % self._every_n_train_steps == 0:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the training."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save on all ranks together, unless this step was saved already."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))


def _own_path(callback: ModelCheckpoint) -> Path:
    """Return where a callback keeps its checkpoint, which always has the same name."""
    return Path(str(callback.dirpath)) / f"{callback.filename}{callback.FILE_EXTENSION}"


def may_save(trainer: Trainer) -> bool:
    """Tell whether a training goes on exactly from a checkpoint of the step that ends: no validation follows it.

    One that follows by the clock, which ranks do not share, counts as none.
    """
    loop = trainer.fit_loop
    if loop.epoch_loop.batch_progress.is_last_batch:
        return False
    by_the_clock = getattr(trainer, "_val_check_time_interval", None) is not None
    return by_the_clock or not loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]


def how_to_go_on(trainer: Trainer) -> str:
    """Return, for the end of a message, how to go on after an interruption."""
    if hint := os.environ.get(HOW_TO_GO_ON):
        return hint
    for callback in trainer.checkpoint_callbacks if trainer.state.fn == "fit" else ():
        if isinstance(callback, LastCheckpoint) and (callback.folder / "last.ckpt").is_file():
            return f"go on with --ckpt_path last ({callback.folder / 'last.ckpt'})"
    return "nothing was saved yet: start it again" if trainer.state.fn == "fit" else "start it again"


@dataclass(frozen=True)
class Resumed:
    """What a training goes on from.

    Attributes:
        name: Of the checkpoint.
        step: At which it was written.
        provenance: What it says of the training; empty where an older one says nothing.
        changed: Settings that are others now, with their values before and now.
    """

    name: str
    step: int
    provenance: dict[str, Any]
    changed: dict[str, list[Any]]

    def record(self, now: Provenance) -> list[dict[str, Any]]:
        """Return the parts that the training has been made in, with what changed between them."""
        then = {"code": self.provenance.get("code"), **self.provenance.get("packages", {})}
        made = {"code": now.code, **now.packages}
        other = {key: [then[key], made[key]] for key in made if then.get(key) not in (None, made[key])}
        before: list[dict[str, Any]] = list(self.provenance.get("resumed", []))
        return [*before, {"step": self.step, "from": self.name, "changed": {**self.changed, **other}}]


class RunRecord(Callback):
    """Writes down who makes this run's results: beside them, in every checkpoint, and at the loggers."""

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
        """Collect the provenance, once the datamodule knows its files; one rank reads them all for it."""
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
            for sentence in of_trained_on(provenance.trained_on):
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
        asked = getattr(datamodule, "trained_on", None)  # a datamodule of others may not say
        given = ((self.training.get("config") or {}).get("data") or {}).get("init_args") or {}
        return list(asked(given, stage)) if callable(asked) else []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say at the top of config.yaml which of its settings were others before the run was gone on with."""
        path = Path(trainer.default_root_dir) / "config.yaml"
        lines = [
            f"# until step {part['step']}: {name}: {json.dumps(values[0])}\n"
            for part in self.record.get("resumed", [])
            for name, values in part["changed"].items()
        ]
        if lines and trainer.is_global_zero and path.is_file():
            write_text(path, "".join(lines) + path.read_text(encoding="utf-8"))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add provenance, the W&B run that a resumed training has to go on in, and what the latest validation found."""
        run_ids = [logger.run_id for logger in trainer.loggers if isinstance(logger, CarefulWandbLogger)]
        checkpoint[RECORD] = {
            "provenance": self.record,
            "run_id": run_ids[0] if run_ids else None,
            "step_0": dict(getattr(pl_module, "step_0", {})),
            "validation": {
                prefix: ValidationRecord.of(reports, trainer.callback_metrics, prefix).as_dict()
                for prefix, reports in getattr(pl_module, "reports", {}).items()
                if reports
            },
        }
