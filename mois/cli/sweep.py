"""`mois sweep`."""

from __future__ import annotations

from pathlib import Path


def sweep(file: Path, out: Path | None = None, trials: int | None = None, seed: int = 0) -> None:
    """Try settings of a training, and say which did best.

    `wandb agent` takes the same file. A sweep that was stopped goes on where it was, with the same command: a trial
    that was under way goes on from its last checkpoint. Needs the extra `sweep` (optuna).

    Args:
        file: File of the sweep, such as configs/sweeps/learning_rate.yaml, or the name of a shipped one; the word after
            `mois sweep`.
        out: Folder of the trials; by default runs/NAME, by the name of the file.
        trials: Number of trials in all; by default `run_cap` in the file.
        seed: Seed of the choices.

    Raises:
        ValueError: If the file is no sweep, optuna is missing, or the folder holds another sweep.
    """
    from mois.cli.sweep_file import SweepFile
    from mois.cli.sweep_trials import SweepTrials
    from mois.files.folder_lock import locked

    plan = SweepFile.read(_file_of(file))
    out = Path("runs") / file.stem if out is None else out
    with locked(out):
        SweepTrials.open(plan, out, seed).run(plan.trials(trials))


def _file_of(given: Path) -> Path:
    """Return the file of a sweep, or the shipped one of this name. A path elsewhere is no name.

    Raises:
        ValueError: If there is neither.
    """
    from mois.cli.shipped_configs import config_names, find_config

    names = [name for name in config_names() if name.startswith("sweeps/")]
    if given.is_file():
        return given
    if given.parent.as_posix() in (".", "sweeps", "configs/sweeps") and f"sweeps/{given.stem}" in names:
        return find_config(f"sweeps/{given.stem}")
    shipped = ", ".join(name.removeprefix("sweeps/") for name in names)
    raise ValueError(
        f"{given}: there is no such file; give the file of a sweep, or the name of a shipped one: {shipped}."
    )
