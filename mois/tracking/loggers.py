"""Loggers of a run: metrics.csv in its folder, and W&B. A slow or missing W&B server does not stop the run."""

from __future__ import annotations

import csv
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from mois.errors import DataError
from mois.files.atomic import naming, whole_file
from mois.files.text import read_table
from mois.tracking.wandb_server import (
    SERVER_TIMEOUT_S,
    choose,
    first_line,
    forget_unknown_mode,
    wandb_server,
    why_unreachable,
)

FINISH_TIMEOUT_S = 30.0
"""Seconds to wait for uploads to W&B at the end of a run."""


@dataclass
class TrackingSettings:
    """What W&B records, beside the files in the run's folder.

    Attributes:
        wandb: "auto", "offline" or "disabled". "auto" records online with WANDB_API_KEY, or with WANDB_MODE=online and
            the key of `wandb login`, if the server accepts the key; else offline.
        project: Project at W&B; WANDB_PROJECT overrides it.
        name: Name shown at W&B; by default the name of the run's folder.
        tags: Tags at W&B.
        artifact: Whether the best checkpoint becomes an artifact at W&B when a training ends.
    """

    wandb: Literal["auto", "offline", "disabled"] = "auto"
    project: str = "mois"
    name: str | None = None
    tags: list[str] = field(default_factory=list)
    artifact: bool = True


def make_loggers(
    folder: Path, settings: TrackingSettings, *, run_id: str | None = None, resume_step: int | None = None
) -> list[Logger]:
    """Return the loggers of a run: always `metrics.csv`, and W&B unless it is disabled.

    Args:
        folder: Folder of the run.
        settings: What W&B records.
        run_id: Id at W&B of the run that goes on, from its checkpoint; None starts a new run at W&B.
        resume_step: Step from which a training goes on. Later rows of metrics.csv are dropped, except rows of tests.
            0 drops all rows, None keeps all rows.
    """
    loggers: list[Logger] = [CsvLogger(folder, resume_step)]
    if choose(settings.wandb).mode != "disabled":
        loggers.append(CarefulWandbLogger(folder, settings, run_id))
    return loggers


class CsvLogger(Logger):
    """Writes figures as rows of `metrics.csv` in the run's folder. A resumed run goes on in the same file.

    Args:
        folder: Folder of the run.
        resume_step: See `make_loggers`.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        super().__init__()
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


class CarefulWandbLogger(WandbLogger):
    """Logger of Lightning for W&B that never raises an error, waits long or asks the user.

    Args:
        folder: Folder of the run.
        settings: What W&B records.
        run_id: Id at W&B of the run that goes on; None makes a new id.
        server_timeout_s: Seconds that the server has to answer.

    Attributes:
        run_id: Id of the run at W&B. Checkpoints hold it, so that a resumed run goes on as the same run at W&B.
    """

    def __init__(
        self,
        folder: Path,
        settings: TrackingSettings,
        run_id: str | None = None,
        server_timeout_s: float = SERVER_TIMEOUT_S,
    ) -> None:
        self.run_id = run_id or secrets.token_hex(4)
        self._setting = settings.wandb
        self._server_timeout_s = server_timeout_s
        super().__init__(
            name=settings.name or folder.resolve().name,
            save_dir=str(folder),
            id=self.run_id,
            project=os.environ.get("WANDB_PROJECT", settings.project),
            tags=settings.tags,
        )
        del self._wandb_init["anonymous"]  # W&B would warn at every start

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Run at W&B. It starts at its first use, on rank 0 only."""
        if self._experiment is None:
            self._experiment = self._start()
            self._guard(lambda wandb_run: wandb_run.define_metric("trainer/global_step"))
            self._guard(
                lambda wandb_run: wandb_run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
            )
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars, pictures or tables at a step of the training."""
        values = dict(metrics) if step is None else {**metrics, "trainer/global_step": step}
        self._guard(lambda wandb_run: wandb_run.log(values))

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Record settings. Values that JSON cannot hold become texts."""
        settings = json.loads(json.dumps(dict(params) if isinstance(params, Mapping) else vars(params), default=str))
        self._guard(lambda wandb_run: wandb_run.config.update(settings, allow_val_change=True))

    @rank_zero_only
    def log_table(self, *args: Any, **kwargs: Any) -> None:
        """Record a table. W&B refuses columns of mixed types; that does not stop the run."""
        self._guard(lambda _: super(CarefulWandbLogger, self).log_table(*args, **kwargs))

    @rank_zero_only
    def log_file(self, name: str, path: Path, kind: str) -> None:
        """Record a file as a versioned artifact."""
        import wandb

        def record(wandb_run: Any) -> None:
            artifact = wandb.Artifact(name, type=kind)
            artifact.add_file(str(path))
            wandb_run.log_artifact(artifact)

        self._guard(record)

    @rank_zero_only
    def finish(self) -> None:
        """End the run at W&B. Wait for uploads, at most `FINISH_TIMEOUT_S`."""
        if self._experiment is not None:
            self._guard(lambda wandb_run: wandb_run.finish())
            self._experiment = None

    def _guard(self, action: Callable[[Any], object]) -> None:
        try:
            action(self.experiment)
        except Exception as error:  # no error of W&B may stop the run
            import wandb

            rank_zero_warn(f"W&B stopped recording ({first_line(error)}); the run goes on, its folder holds everything")
            self._experiment = wandb.init(mode="disabled")

    def _start(self) -> Any:
        import wandb

        choice = choose(self._setting)
        forget_unknown_mode()
        server = wandb_server()
        settings = wandb.Settings(
            base_url=server,
            console="off",
            disable_git=True,  # the commit is in the run's provenance
            silent=True,
            init_timeout=self._server_timeout_s,
            login_timeout=self._server_timeout_s,
            finish_timeout=FINISH_TIMEOUT_S,
            reinit="finish_previous",
        )
        reason: str | None = choice.reason
        if choice.mode == "online":
            reason = why_unreachable(server, choice.key, self._server_timeout_s)
            try:
                if reason is None:
                    run = wandb.init(**self._wandb_init, mode="online", settings=settings)
                    rank_zero_info(f"W&B: {run.url}")
                    return run
            except Exception as error:  # the server refused or ended the connection
                reason = first_line(error)
                self.run_id = secrets.token_hex(4)  # W&B does not accept the id of a failed start again
        if reason:
            rank_zero_warn(f"W&B is recorded offline, because {reason}; upload it later with `wandb sync`")
        try:
            run = wandb.init(
                **{**self._wandb_init, "id": self.run_id, "resume": None}, mode="offline", settings=settings
            )
        except Exception as error:  # such as a folder that W&B cannot write to
            rank_zero_warn(f"W&B records nothing ({first_line(error)}); the run goes on, its folder holds everything")
            return wandb.init(mode="disabled")
        rank_zero_info(f"W&B: recorded offline; upload with: wandb sync {Path(run.dir).parent}")
        return run


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
