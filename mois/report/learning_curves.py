"""A picture of right, wrong and no_exemplars over the steps of a training."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from mois.errors import DataError
from mois.files.atomic import whole_file
from mois.files.text import read_table

WORDS = {"right": "tab:green", "wrong": "tab:red", "no_exemplars": "tab:gray"}


def plot_learning(run: Path, out: Path, window: int = 10) -> list[str]:
    """Draw right, wrong and no_exemplars over the steps of a training, a panel for each propagation.

    Args:
        run: Folder of a training, with metrics.csv.
        out: PNG to write.
        window: Number of logged batches in the running mean. Single values jump, because a batch holds few episodes.

    Returns:
        Prefixes of the propagations that were drawn; the prefix of the propagation of the model is "".

    Raises:
        ValueError: If the folder holds no training.
    """
    path = run / "metrics.csv"
    if not path.is_file():
        raise ValueError(f"run={run} holds no metrics.csv; give the folder of a training (trainer.default_root_dir).")
    table = _numbers(path)
    columns = [name for name in map(str, table) if name.startswith("train/") and name.endswith("right")]
    names = sorted(column.removeprefix("train/").removesuffix("right") for column in columns)
    if not names:
        if (run / "config.yaml").is_file():
            raise ValueError(
                f"{path} has no train/right: this training logged no step, since it is shorter than "
                "trainer.log_every_n_steps; lower that, or train longer."
            )
        raise ValueError(f"{path} has no train/right; give the folder of a training (mois fit).")
    figure, panels = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.2), sharey=True, squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        for word, colour in WORDS.items():
            if f"train/{name}{word}" not in table:
                raise DataError(f"{path} has no train/{name}{word}; give the folder of a training (mois fit).")
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


def _numbers(path: Path) -> pd.DataFrame:
    """Return a table of numbers, NaN where a cell is empty.

    Raises:
        DataError: If the file is no table, has no column step, or a cell is no number.
    """
    table = read_table(path)
    if "step" not in table.columns:
        raise DataError(f"{path} has no column step; give the folder of a training (mois fit).")
    columns: dict[str, list[float]] = {}
    for name in table.columns:
        try:
            columns[name] = [float(row[name] or "nan") for row in table.rows]
        except ValueError as error:
            raise DataError(f"{path}: column {name} holds what is no number ({error}); correct it.") from error
    return pd.DataFrame(columns)
