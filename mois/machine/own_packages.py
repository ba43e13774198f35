"""Checks that `adapters` and `datamodules` are the packages of this project, not others with the same names.

The package registry has another project called `adapters`. Python imports the one that it finds first.
"""

from __future__ import annotations

import warnings
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

OURS = ("adapters", "datamodules")


def refuse_foreign_packages(names: tuple[str, ...] = OURS) -> None:
    """Refuse to go on if Python finds other packages under the names of ours. Nothing is imported.

    Args:
        names: Top-level packages that lie beside `mois`.

    Raises:
        ValueError: If a package is missing, Python finds another package first, or another project was installed over
            ours; the message says where it lies.
    """
    home = Path(__file__).resolve().parents[2]
    for name in names:
        spec = find_spec(name)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or ())] if spec else []
        if home / name not in places:
            found = f"found is {places[0]}" if places else "there is none"
            raise ValueError(
                f"the package {name} has to be the one beside mois, {home / name}, but {found}; uninstall the "
                f"other one, or put {home} first on PYTHONPATH"
            )
        if (other := _other_project(name)) is not None and other == home / name:
            raise ValueError(
                f"the project {name} of the package registry and mois were installed over each other in {other}; "
                "install mois again in an environment without that project"
            )


def warn_of_hidden_package(name: str) -> None:
    """Warn in one line if a package of ours hides an installed project of the same name.

    Args:
        name: One of `OURS`, which is being imported.
    """
    home = Path(__file__).resolve().parents[2]
    other = _other_project(name)
    if other is not None and other != home / name:
        warnings.warn(
            f"import {name} gives the package of mois, {home / name}; it hides the installed project {name} in {other}",
            stacklevel=3,
        )


def _other_project(name: str) -> Path | None:
    """Return the folder of the package of an installed project; None if no project has this name."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None
    return Path(str(found.locate_file(name))).resolve()
