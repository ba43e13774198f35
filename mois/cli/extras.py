"""Extras of the package: what some commands need beside it."""

from __future__ import annotations

from importlib.util import find_spec


def need_extra(extra: str, *packages: str) -> None:
    """Refuse to go on without the packages of an extra.

    Raises:
        ValueError: If a package is not installed; the message says how to install it.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ValueError(f"{package} is not installed; install the extra: pip install 'mois[{extra}]'.")
