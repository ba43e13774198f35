"""Which checkpoint a command goes on from, and whether its settings are those of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info

from mois.training.checkpoints.best_checkpoint import OLD_SCORE, SCORE
from mois.training.checkpoints.checkpoint_io import NAMED
from mois.training.checkpoints.same_run import Resumed, changed_settings


def checkpoint_path(given: str | None, checkpoints: Path, *, new: bool) -> Path | None:
    """Return the checkpoint that a value of `ckpt_path` names; None starts a new training.

    Args:
        given: The value: a name such as "last", or a path.
        checkpoints: Folder of the run's checkpoints.
        new: Whether "last" without a last.ckpt means best.ckpt or a new training, as in `fit`.

    Raises:
        ValueError: If the value is empty.
    """
    if given == "":
        raise ValueError("ckpt_path names nothing; give last, best or a path, or leave it out")
    path = checkpoints / f"{given}.ckpt" if given in NAMED else Path(given) if given else None
    if given == "last" and new and path is not None and not path.exists():
        best = checkpoints / "best.ckpt"
        path = best if best.is_file() else None
        rank_zero_info(f"there is no last.ckpt yet: the training {f'goes on from {best}' if path else 'starts anew'}")
    return path


def deciding_figure(given: str, provenance: Mapping[str, Any]) -> str:
    """Return the figure that decides in a continued training which checkpoint is best.

    It is the figure of the config. But `val/right` goes on to decide in a training that began with it, as all trainings
    of earlier versions did, if the config has the default of today.

    Args:
        given: `checkpoints.monitor` in the config.
        provenance: Provenance in the checkpoint.
    """
    before = ((provenance.get("config") or {}).get("checkpoints") or {}).get("monitor")
    return OLD_SCORE if given == SCORE and before == OLD_SCORE else given


def compared_run(name: str, resumed: Mapping[str, Any], config: Mapping[str, Any]) -> Resumed:
    """Return what a training goes on from, and print which settings differ from those of the checkpoint.

    Args:
        name: Name of the checkpoint in messages.
        resumed: Record in the checkpoint: its step and its provenance.
        config: Settings now.

    Raises:
        ValueError: If a setting differs that changes what is learned.
    """
    step, provenance = resumed["step"], resumed.get("provenance") or {}
    if not provenance.get("config"):
        rank_zero_info(f"{name}: unverified: it does not say with which settings it was trained")
        return Resumed(name, step, provenance, {})
    changed = changed_settings(provenance["config"], config, name, provenance.get("files"))
    for key, (before, now) in changed.items():
        if key.partition(".")[0] not in ("config", "ckpt_path"):
            rank_zero_info(f"from step {step} on: {key}={now}, which was {before}")
    return Resumed(name, step, provenance, changed)
