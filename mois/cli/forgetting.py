"""`mois forgetting`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def forgetting(
    bundles: list[str],
    data: list[str] | None = None,
    out: Path = Path("forgetting"),
    split: Literal["train", "val", "test", "all"] = "test",
    phantoms: int = 4,
    prompted: int = 5,
    seed: int = 0,
    device: str = "auto",
    trust: list[str] | None = None,
) -> None:
    """Measure each bundle on each type of lesions, to see what it forgot.

    The types are the classes of the datasets, and two types of phantoms that no pretraining has drawn. Each bundle
    works with its own pixel size. A measurement that was stopped goes on where it was, with the same command.

    Args:
        bundles: Folders of bundles, the oldest first: the others are compared with it; the words after
            `mois forgetting`. The word shipped stands for the model that ships with the package, with the pixel size
            of the first folder.
        data: Datasets with the types that were adapted to, separated by commas (A,B).
        out: Folder for forgetting.html, forgetting.csv and forgetting.json, and the results of each bundle on each
            dataset, as mois evaluate writes them.
        split: Which scans of the datasets are scored, as in mois evaluate.
        phantoms: Number of phantoms with types held back from pretraining; 0 for none.
        prompted: Number of lesions of each class that are clicked in a scan.
        seed: Seed of phantoms, clicks and bootstrap.
        device: Device such as cpu or cuda; auto takes an accelerator if there is one.
        trust: Modules of others whose classes the bundles may name, such as my_module.

    Raises:
        ValueError: If there is nothing to measure on, or a bundle or dataset cannot be used.
    """
    from rich.table import Table

    from mois.cli.forgetting_steps import Asked, measure
    from mois.cli.terminal import PlainConsole
    from mois.files.folder_lock import locked
    from mois.report.forgetting import MEASURED, forgetting_cells, table_rows, write_forgetting

    asked = Asked(bundles, [Path(one) for one in data or ()], out, split, phantoms, prompted, seed, device, trust or ())
    with locked(out):
        measured = measure(asked)
        cells = forgetting_cells(measured.reports, measured.bundles, measured.types, seed)
        page = write_forgetting(out, cells, measured.notes)
    console = PlainConsole()
    for figure, words in MEASURED.items():
        table = Table(title=f"{words} (in brackets: change from {measured.bundles[0]})")
        for number, column in enumerate(("type", *measured.bundles)):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in table_rows(cells, figure):
            table.add_row(*row)
        console.print(table)
    for note in measured.notes:
        console.print(note, soft_wrap=True)
    console.print(f"report: {page}", soft_wrap=True)
