"""Gives figures, settings, pictures, tables and artifacts of a run to its folder and to every logger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only
from PIL import Image
from torch import Tensor

from mois.files.atomic import write_text
from mois.files.csv_tables import csv_text
from mois.tracking.names import Names
from mois.tracking.pictures import MaskedPicture, Pixels, sheet
from mois.tracking.recorders import Artifact, Recorder, Table, recorder_of
from mois.tracking.wandb_logger import CarefulWandbLogger


class Tracker:
    """Writes pictures and tables into the run's folder, and gives them to the loggers that can take them.

    The files in the run's folder have the real names of scans. Loggers get pseudonyms if names are hashed.

    Args:
        folder: Folder of the run.
        loggers: Loggers of the run.
    """

    def __init__(self, folder: Path, loggers: Sequence[Logger] = ()) -> None:
        self.folder = folder
        self.loggers = loggers
        of_loggers = (getattr(one, "names", None) for one in loggers)
        self.names = next((names for names in of_loggers if isinstance(names, Names)), Names())

    @staticmethod
    def of(trainer: Trainer) -> Tracker:
        """Return the tracker of a Lightning run."""
        return Tracker(Path(trainer.default_root_dir), trainer.loggers)

    @rank_zero_only
    def know(self, names: Iterable[str], paths: Iterable[str | Path]) -> None:
        """Learn names of scans and patients, and paths: loggers get pseudonyms for them if names are hashed."""
        self.names.add(names, [*paths, self.folder])
        self.names.write(self.folder / "names.csv")

    @rank_zero_only
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record figures by name."""
        for logger in self.loggers:
            logger.log_metrics(dict(values), step)

    @rank_zero_only
    def settings(self, values: Mapping[str, Any]) -> None:
        """Record settings and provenance."""
        for logger in self.loggers:
            logger.log_hyperparams(self.names.settings(dict(values)))

    @rank_zero_only
    def picture(self, name: str, picture: Path | Tensor, step: int, caption: str = "") -> None:
        """Record a picture as `pictures/NAME_STEP.png`.

        Args:
            name: Name such as "val/overlay"; its folders become folders of the file.
            picture: A PNG file, or (H, W, 3) uint8.
            step: Step of the training.
            caption: Text below the picture.

        Raises:
            ValueError: If a tensor has another shape or type.
        """
        if isinstance(picture, Tensor):
            if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                raise ValueError(f"picture {name} is {picture.dtype} {tuple(picture.shape)}; give uint8 (H, W, 3)")
            pixels = picture.cpu().numpy()
            self._save(pixels, "pictures", name, step)
        else:
            path = self._path("pictures", name, step)
            path.write_bytes(picture.read_bytes())
            pixels = np.asarray(Image.open(path).convert("RGB"))
        for recorder in self._recorders():
            recorder.picture(name, pixels, step, self.names.text(caption))

    @rank_zero_only
    def masks(self, name: str, picture: MaskedPicture, step: int, caption: str = "") -> None:
        """Record a slice with masks of classes as `pictures/NAME_STEP.png`: the slice, then each mask over it."""
        self._save(picture.side_by_side(), "pictures", name, step)
        for recorder in self._recorders():
            recorder.masks(name, picture, step, self.names.text(caption))

    @rank_zero_only
    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Record a table as `tables/NAME_STEP.csv`.

        Cells that are pictures, (H, W, 3) uint8, stand on one sheet, `tables/NAME_STEP.png`. The CSV has their numbers
        on the sheet, in reading order from 1.
        """
        table = Table(columns, rows)
        path = self.folder / "tables" / f"{name}_{step:06d}.csv"
        write_text(path, csv_text(columns, table.numbered()))
        if pictures := table.pictures():
            self._save(sheet(pictures), "tables", name, step)
        told = Table(columns, [[self._told(cell) for cell in row] for row in rows])
        for recorder in self._recorders():
            recorder.table(name, told, step)

    @rank_zero_only
    def artifact(
        self,
        name: str,
        path: Path,
        kind: str = "result",
        origins: Mapping[str, str] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a file or a folder as an artifact, in loggers that keep artifacts.

        Args:
            name: Name of the artifact.
            path: The file, or the folder. Its content is recorded as it is.
            kind: Type of the artifact, such as "model".
            origins: Type to name of what it was made from.
            facts: Plain values to keep with it.
        """
        hidden = self.names.settings(dict(facts or {}))
        artifact = Artifact(self.names.text(name), path, kind, dict(origins or {}), hidden)
        for recorder in self._recorders():
            recorder.artifact(artifact)

    @rank_zero_only
    def finish(self) -> None:
        """Write which pseudonyms were used; end the loggers that have to end before the process."""
        self.names.write(self.folder / "names.csv")
        for logger in self.loggers:
            if isinstance(logger, CarefulWandbLogger):
                logger.finish()

    def _recorders(self) -> list[Recorder]:
        return [recorder for logger in self.loggers if (recorder := recorder_of(logger)) is not None]

    def _told(self, cell: Any) -> Any:
        return self.names.text(cell) if isinstance(cell, str) else cell

    def _path(self, folder: str, name: str, step: int) -> Path:
        path = self.folder / folder / f"{name}_{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _save(self, pixels: Pixels, folder: str, name: str, step: int) -> None:
        Image.fromarray(pixels).save(self._path(folder, name, step))
