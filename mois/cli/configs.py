"""`mois configs`."""

from __future__ import annotations

from pathlib import Path

from mois.cli.messages import say
from mois.cli.shipped_configs import config_names, describe_config, find_config


def configs(name: str | None = None, out: Path | None = None) -> None:
    """List the shipped configs, or write one of them into a file.

    Give its name to a training (`mois fit --config demo`), or write it into a file of yours and change that.

    Args:
        name: Name of a config, such as demo; without a name all are listed.
        out: File to write; by default the config is printed.

    Raises:
        ValueError: If there is no config of this name, or the file exists.
    """
    from mois.files.atomic import write_text
    from mois.files.text import read_text

    if name is None:
        if out is not None:
            raise ValueError(f"out={out} is for one config; name it: mois configs NAME --out {out}")
        width = max(len(one) for one in config_names())
        lines = [f"{one:{width}}  {describe_config(find_config(one))}" for one in config_names()]
        say("\n".join([*lines, "", "mois fit --config NAME; to change one: mois configs NAME --out mine.yaml"]))
        return
    text = read_text(find_config(name))
    if out is None:
        say(text.rstrip("\n"))
        return
    if out.exists():
        raise ValueError(f"out={out} exists already; choose another name, or move it away.")
    write_text(out, text)
    say(f"{out}: {name}; mois fit --config {out}")
