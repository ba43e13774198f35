"""Logger for W&B. A slow or missing server does not stop the run, and names stay out of the record if asked for."""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from mois.tracking.names import Names
from mois.tracking.settings import TrackingSettings
from mois.tracking.wandb_server import (
    SERVER_TIMEOUT_S,
    choose,
    first_line,
    forget_unknown_mode,
    trial_of_agent,
    wandb_server,
    why_unreachable,
)

FINISH_TIMEOUT_S = 30.0
"""Seconds to wait for uploads to W&B at the end of a run."""


class CarefulWandbLogger(WandbLogger):
    """Logger of Lightning for W&B that never raises an error, waits long or asks the user.

    Args:
        folder: Folder of the run.
        settings: What W&B records.
        run_id: Id at W&B of the run that goes on; None makes a new id.
        server_timeout_s: Seconds that the server has to answer.
        names: Pseudonyms, if names are hashed.
        job: The command, such as "fit": the type of the job at W&B.

    Attributes:
        run_id: Id of the run at W&B. Checkpoints hold it, so that a resumed run goes on as the same run at W&B.
    """

    def __init__(
        self,
        folder: Path,
        settings: TrackingSettings,
        run_id: str | None = None,
        server_timeout_s: float = SERVER_TIMEOUT_S,
        names: Names | None = None,
        job: str = "",
    ) -> None:
        self.names = names or Names()
        self.run_id = run_id or trial_of_agent() or secrets.token_hex(4)
        self._setting = settings.wandb
        self._server_timeout_s = server_timeout_s
        super().__init__(
            name=settings.name or folder.resolve().name,
            save_dir=str(folder),
            id=self.run_id,
            project=os.environ.get("WANDB_PROJECT", settings.project),
            tags=settings.tags,
            group=settings.experiment or folder.resolve().name,
            job_type=job or None,
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
        given = dict(params) if isinstance(params, Mapping) else vars(params)
        settings = json.loads(json.dumps(self.names.settings(given), default=str))
        self._guard(lambda wandb_run: wandb_run.config.update(settings, allow_val_change=True))

    @rank_zero_only
    def log_table(self, *args: Any, **kwargs: Any) -> None:
        """Record a table. W&B refuses columns of mixed types; that does not stop the run."""
        self._guard(lambda _: super(CarefulWandbLogger, self).log_table(*args, **kwargs))

    @rank_zero_only
    def record(self, make: Callable[[], Mapping[str, Any]], step: int) -> None:
        """Log what a function makes, such as pictures, at a step of the training."""
        self._guard(lambda wandb_run: wandb_run.log({**make(), "trainer/global_step": step}))

    @rank_zero_only
    def log_artifact(
        self, name: str, path: Path, kind: str, origins: Mapping[str, str], facts: Mapping[str, Any]
    ) -> None:
        """Record a file or a folder as a versioned artifact, with what it was made from.

        Args:
            name: Name of the artifact.
            path: The file, or the folder.
            kind: Type of the artifact, such as "model".
            origins: Type to name of what it was made from, such as the data. Online, they become its inputs at W&B.
            facts: Plain values to keep with the artifact.
        """
        import wandb

        def record(wandb_run: Any) -> None:
            if not wandb_run.offline:  # W&B cannot link inputs offline
                for kind_of_origin, origin in origins.items():
                    _use(wandb_run, kind_of_origin, origin)
            artifact = wandb.Artifact(name, type=kind, metadata={**facts, "made_from": dict(origins)})
            artifact.add_dir(str(path)) if path.is_dir() else artifact.add_file(str(path))
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
        settings = self._settings(server)
        for key in ("name", "group"):
            self._wandb_init[key] = self.names.text(self._wandb_init[key])
        self._wandb_init["tags"] = [self.names.text(tag) for tag in self._wandb_init["tags"] or ()]
        # W&B writes the folder of the run into a log file beside its record
        logging.getLogger("wandb").setLevel(logging.WARNING if self.names.hashed else logging.DEBUG)
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
        plain = (
            "" if self.names.hashed else " (names of scans and paths are in it; tracking.names=hashed leaves them out)"
        )
        rank_zero_info(f"W&B: recorded offline; upload with: wandb sync {Path(run.dir).parent}{plain}")
        return run

    def _settings(self, server: str) -> Any:
        """Return the settings of W&B. With hashed names, W&B adds no host, program, command line or folder."""
        import wandb

        without_machine: dict[str, Any] = {
            "x_disable_meta": True,
            "x_disable_machine_info": True,
            "x_save_requirements": False,
            "host": "hidden",
            "program": "mois",
            "disable_code": True,
            "save_code": False,
        }
        return wandb.Settings(
            base_url=server,
            console="off",
            disable_git=True,  # the commit is in the run's provenance
            silent=True,
            init_timeout=self._server_timeout_s,
            login_timeout=self._server_timeout_s,
            finish_timeout=FINISH_TIMEOUT_S,
            reinit="finish_previous",
            **(without_machine if self.names.hashed else {}),
        )


def _use(wandb_run: Any, kind: str, name: str) -> None:
    """Make an artifact an input of a run at W&B. One that W&B does not have yet is made there, without files."""
    import wandb

    try:
        wandb_run.use_artifact(f"{name}:latest")
    except Exception:  # W&B raises several types for an artifact that does not exist
        wandb_run.use_artifact(wandb.Artifact(name, type=kind))
