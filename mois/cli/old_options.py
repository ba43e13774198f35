"""Options that have another name now: the old name works, and one line says the new name.

Here are the options of `mois evaluate`, and what it shares with train.py (`old_training_options.py`).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml

EVALUATE: dict[str, str] = {
    "prompted": "reader.prompted",
    "clicks": "reader.clicks",
    "noise_mm": "reader.noise_mm",
    "miss": "reader.miss",
    "masks": "reader.masks",
    "counts": "protocol.counts",
    "curve_clicks": "protocol.curve_clicks",
    "target_class": "protocol.target_class",
    "surface_mm": "protocol.surface_mm",
    "bins_ml": "protocol.bins_ml",
    "robustness": "output.robustness",
    "title": "output.title",
}
"""Options of `mois evaluate`: old name to new name."""

GROUPS: dict[str, str] = {"reader": "reader.strategy", "protocol": "protocol.rules"}
"""Options of `mois evaluate` that were one word and are groups now: a word given to them belongs to the new name."""

NewName = Callable[[str, Any], str]
"""Returns the current name of an option (without hyphens) that is given a value; the same name if it is current."""


def evaluate_option(name: str, value: Any) -> str:
    """Return the current name of an option of `mois evaluate`."""
    if name in GROUPS and isinstance(value, str) and re.fullmatch(r"\w+", value):
        return GROUPS[name]
    return EVALUATE.get(name, name)


def with_new_options(words: Sequence[str], new_name: NewName) -> Iterator[str]:
    """Yield the words of a command line with the current names of its options."""
    for place, word in enumerate(words):
        option = re.fullmatch(r"--([\w.]+)(\+?)(=.*)?", word, flags=re.DOTALL)
        if option is None:
            yield word
            continue
        name, plus, value = option.groups()
        given = value[1:] if value is not None else next(iter(words[place + 1 : place + 2]), "")
        new = new_name(name, given)
        if new != name:
            say_new_name(f"--{name}", f"--{new}")
        yield f"--{new}{plus}{value or ''}"


def with_new_evaluate_keys(text: str) -> str:
    """Return a config of `mois evaluate`, a YAML text, with the current names of its settings."""
    table = table_of(text)
    if all(evaluate_option(str(name), value) == name for name, value in table.items()):
        return text
    renamed: dict[str, Any] = {}
    for name, value in table.items():
        new = evaluate_option(name, value)
        group, _, field = new.rpartition(".")
        if new == name:
            old_groups = renamed.get(name)
            renamed[name] = {**old_groups, **value} if old_groups and isinstance(value, dict) else value
            continue
        say_new_name(name, new)
        renamed[group] = {**(renamed.get(group) or {}), field: value}
    return yaml.safe_dump(renamed, sort_keys=False, allow_unicode=True)


def table_of(text: str) -> dict[str, Any]:
    """Return the table in a YAML text; empty if it holds no table, which the parser refuses by itself."""
    try:
        table = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return table if isinstance(table, dict) else {}


def say_new_name(old: str, new: str) -> None:
    """Print one line with the current name of a setting, in the first process of several."""
    from mois.machine.processes import first_rank

    if first_rank():
        warnings.warn(f"{old} is now {new}", stacklevel=2)
