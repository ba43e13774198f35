"""Whether `adapters` and `datamodules` are ours, or packages of another project that have the same names."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

OURS = ("adapters", "datamodules")


def refuse_foreign_packages(names: tuple[str, ...] = OURS) -> None:
    """Find our packages without importing them.

    Args:
        names: Top-level packages that lie beside `mois`.

    Raises:
        ValueError: If a package is missing, or another one of that name is found first; the line says where it lies.
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
