"""The record of a run in its folder, in its checkpoints and at its loggers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn

from mois.files.atomic import write_text
from mois.sharing.provenance import collect_provenance, data_arguments
from mois.sharing.remarks import trained_on_remarks
from mois.tracking.tracker import Tracker
from mois.tracking.wandb_logger import CarefulWandbLogger
from mois.training.checkpoints.checkpoint_content import RECORD, ValidationRecord
from mois.training.checkpoints.same_run import Resumed, check_same_data


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
        tracker.know(*_names_and_paths(datamodule))
        tracker.settings({**_place(self.config), **self.record})
        if trainer.is_global_zero:
            command = "" if stage == "fit" else f"_{getattr(stage, 'value', stage)}"  # Lightning's enum prints its name
            provenance.write(tracker.folder / f"provenance{command}.json")

    def _trained_on(self, datamodule: object, stage: str) -> list[str]:
        asked = getattr(datamodule, "trained_on", None)  # a datamodule of others may lack it
        return list(asked(data_arguments(self.training), stage)) if callable(asked) else []

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


def _names_and_paths(datamodule: object) -> tuple[list[str], list[Path]]:
    """Return the names of scans and patients of a datamodule, and its folder; a datamodule of others may lack them."""
    asked, root = getattr(datamodule, "scan_names", None), getattr(datamodule, "root", None)
    return list(asked()) if callable(asked) else [], [Path(root)] if root else []


def _place(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the experiment and the fold of a run: by them, runs are grouped."""
    folder = Path((config.get("trainer") or {}).get("default_root_dir") or ".")
    split = ((config.get("data") or {}).get("init_args") or {}).get("split") or {}
    experiment = (config.get("tracking") or {}).get("experiment") or folder.resolve().name
    return {"experiment": experiment, "fold": split.get("fold")}
