"""The configs that travel with the package: `--config NAME` finds them in a checkout and in a wheel."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from mois.files.text import read_text

SHIPPED = Path(__file__).parents[1] / "configs"
"""Folder of the shipped configs. In a checkout it is a link to the folder `configs` beside the packages."""

ENDING = ".yaml"

NAMES = {
    "": "compare_propagations demo ms_lesions neurofibroma pretrain_nano pretrain_nano_2 sam2 template zero_shot",
    "adapters/": (
        "beft boft bottleneck c3a deft delora dora fourierft frozen full glora hira hra ia3 ln_tuning loha lokr "
        "lora miss olora orthogonal osf peanut pissa psoft randlora road rslora shira supertuning waveft"
    ),
    "sweeps/": "learning_rate",
    "trainer/": "cpu ddp ddp_slurm gpu",
}
"""Shipped configs by their folder; pyproject.toml packs the same. In a checkout, a user's may lie beside them."""

OPTIONS = ("config", "c", "trainer")
"""Options of a training that take a file of settings, and therefore the name of a shipped config."""


def config_names() -> list[str]:
    """Return the names of all shipped configs: "demo", "trainer/ddp". A config that the user wrote beside is none."""
    names = [f"{folder}{name}" for folder, listed in NAMES.items() for name in listed.split()]
    return [name for name in names if (SHIPPED / f"{name}{ENDING}").is_file()]


def find_config(name: str) -> Path:
    """Return the file of a shipped config.

    Args:
        name: Its name: "demo", "demo.yaml" or "configs/demo.yaml".

    Raises:
        ValueError: If there is none of this name.
    """
    plain = name.removeprefix("./").removeprefix("configs/").removesuffix(ENDING)
    if plain not in config_names():
        raise ValueError(f"{name} is no shipped config; there is {', '.join(config_names())}.")
    return (SHIPPED / f"{plain}{ENDING}").resolve()


def describe_config(file: Path) -> str:
    """Return the first sentence of a config's comment, without the first line: the command that runs it."""
    comment = takewhile(lambda line: line.startswith("#"), read_text(file).splitlines())
    sentences = " ".join(line.removeprefix("#").strip() for line in list(comment)[1:])
    return re.split(r"(?<=\.)\s", sentences)[0]


def with_shipped_configs(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with the paths of shipped configs in the place of their names.

    A file of the user goes first: a name stays as it is if there is such a file.
    """
    return list(_with_paths(words))


def _with_paths(words: Sequence[str]) -> Iterator[str]:
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name.lstrip("-") not in OPTIONS or not name.startswith("-"):
            yield word
        elif equals:
            yield f"{name}={_path_of(value)}"
        else:
            yield word
            yield from (_path_of(value) for value in [next(rest, None)] if value is not None)


def config_path(name: str) -> Path:
    """Return a file of the user, or else the shipped config of this name, or else the path as it was given."""
    return Path(_path_of(name))


def _path_of(name: str) -> str:
    if Path(name).is_file():
        return name
    try:
        return str(find_config(name))
    except ValueError:
        return name
