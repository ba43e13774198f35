"""`mois folds`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mois.files.text import as_yaml

OWN = ("training", "out", "only", "checkpoint", "settings", "help")


def folds(
    training: Path,
    out: Path | None = None,
    only: list[int] | None = None,
    checkpoint: Literal["last", "best"] = "last",
    settings: list[str] | None = None,
) -> None:
    """Train and test every fold: figures of every scan by a model that never saw it.

    Folds that were stopped go on where they were, with the same command. Finished folds are skipped. `mois compare`
    takes the folder `out/test`.

    Args:
        training: Config of the training, a file or the name of a shipped config: `--config CONFIG`. A further
            `--config` goes over it, as in a training.
        out: Folder of the folds; by default runs/NAME_folds, by the name of the config.
        only: Folds to train now, such as [0,2]; by default all. The figures of all scans come once all folds are done.
        checkpoint: Which weights are tested. `best` was chosen on the very scans of the fold, so its figures are a
            little too good.
        settings: Further options of the training; `--trainer.max_epochs=10` may also stand by itself.

    Raises:
        ValueError: If the dataset has no folds, the config names the scans that train, or the folder holds folds of
            another config.
    """
    from mois.cli.evaluate import show_figures
    from mois.cli.fold_steps import FoldRuns
    from mois.cli.shipped_configs import config_path, with_shipped_configs
    from mois.files.folder_lock import locked

    training = config_path(str(training))
    out = Path("runs") / f"{training.stem}_folds" if out is None else out
    runs = FoldRuns.plan(training, out, with_shipped_configs(settings or []), checkpoint)
    chosen = runs.checked(only)
    with locked(out):
        runs.claim()
        for number in chosen:
            runs.run(number)
        metrics = runs.join()
    if metrics is not None:
        show_figures(metrics, out / "test")


def with_training_options(words: Sequence[str]) -> list[str]:
    """Return the words of `mois folds` with `--config C` as `--training C`, and options of a training as settings.

    Examples:
        >>> with_training_options(["--config", "a.yaml", "--trainer.max_epochs", "3", "--out=b"])
        ['--training=a.yaml', '--out=b', '--settings=["--trainer.max_epochs=3"]']
    """
    own: list[str] = []
    settings: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if word.startswith("--") and word != "--help":
            value = value if equals else next(rest, "")
            if name == "--config" and not any(one.startswith("--training=") for one in own):
                name = "--training"  # a further config is a setting, merged as in `mois fit`
            (own if name.removeprefix("--") in OWN else settings).append(f"{name}={value}")
        else:
            own.append(word)
    return [*own, f"--settings={as_yaml(settings)}"] if settings else own
