"""What a training learned, step by step, as a picture: whether its exemplars decide."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from mois.files import whole_file

WORDS = {"right": "tab:green", "wrong": "tab:red", "no_exemplars": "tab:gray"}


def plot_learning(run: Path, out: Path, window: int = 10) -> list[str]:
    """Draw right, wrong and no_exemplars over the steps of a training, a panel for each propagation.

    Args:
        run: Folder of a training, with metrics.csv.
        out: PNG to write.
        window: Logged batches of a running mean (a batch holds few episodes, so single values jump).

    Returns:
        The propagations drawn; the model's own is "".

    Raises:
        ValueError: If the folder holds no training.
    """
    path = run / "metrics.csv"
    if not path.is_file():
        raise ValueError(f"run={run} holds no metrics.csv; give the folder of a training (trainer.default_root_dir).")
    table = pd.read_csv(path)
    columns = [str(column) for column in table if str(column).startswith("train/") and str(column).endswith("right")]
    names = sorted(column.removeprefix("train/").removesuffix("right") for column in columns)
    if not names:
        raise ValueError(f"{path} has no train/right; give the folder of a training (train.py fit).")
    figure, panels = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.2), sharey=True, squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        for word, colour in WORDS.items():
            training = table[["step", f"train/{name}{word}"]].dropna()
            panel.plot(
                training["step"], training[f"train/{name}{word}"].rolling(window, min_periods=1).mean(), c=colour
            )
            panel.plot([], [], c=colour, label=word)
            column = f"val/{name}{word}"
            if column in table:
                volumes = table[["step", column]].dropna()
                panel.plot(volumes["step"], volumes[column], "o", c=colour, markeredgecolor="black")
        panel.set(title=name.rstrip("/") or "the model's own", xlabel="step", ylim=(0, 1))
    panels[0, 0].set_ylabel("Dice")
    panels[0, 0].legend(loc="upper left", fontsize="small")
    figure.tight_layout()
    with whole_file(out) as part:
        figure.savefig(part, format="png", dpi=110)
    plt.close(figure)
    return names
