"""Gives pictures, tables and files of a run to every logger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_only
from PIL import Image
from torch import Tensor

from mois.files.atomic import write_text
from mois.files.csv_tables import csv_text
from mois.tracking.loggers import CarefulWandbLogger


class Tracker:
    """Writes pictures, tables and files into the run's folder, and gives them to the loggers that can take them.

    Args:
        folder: Folder of the run.
        loggers: Loggers of the run.
    """

    def __init__(self, folder: Path, loggers: Sequence[Logger] = ()) -> None:
        self.folder = folder
        self.loggers = loggers

    @staticmethod
    def of(trainer: Trainer) -> Tracker:
        """Return the tracker of a Lightning run."""
        return Tracker(Path(trainer.default_root_dir), trainer.loggers)

    @rank_zero_only
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record figures by name."""
        for logger in self.loggers:
            logger.log_metrics(dict(values), step)

    @rank_zero_only
    def settings(self, values: Mapping[str, Any]) -> None:
        """Record settings and provenance."""
        for logger in self.loggers:
            logger.log_hyperparams(dict(values))

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
        path = self.folder / "pictures" / f"{name}_{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(picture, Tensor):
            if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                raise ValueError(f"picture {name} is {picture.dtype} {tuple(picture.shape)}; give uint8 (H, W, 3)")
            Image.fromarray(picture.cpu().numpy()).save(path)
        else:
            path.write_bytes(picture.read_bytes())
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(name, [str(path)], step, caption=[caption])
            elif isinstance(logger, TensorBoardLogger):
                pixels = torch.frombuffer(bytearray(Image.open(path).convert("RGB").tobytes()), dtype=torch.uint8)
                height, width = Image.open(path).size[::-1]
                logger.experiment.add_image(name, pixels.reshape(height, width, 3), step, dataformats="HWC")

    @rank_zero_only
    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Record a table as `tables/NAME_STEP.csv`."""
        path = self.folder / "tables" / f"{name}_{step:06d}.csv"
        write_text(path, csv_text(columns, rows))
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_table(name, columns=list(columns), data=[list(row) for row in rows], step=step)

    @rank_zero_only
    def file(self, name: str, path: Path, kind: str = "result") -> None:
        """Record a file of the run's folder as an artifact called `name`, in loggers that keep artifacts."""
        for logger in self.loggers:
            if isinstance(logger, CarefulWandbLogger):
                logger.log_file(name, path, kind)

    @rank_zero_only
    def finish(self) -> None:
        """End the loggers that have to end before the process."""
        for logger in self.loggers:
            if isinstance(logger, CarefulWandbLogger):
                logger.finish()
