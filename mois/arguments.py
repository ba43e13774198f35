"""Command lines and YAML files: what is wrong with one, said in one line that names the key and the cure."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml
from jsonargparse import ArgumentParser

from mois.errors import one_line, one_line_errors

COMMAND_LINE = "the command line"
PLUG_IN_MODULES = ("adapters", "datamodules", "mois.propagation", "mois.backbones")


class UsageError(ValueError):
    """A command line or a config that cannot be right.

    Attributes:
        parser: The parser that refused it, which knows what there is.
    """

    def __init__(self, message: str, parser: ArgumentParser) -> None:
        super().__init__(message)
        self.parser = parser


class OneLineParser(ArgumentParser):
    """A parser that raises `UsageError` where jsonargparse prints its usage and exits."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message (jsonargparse's own inner parsers, which try one type after the other, keep their way)."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise UsageError(message, getattr(ex, "subcommand_parser", None) or self) from ex


class Setting(NamedTuple):
    """One value that the user wrote.

    Attributes:
        key: Dotted, such as "model.adapter.init_args.rank" or "trainer.callbacks[0].class_path".
        value: As YAML reads it; the YAMLError where `source` is no YAML.
        source: File that it stands in, or "the command line".
    """

    key: str
    value: Any
    source: str

    @property
    def place(self) -> str:
        """Where to look, for the end of a message."""
        return "" if self.source == COMMAND_LINE else f" ({self.source})"


@contextmanager
def command_line(arguments: Sequence[str]) -> Iterator[None]:
    """End in one line what is wrong with these arguments, or with what they start (`mois.errors`)."""
    with one_line_errors():
        try:
            yield
        except UsageError as error:
            raise ValueError(explain_usage(error, arguments)) from error


def explain_usage(error: UsageError, arguments: Sequence[str]) -> str:
    """Return one line: what was given, what is allowed, what to do.

    Args:
        error: As raised by a `OneLineParser`.
        arguments: The command line; the files that it names are read to find the place of a mistake.
    """
    message = str(error)
    settings = list(read_settings(arguments))
    if match := re.search(r"unrecognized arguments: (.*)|does not accept option '([^']+)'", message):
        key = match.group(2) or match.group(1).split()[0].lstrip("-").partition("=")[0]
        place = next((setting.place for setting in settings if setting.key == key), "")
        return f"{key} is no setting{place}; {_did_you_mean(key, _known_keys(error.parser, arguments))}"
    if match := re.match(r"Option '([^']+)' is not accepted", message):
        return _unknown_init_arg(match.group(1), settings)
    if match := re.match(r"argument subcommand: invalid choice: '([^']+)' \(choose from (.*)\)", message):
        choices = re.findall(r"\w+", match.group(2))
        return f"{match.group(1)} is no command; {_did_you_mean(match.group(1), choices)}"
    if re.match(r'expected "subcommand" to be one of ', message):  # jsonargparse names the first five
        return f"no command was given; choose one of {', '.join(_subparsers(error.parser))}"
    if match := re.match(r"the following arguments are required: (.*)", message):
        prefixes = tuple(f"{name}." for name in _subparsers(error.parser))
        keys = [key.partition(".")[2] if key.startswith(prefixes) else key for key in match.group(1).split(", ")]
        return f"not set: {', '.join(keys)}; set it with --{keys[0]}=VALUE, or in a file given with --config FILE"
    if match := re.match(r'Parser key "([^"]+)":\s*(.*)', message, flags=re.DOTALL):
        return _explain_value(match.group(1), match.group(2), settings)
    for setting in settings:
        if isinstance(setting.value, yaml.YAMLError):
            return f"{setting.source} is no YAML: {_explain_yaml(setting.value)}"
    return one_line(message)


def as_options(text: str, **options: str) -> str:
    """Return a message of a datamodule in the words of a command that has options for its keys.

    Args:
        text: Such as "set data.init_args.root to a folder".
        options: What a key of `data.init_args` is called there, such as root="--data".
    """
    return re.sub(r"\bdata\.init_args\.(\w+)", lambda key: options.get(key[1], key[0]), text)


def read_settings(arguments: Sequence[str]) -> Iterator[Setting]:
    """Yield what a command line sets, including what stands in the files that it names."""
    for key, value in _options(arguments):
        if value.endswith((".yaml", ".yml")):
            yield from _read_file(Path(value), "" if key in ("config", "c") else key)
        else:
            yield Setting(key, value, COMMAND_LINE)


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for index, argument in enumerate(arguments):
        if argument.startswith("-"):
            key, equals, value = argument.lstrip("-").partition("=")
            yield key, value if equals else next(iter(arguments[index + 1 : index + 2]), "")


def _read_file(file: Path, key: str, depth: int = 0) -> Iterator[Setting]:
    try:
        yield from _walk(yaml.safe_load(file.read_text(encoding="utf-8")), key, file, depth)
    except yaml.YAMLError as error:
        yield Setting(key, error, str(file))
    except OSError:
        return


