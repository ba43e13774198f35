"""Settings as the user wrote them, on a command line and in its config files, before a parser reads them.

Here are messages on mistakes that the parser would not notice. `usage.py` explains mistakes that the parser refuses.
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
"""Options that name a whole config. The keys in a whole config have no prefix."""

MOST_SEED = 2**32 - 1
_ENDINGS = (".yaml", ".yml")
_DEEPEST_NESTING = 5


class Setting(NamedTuple):
    """One value that the user wrote.

    Attributes:
        key: Dotted key, such as "model.adapter.init_args.rank" or "trainer.callbacks[0].class_path".
        value: Value as YAML reads it; on the command line, its text. A DataError if `source` is no YAML.
        source: File of the setting, or "the command line".
    """

    key: str
    value: Any
    source: str

    @property
    def place(self) -> str:
        """End of a message: the file of the setting, or ""."""
        return "" if self.source == COMMAND_LINE else f" ({self.source})"

    @property
    def plain(self) -> Any:
        """Value as YAML reads it, also on the command line."""
        if self.source != COMMAND_LINE or not isinstance(self.value, str):
            return self.value
        try:
            return yaml.safe_load(self.value)
        except (yaml.YAMLError, ValueError):
            return self.value


class Unknown(NamedTuple):
    """A name that a class or a group of settings does not have.

    Attributes:
        name: Name as written.
        owner: Class or group without this name.
        known: Names that the owner has.
    """

    name: str
    owner: str
    known: list[str]


def read_settings(arguments: Sequence[str]) -> Iterator[Setting]:
    """Yield the settings of a command line and of its files, in the order of the command line."""
    for key, value in options(arguments):
        if value.endswith(_ENDINGS) or (key in CONFIGS and Path(value).is_file()):
            yield from _read_file(Path(value), "" if key in CONFIGS else key)
        else:
            yield Setting(key, value, COMMAND_LINE)


def options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the options of a command line, without hyphens, with their values."""
    for index, argument in enumerate(arguments):
        if argument.startswith("-"):
            key, equals, value = argument.lstrip("-").partition("=")
            yield key, value if equals else next(iter(arguments[index + 1 : index + 2]), "")


def with_null_fields(arguments: Sequence[str]) -> list[str]:
    """Return a command line with `--data.init_args.split={"fold": null}` for `--data.init_args.split.fold=null`.

    The parser takes null for a field of a record in a class's arguments in this form alone.
    """
    settings = list(read_settings(arguments))
    words: list[str] = []
    for word in arguments:
        if word == "null" and words and words[-1].startswith("--") and "=" not in words[-1]:
            word = f"{words.pop()}=null"
        key, _, value = word.removeprefix("--").partition("=")
        owner, _, rest = key.rpartition(".init_args.")
        group, dot, name = rest.partition(".")
        is_field = value == "null" and word.startswith("--") and owner and dot and "." not in name
        if is_field and type(None) in typing.get_args(type_of(key, settings)):
            word = f'--{owner}.init_args.{group}={{"{name}": null}}'
        words.append(word)
    return words


def check_settings(arguments: Sequence[str]) -> None:
    """Refuse mistakes that the parser would accept, or would refuse without the name of the file.

    Raises:
        DataError: If a file is no YAML in UTF-8, or holds a key twice.
        ValueError: If a config holds no settings, a seed is out of range, a value must not be null, or a group has no
            such setting.
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
    """Return the annotation of a class's argument; an `Unknown` if the class lacks it, None if the class is not known.

    Args:
        key: Key such as "data.init_args.mix.replay".
        settings: All settings; one names the class.
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
    """Return a class by its full import path; None if it does not exist, or the path is a short name."""
    module, _, name = class_path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name, None) if module else None
    except ImportError:
        return None
    return kind if isinstance(kind, type) else None


def _check_init_arg(setting: Setting, settings: Sequence[Setting]) -> None:
    annotation = type_of(setting.key, settings)
    if isinstance(annotation, Unknown):
        if "." in setting.key.rpartition(".init_args.")[2]:  # the parser does not check groups of a class
            there = ", ".join(annotation.known)
            raise ValueError(f"{setting.key} is no setting of {annotation.owner}{setting.place}; there is {there}.")
    elif annotation not in (None, Any) and setting.plain is None and type(None) not in typing.get_args(annotation):
        what = getattr(annotation, "__name__", str(annotation)) if isinstance(annotation, type) else str(annotation)
        what = what.replace("typing.", "").replace("Literal[", "").rstrip("]").replace("'", "")
        raise ValueError(f"{setting.key}=null{setting.place} is not allowed; give {what}.")


def _hints(kind: Any) -> dict[str, Any] | None:
    """Return the annotations of a class's arguments by name; None if it takes any argument."""
    try:
        parameters = inspect.signature(kind).parameters
        hints = typing.get_type_hints(kind if dataclasses.is_dataclass(kind) else kind.__init__)
    except (NameError, TypeError, ValueError):
        return None
    if any(one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) for one in parameters.values()):
        return None
    return {name: hints.get(name, Any) for name in parameters}


class _UniqueKeys(yaml.SafeLoader):
    """Loads YAML, and refuses a key that occurs twice. YAML would drop the first value."""

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
        yield Setting(key, DataError(f"{file} is no YAML: {explain_yaml(error)}"), str(file))
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


def explain_yaml(error: yaml.YAMLError) -> str:
    """Return the place and the reason of a mistake in YAML, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())
