"""`mois init`."""

from __future__ import annotations

from pathlib import Path

from mois.cli.messages import say


def init(root: Path, out: Path = Path("config.yaml"), channels: list[str] | None = None) -> None:
    """Plan a training on a dataset, and write it as a commented config.

    Args:
        root: Dataset in nnU-Net's raw layout; every scan of it is read.
        out: Config to write; a file that is there is not overwritten.
        channels: Up to three channels that are used together, as in `mois adapt`.

    Raises:
        ValueError: If the config is there already, or the dataset has a fault or lacks a channel; mois doctor lists all
            faults.
    """
    from mois.cli.planned import AS_ASKED, asked_channels, check_channels, plan_dataset
    from mois.files.atomic import write_text
    from mois.planning.config_text import config_text

    if out.exists():
        raise ValueError(f"out={out} is there already; choose another name, or remove it.")
    names = channels or ()
    check_channels(root, "--root", names, asked_channels(names))
    plan = plan_dataset(root, "--root").seeing(names, AS_ASKED)
    write_text(out, config_text(plan, out))
    for line in plan.summary():
        say(line)
    say(f"config: {out}; train with: mois fit --config {out}")