def _walk(value: Any, key: str, file: Path, depth: int) -> Iterator[Setting]:
    yield Setting(key, value, str(file))
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _walk(inner, f"{key}.{name}".lstrip("."), file, depth)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _walk(inner, f"{key}[{index}]", file, depth)
    elif isinstance(value, str) and value.endswith((".yaml", ".yml")) and depth < 5:  # a file may name itself
        yield from _read_file(file.parent / value, key, depth + 1)


def _explain_value(key: str, reason: str, settings: Sequence[Setting]) -> str:
    key = _full_key(key, settings)
    if match := re.search(r"Option '([^']+)' is not accepted", reason):
        return _unknown_init_arg(match.group(1), settings)
    if match := re.search(r"Problem with given class_path .*?Parser key \"([^\"]+)\":\s*(.*)", reason, flags=re.DOTALL):
        return _explain_value(f"{key}.init_args.{match.group(1)}", match.group(2), settings)
    if match := re.search(r"Problem with given class_path '([^']+)':\s*([^\n]*)", reason):
        return _explain_class_path(key, match.group(1), match.group(2))
    if match := re.search(r"File does not exist: '([^']+)'", reason):
        return f"{key}: there is no file {match.group(1)}"
    if match := re.search(r"Unable to load config [\"']([^\"']+)[\"']", reason):
        return f"{key}={match.group(1)}: there is no such file; paths in a config are relative to that config"
    expected = re.findall(r"Expected an? (.*?)(?:\. Got value|\n|$)", reason)
    value = re.search(r"(?:Got value|Given value): (.*)", reason)
    if expected and value:
        names = [_readable_type(name) for name in expected if not name.startswith("path but")]
        allowed = " or ".join(dict.fromkeys(names))
        if nested := re.search(r"NestedArg\(key='([^']+)'", value.group(1)):
            return f"{key}.{nested.group(1)} is no setting: {key} is one value; give {allowed}"
        return f"{key}={value.group(1).strip()} is not allowed; give {allowed}"
    return f"{key}: {one_line(reason)}"


def _explain_class_path(key: str, class_path: str, reason: str) -> str:
    module, _, name = class_path.rpartition(".")
    if "has no attribute" in reason:
        return f"{key}={class_path}: {module} has no class {name}; {_did_you_mean(name, _classes(module))}"
    if "No module named" in reason:
        close = [one for one in difflib.get_close_matches(module, PLUG_IN_MODULES) if name in _classes(one)]
        cure = (
            f"did you mean {close[0]}.{name}?" if close else "the folder of a module of yours has to be on PYTHONPATH"
        )
        return f"{key}={class_path}: there is no module {module}; {cure}"
    return f"{key}={class_path}: {reason}"


def _explain_yaml(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return one_line(str(error))


def _unknown_init_arg(name: str, settings: Sequence[Setting]) -> str:
    written = [setting for setting in settings if setting.key.rpartition(".")[2] == name]
    for setting in written:
        owner = setting.key.rpartition(".")[0].removesuffix(".init_args")
        paths = [s.value for s in settings if s.key in (owner, f"{owner}.class_path") and isinstance(s.value, str)]
        if paths and name not in _parameters(paths[-1]):
            suggestion = _did_you_mean(name, _parameters(paths[-1]))
            return f"{setting.key} is no setting of {paths[-1]}{setting.place}; {suggestion}"
    return f"{written[0].key if written else name} is no setting of the class that it is given to; see its signature"


def _full_key(key: str, settings: Sequence[Setting]) -> str:
    """Return the dotted key of an init_arg that jsonargparse names without its owner."""
    full = {setting.key for setting in settings if f".{setting.key}".endswith(f".{key}")}
    return full.pop() if len(full) == 1 else key


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"there is {', '.join(known)}" if 0 < len(known) <= 20 else "--help lists what there is"


def _known_keys(parser: ArgumentParser, arguments: Sequence[str]) -> list[str]:
    inner = _subparsers(parser)
    parser = next((inner[name] for name in arguments if name in inner), parser)
    return [action.dest for action in parser._actions]


def _subparsers(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    choices = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    return dict(choices[0]) if choices else {}


def _classes(module: str) -> list[str]:
    members = vars(importlib.import_module(module))
    return [name for name, value in members.items() if inspect.isclass(value) and not name.startswith("_")]


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        return list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    except (ImportError, AttributeError, ValueError):
        return []  # a short name, which jsonargparse completes itself


def _readable_type(name: str) -> str:
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", name)
    name = re.sub(r"typing\.Literal\[(.*)\]", r"\1", name)
    name = "a list, [] for an empty one" if name == "Sequence" else name
    return name.replace("NoneType", "null").replace("'", "").replace("typing.", "")
