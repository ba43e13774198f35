"""Checks that `adapters` and `datamodules` are the packages of this project, not others with the same names."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

OURS = ("adapters", "datamodules")


def refuse_foreign_packages(names: tuple[str, ...] = OURS) -> None:
    """Refuse to go on if Python finds other packages under the names of ours. Nothing is imported.

    Args:
        names: Top-level packages that lie beside `mois`.

    Raises:
        ValueError: If a package is missing, or Python finds another package first; the message says where it lies.
    """
    home = Path(__file__).resolve().parents[2]
    for name in names:
        spec = find_spec(name)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or ())] if spec else []
        if home / name in places:
            continue
        found = f"found is {places[0]}" if places else "there is none"
        raise ValueError(
            f"the package {name} has to be the one beside mois, {home / name}, but {found}; uninstall the "
            f"other one, or put {home} first on PYTHONPATH"
        )
