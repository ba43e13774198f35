"""How W&B, TensorBoard and MLflow take pictures, tables and artifacts. All three get the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from mois.tracking.pictures import MaskedPicture, Pixels, sheet
from mois.tracking.wandb_logger import CarefulWandbLogger


@dataclass(frozen=True)
class Table:
    """A table whose cells are numbers, texts, or small pictures.

    Attributes:
        columns: Names of the columns.
        rows: A cell for each column; a picture is (H, W, 3) uint8.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def pictures(self) -> list[Pixels]:
        """Return all pictures, in the order of the rows."""
        return [cell for row in self.rows for cell in row if isinstance(cell, np.ndarray)]

    def numbered(self) -> list[list[Any]]:
        """Return the rows with the number of each picture on the sheet, from 1, in place of the picture."""
        number = 0
        rows: list[list[Any]] = []
        for row in self.rows:
            cells = []
            for cell in row:
                number += isinstance(cell, np.ndarray)
                cells.append(number if isinstance(cell, np.ndarray) else cell)
            rows.append(cells)
        return rows


@dataclass(frozen=True)
class Artifact:
    """A file or folder that a run made, and what it was made from.

    Attributes:
        name: Name of the artifact.
        path: The file or the folder.
        kind: Type of the artifact, such as "model".
        origins: Type to name of what it was made from: the data, and the bundle that the training began with.
        facts: Plain values to keep with it.
    """

    name: str
    path: Path
    kind: str
    origins: Mapping[str, str]
    facts: Mapping[str, Any]


class Recorder(Protocol):
    """What a logger can take besides scalars and settings."""

    def picture(self, name: str, pixels: Pixels, step: int, caption: str) -> None:
        """Record a picture."""

    def masks(self, name: str, picture: MaskedPicture, step: int, caption: str) -> None:
        """Record a picture with masks of classes."""

    def table(self, name: str, table: Table, step: int) -> None:
        """Record a table."""

    def artifact(self, artifact: Artifact) -> None:
        """Record a file or a folder."""


class OfWandb:
    """Records at W&B: masks can be switched on and off there, and tables show their pictures."""

    def __init__(self, logger: WandbLogger) -> None:
        self.logger = logger

    def picture(self, name: str, pixels: Pixels, step: int, caption: str) -> None:
        """Record a picture with its caption."""
        import wandb

        self._log(lambda: {name: wandb.Image(pixels, caption=caption or None)}, step)

    def masks(self, name: str, picture: MaskedPicture, step: int, caption: str) -> None:
        """Record a slice with its masks of classes."""
        import wandb

        labels = {0: "background", **picture.classes}
        masks = {key: {"mask_data": mask, "class_labels": labels} for key, mask in picture.masks.items()}
        self._log(lambda: {name: wandb.Image(picture.pixels, masks=masks, caption=caption or None)}, step)

    def table(self, name: str, table: Table, step: int) -> None:
        """Record a table; its pictures stand in their cells."""
        import wandb

        def made() -> dict[str, Any]:
            rows: list[Any] = [
                [wandb.Image(cell) if isinstance(cell, np.ndarray) else cell for cell in row] for row in table.rows
            ]
            return {name: wandb.Table(columns=list(table.columns), data=rows)}

        self._log(made, step)

    def artifact(self, artifact: Artifact) -> None:
        """Record a versioned artifact."""
        if isinstance(self.logger, CarefulWandbLogger):
            self.logger.log_artifact(artifact.name, artifact.path, artifact.kind, artifact.origins, artifact.facts)

    def _log(self, make: Any, step: int) -> None:
        if isinstance(self.logger, CarefulWandbLogger):
            self.logger.record(make, step)
        else:
            self.logger.log_metrics(make(), step)


class OfTensorBoard:
    """Records in TensorBoard: masks beside their slice, tables as text with a sheet of their pictures."""

    def __init__(self, logger: TensorBoardLogger) -> None:
        self.logger = logger

    def picture(self, name: str, pixels: Pixels, step: int, caption: str) -> None:
        """Record a picture."""
        self.logger.experiment.add_image(name, pixels, step, dataformats="HWC")
        if caption:
            self.logger.experiment.add_text(f"{name}/caption", caption, step)

    def masks(self, name: str, picture: MaskedPicture, step: int, caption: str) -> None:
        """Record a slice beside its masks."""
        self.picture(name, picture.side_by_side(), step, caption)

    def table(self, name: str, table: Table, step: int) -> None:
        """Record a table as text, and its pictures on a sheet."""
        lines = [table.columns, ["---"] * len(table.columns), *table.numbered()]
        text = "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)
        self.logger.experiment.add_text(name, text, step)
        if pictures := table.pictures():
            self.picture(f"{name}/pictures", sheet(pictures), step, "")

    def artifact(self, artifact: Artifact) -> None:
        """Record what the artifact is; TensorBoard keeps no files."""
        text = f"{artifact.kind} {artifact.name}, made from {dict(artifact.origins)}"
        self.logger.experiment.add_text(f"artifacts/{artifact.name}", text)


class OfMLflow:
    """Records at MLflow: masks beside their slice, tables as MLflow's own tables with a sheet of their pictures."""

    def __init__(self, logger: MLFlowLogger) -> None:
        self.logger = logger

    def picture(self, name: str, pixels: Pixels, step: int, caption: str) -> None:
        """Record a picture. MLflow has no captions."""
        self.logger.experiment.log_image(self.logger.run_id, pixels, key=name, step=step, synchronous=True)

    def masks(self, name: str, picture: MaskedPicture, step: int, caption: str) -> None:
        """Record a slice beside its masks."""
        self.picture(name, picture.side_by_side(), step, caption)

    def table(self, name: str, table: Table, step: int) -> None:
        """Record a table, and its pictures on a sheet."""
        columns = {column: list(cells) for column, *cells in zip(table.columns, *table.numbered(), strict=True)}
        self.logger.experiment.log_table(self.logger.run_id, columns, f"tables/{name}_{step:06d}.json")
        if pictures := table.pictures():
            self.picture(f"{name}/pictures", sheet(pictures), step, "")

    def artifact(self, artifact: Artifact) -> None:
        """Record the file or the folder, and as tags what it was made from."""
        client, run_id = self.logger.experiment, self.logger.run_id
        log = client.log_artifacts if artifact.path.is_dir() else client.log_artifact
        log(run_id, str(artifact.path), artifact.name)
        for kind, origin in artifact.origins.items():
            client.set_tag(run_id, f"{artifact.name}.made_from.{kind}", origin)


def recorder_of(logger: Logger) -> Recorder | None:
    """Return how a logger takes pictures, tables and artifacts; None for a logger that takes scalars alone."""
    if isinstance(logger, WandbLogger):
        return OfWandb(logger)
    if isinstance(logger, TensorBoardLogger):
        return OfTensorBoard(logger)
    return OfMLflow(logger) if isinstance(logger, MLFlowLogger) else None
