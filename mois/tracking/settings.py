"""What W&B and other loggers record of a run: the settings under `tracking`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mois.errors import check_choices


@dataclass
class TrackingSettings:
    """What W&B records, beside the files in the run's folder.

    Attributes:
        wandb: "auto", "offline" or "disabled". "auto" records online with WANDB_API_KEY, or with WANDB_MODE=online and
            the key of `wandb login`, if the server accepts the key; else offline.
        project: Project at W&B; WANDB_PROJECT overrides it.
        name: Name shown at W&B; by default the name of the run's folder.
        tags: Tags at W&B.
        artifact: Whether the bundle and the best checkpoint become artifacts at W&B when a training ends. With hashed
            names the checkpoint stays in the run's folder.
        names: "plain" or "hashed". With "hashed", pseudonyms stand for the names of scans and patients and for paths in
            all that W&B, TensorBoard and MLflow record. By default, names are hashed where a run is online.
        experiment: Name of the group of this run at W&B; by default the name of the run's folder.
        scans: Number of validation scans that are shown as pictures, the same ones at every validation.
    """

    wandb: Literal["auto", "offline", "disabled"] = "auto"
    project: str = "mois"
    name: str | None = None
    tags: list[str] = field(default_factory=list)
    artifact: bool = True
    names: Literal["plain", "hashed"] | None = None
    experiment: str | None = None
    scans: int = 2

    def __post_init__(self) -> None:
        """Refuse a number of scans below 0, and words that are none of the choices."""
        check_choices(self, "tracking")
        if self.scans < 0:
            raise ValueError(f"tracking.scans={self.scans} must be 0 or more.")
