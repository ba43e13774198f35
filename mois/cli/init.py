"""`mois init`."""

from __future__ import annotations

from pathlib import Path

from mois.cli.messages import say


def init(root: Path, out: Path = Path("config.yaml")) -> None:
    """Plan a training on a dataset, and write it as a commented config.

    Args:
        root: Dataset in nnU-Net's raw layout; every scan of it is read.
        out: Config to write; a file that is there is not overwritten.

    Raises:
        ValueError: If the config is there already, or the dataset has a fault; mois doctor lists all faults.
    """
    from mois.cli.planned import plan_dataset
    from mois.files.atomic import write_text
    from mois.planning.config_text import config_text

    if out.exists():
        raise ValueError(f"out={out} is there already; choose another name, or remove it.")
    plan = plan_dataset(root, "--root")
    write_text(out, config_text(plan, out))
    for line in plan.summary():
        say(line)
    say(f"config: {out}; train with: mois fit --config {out}")
