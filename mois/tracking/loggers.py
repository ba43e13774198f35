"""Loggers of a run: metrics.csv in its folder, and W&B. Which of them get pseudonyms instead of names."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger as LightningCsvLogger
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_only

from mois.errors import DataError
from mois.files.atomic import naming, whole_file
from mois.files.text import read_table
from mois.tracking.names import Names
from mois.tracking.settings import TrackingSettings
from mois.tracking.wandb_logger import CarefulWandbLogger
from mois.tracking.wandb_server import choose

NAMELESS = {"mlflow.user": "hidden", "mlflow.source.name": "mois"}
"""Tags of MLflow that would otherwise name the user of this machine and the path of the program."""


def make_loggers(
    folder: Path,
    settings: TrackingSettings,
    *,
    run_id: str | None = None,
    resume_step: int | None = None,
    job: str = "",
    others: Sequence[Logger] = (),
) -> list[Logger]:
    """Return the loggers of a run: always `metrics.csv`, and W&B unless it is disabled or there are other loggers.

    Args:
        folder: Folder of the run.
        settings: What W&B records.
        run_id: Id at W&B of the run that goes on, from its checkpoint; None starts a new run at W&B.
        resume_step: Step from which a training goes on. Later rows of metrics.csv are dropped, except rows of tests.
            0 drops all rows, None keeps all rows.
        job: The command, such as "fit": the type of the job at W&B.
        others: Loggers of the user, which record instead of W&B.
    """
    hashed = hashes_names(settings, others)
    names = Names(hashed)
    for logger in others if hashed else ():
        if isinstance(logger, MLFlowLogger):
            logger.tags = {**(logger.tags or {}), **NAMELESS}
    loggers: list[Logger] = [CsvLogger(folder, resume_step, names)]
    if not others and choose(settings.wandb).mode != "disabled":
        loggers.append(CarefulWandbLogger(folder, settings, run_id, names=names, job=job))
    return [*loggers, *others]


def hashes_names(settings: TrackingSettings, others: Sequence[Logger] = ()) -> bool:
    """Return whether loggers get pseudonyms: if the user says so, else where a logger may send its records away.

    Args:
        settings: What the user says.
        others: Loggers of the user, which record instead of W&B.
    """
    if settings.names is not None:
        return settings.names == "hashed"
    return any(map(_sends, others)) if others else choose(settings.wandb).mode == "online"


def _sends(logger: Logger) -> bool:
    """Return whether a logger may record on another machine. Of unknown loggers it is expected."""
    if isinstance(logger, MLFlowLogger):
        return "://" in str(logger._tracking_uri) and not str(logger._tracking_uri).startswith(("file:", "sqlite:"))
    return not isinstance(logger, (TensorBoardLogger, LightningCsvLogger, CsvLogger))


class CsvLogger(Logger):
    """Writes figures as rows of `metrics.csv` in the run's folder. A resumed run goes on in the same file.

    Args:
        folder: Folder of the run.
        resume_step: See `make_loggers`.
        names: Pseudonyms for the other loggers of the run.
    """

    def __init__(self, folder: Path, resume_step: int | None = None, names: Names | None = None) -> None:
        super().__init__()
        self.names = names or Names()
        self._folder = folder
        self._resume_step = resume_step
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """Empty: Lightning makes no subfolder for this logger."""
        return ""

    @property
    def version(self) -> str:
        """Empty: Lightning makes no subfolder for this logger."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of the run."""
        return str(self._folder)

    @property
    def path(self) -> Path:
        """File of the rows."""
        return self._folder / "metrics.csv"

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row of figures."""
        row: dict[str, Any] = {"step": step or 0, **{name: float(value) for name, value in metrics.items()}}
        if self._columns is None:
            self._columns = self._rewrite(self._old_rows(), ["step"])
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns = self._rewrite(_read_rows(self.path), self._columns + sorted(new))
        with naming(self.path), self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's folder holds config and provenance."""

    def _old_rows(self) -> list[dict[str, str]]:
        rows = _read_rows(self.path)
        if self._resume_step is None:
            return rows
        kept = [row for row in rows if _step(self.path, row) < self._resume_step]
        if self._resume_step:  # steps that are trained again are logged again; tests are not
            kept += [row for row in rows if _step(self.path, row) >= self._resume_step and _is_of_test(row)]
        return kept

    def _rewrite(self, rows: list[dict[str, str]], columns: list[str]) -> list[str]:
        columns = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
        with whole_file(self.path) as part, part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        return columns


class LateLoggers(Callback):
    """Gives a trainer its loggers after its data are checked: a refused run leaves no log.

    Lightning starts its loggers before the datamodule's `setup`. A logger that it gets later starts at its first use.
    This callback is the first, because other callbacks may ask for loggers in their own `setup`.

    Args:
        trainer: The trainer; its loggers are taken away until `setup`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._loggers, trainer.loggers = trainer.loggers, []
        trainer.callbacks.insert(0, self)  # type: ignore[attr-defined]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the loggers back. Lightning calls this after the datamodule's `setup`."""
        trainer.loggers = self._loggers


def _is_of_test(row: Mapping[str, str]) -> bool:
    return any(value for name, value in row.items() if name.startswith("test/"))


def _step(path: Path, row: Mapping[str, str]) -> int:
    text = row.get("step") or ""
    if not (text.isascii() and text.isdigit()):
        raise DataError(f"{path}: a line's step is {text[:40]!r}; correct the line, or move the file away.")
    return int(text[:18])


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    return read_table(path).rows if path.stat().st_size else []
