"""Settings as the user wrote them, in a command line and its config files, before any parser reads them.

Messages on mistakes that the parser would not notice are here; `usage.py` explains what the parser refuses.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mois.errors import DataError

COMMAND_LINE = "the command line"
CONFIGS = ("config", "c")
"""Options that name a whole config; the keys in it have no prefix."""

MOST_SEED = 2**32 - 1
_ENDINGS = (".yaml", ".yml")
_DEEPEST_NESTING = 5


class Setting(NamedTuple):
    """One value that the user wrote.

    Attributes:
        key: Dotted, such as "model.adapter.init_args.rank" or "trainer.callbacks[0].class_path".
        value: As YAML reads it, of the command line the text itself; the DataError where `source` is no YAML.
        source: File that it stands in, or "the command line".
    """

    key: str
    value: Any
    source: str

    @property
    def place(self) -> str:
        """Where to look, for the end of a message."""
        return "" if self.source == COMMAND_LINE else f" ({self.source})"

    @property
    def plain(self) -> Any:
        """The value as YAML reads it, also that of the command line."""
        if self.source != COMMAND_LINE or not isinstance(self.value, str):
            return self.value
        try:
            return yaml.safe_load(self.value)
        except (yaml.YAMLError, ValueError):
            return self.value


class Unknown(NamedTuple):
    """A name that a class or a group of settings does not have.

    Attributes:
        name: As written.
        owner: What does not have it.
        known: What it has instead.
    """

    name: str
    owner: str
    known: list[str]


def read_settings(arguments: Sequence[str]) -> Iterator[Setting]:
    """Yield what a command line sets, in its order, including what stands in the files that it names."""
    for key, value in options(arguments):
        if value.endswith(_ENDINGS) or (key in CONFIGS and Path(value).is_file()):
            yield from _read_file(Path(value), "" if key in CONFIGS else key)
        else:
            yield Setting(key, value, COMMAND_LINE)


def options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the options of a command line without their hyphens, and their values."""
    for index, argument in enumerate(arguments):
        if argument.startswith("-"):
            key, equals, value = argument.lstrip("-").partition("=")
            yield key, value if equals else next(iter(arguments[index + 1 : index + 2]), "")


def check_settings(arguments: Sequence[str]) -> None:
    """Refuse what a parser would take without a word, or in words that name no file.

    Raises:
        DataError: If a file is no YAML in UTF-8, or a key stands twice in it.
        ValueError: If a config holds no settings, a seed is out of range, a value is null that cannot be, or a group of
            settings lacks what is set in it.
    """
    settings = list(read_settings(arguments))
    for setting in settings:
        if isinstance(setting.value, DataError):
            raise setting.value
        if setting.key == "" and not isinstance(setting.value, dict):
            there = "is empty" if setting.value is None else f"holds a {type(setting.value).__name__}"
            raise ValueError(f"config={setting.source} {there}; a config is a table of settings, `key: value`.")
    for setting in settings:
        name = setting.key.rpartition(".")[2]
        value = setting.plain
        if name in ("seed", "seed_everything") and type(value) is int and not 0 <= value <= MOST_SEED:
            raise ValueError(f"{setting.key}={value}{setting.place} is no seed; choose 0 to {MOST_SEED}.")
        if ".init_args." in setting.key:
            _check_init_arg(setting, settings)


def type_of(key: str, settings: Sequence[Setting]) -> Any:
    """Return the annotation of an argument of a class, an `Unknown`, or None where it cannot be found out.

    Args:
        key: Such as "data.init_args.mix.replay".
        settings: Among which its class is named.
    """
    owner, _, rest = key.rpartition(".init_args.")
    paths = [one.value for one in settings if one.key in (owner, f"{owner}.class_path") and isinstance(one.value, str)]
    kind = class_of(paths[-1]) if paths else None
    hints = _hints(kind) if kind is not None else None
    of = paths[-1] if paths else ""
    annotation: Any = None
    for name in rest.split("."):
        if hints is None or "[" in name:
            return None
        if name not in hints:
            return Unknown(name, of, list(hints))
        annotation = hints[name]
        inner = [one for one in (annotation, *typing.get_args(annotation)) if dataclasses.is_dataclass(one)]
        hints = _hints(inner[0]) if len(inner) == 1 else None
        of = f"{of}.{name}"
    return annotation


def class_of(class_path: str) -> type | None:
    """Return a class by its full import path; None where there is none, or only a short name is given."""
    module, _, name = class_path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name, None) if module else None
    except ImportError:
        return None
    return kind if isinstance(kind, type) else None


def _check_init_arg(setting: Setting, settings: Sequence[Setting]) -> None:
    annotation = type_of(setting.key, settings)
    if isinstance(annotation, Unknown):
        if "." in setting.key.rpartition(".init_args.")[2]:  # the parser does not look into groups of a class
            there = ", ".join(annotation.known)
            raise ValueError(f"{setting.key} is no setting of {annotation.owner}{setting.place}; there is {there}.")
    elif annotation not in (None, Any) and setting.plain is None and type(None) not in typing.get_args(annotation):
        what = getattr(annotation, "__name__", str(annotation)) if isinstance(annotation, type) else str(annotation)
        what = what.replace("typing.", "").replace("Literal[", "").rstrip("]").replace("'", "")
        raise ValueError(f"{setting.key}=null{setting.place} is not allowed; give {what}.")


def _hints(kind: Any) -> dict[str, Any] | None:
    """Return the annotations of what a class takes, by name; None where it takes whatever is given."""
    try:
        parameters = inspect.signature(kind).parameters
        hints = typing.get_type_hints(kind if dataclasses.is_dataclass(kind) else kind.__init__)
    except (NameError, TypeError, ValueError):
        return None
    if any(one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) for one in parameters.values()):
        return None
    return {name: hints.get(name, Any) for name in parameters}


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would drop the first value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name != "<<" and name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name} stands twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _read_file(file: Path, key: str, depth: int = 0) -> Iterator[Setting]:
    from mois.files.text import read_text

    try:
        text = read_text(file, plain=True)
        yield from _walk(yaml.load(text, _UniqueKeys), key, file, depth)
    except yaml.YAMLError as error:
        yield Setting(key, DataError(f"{file} is no YAML: {_explain_yaml(error)}"), str(file))
    except RecursionError:
        yield Setting(key, DataError(f"{file}: a value holds itself; write it out"), str(file))
    except DataError as error:
        yield Setting(key, error, str(file))
    except OSError:
        return


def _walk(value: Any, key: str, file: Path, depth: int) -> Iterator[Setting]:
    yield Setting(key, value, str(file))
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise DataError(f"{file}: key {json.dumps(name, default=str)} is no text; write a setting's name")
            yield from _walk(inner, f"{key}.{name}".lstrip("."), file, depth)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _walk(inner, f"{key}[{index}]", file, depth)
    elif isinstance(value, str) and value.endswith(_ENDINGS) and depth < _DEEPEST_NESTING:  # a file may name itself
        yield from _read_file(file.parent / value, key, depth + 1)


def _explain_yaml(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())
