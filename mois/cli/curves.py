"""`mois curves`."""

from __future__ import annotations

from pathlib import Path

from mois.cli.messages import say


def curves(run: Path, out: Path | None = None, window: int = 10) -> None:
    """Draw right, wrong and no_exemplars over the steps of a training.

    Args:
        run: Folder of the training.
        out: PNG to write, by default curves.png in that folder. Lines are training episodes, dots whole volumes.
        window: Logged batches of the running mean.
    """
    from mois.report.learning_curves import plot_learning

    out = run / "curves.png" if out is None else out
    plot_learning(run, out, window)
    say(f"{out}")
