"""Messages for mistakes in a command line or a config: one line with the key and the cure.

The messages of the parser are read by pattern. `tests/unit/cli/test_cli.py` tests each message.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from mois.cli.settings import COMMAND_LINE, CONFIGS, Setting, Unknown, class_of, read_settings, type_of
from mois.cli.shipped_configs import OPTIONS, config_names
from mois.errors import one_line
from mois.files.text import as_yaml

PLUG_IN_MODULES = ("adapters", "datamodules", "mois.propagation", "mois.backbones")
TRAINING = {
    "fit": "Train a model by a config; it leaves the bundle of the best checkpoint.",
    "validate": "Score a checkpoint, or the untrained model, on the validation scans.",
    "test": "Score a checkpoint, or the untrained model, on the test scans, with a report.",
    "predict": "Write label maps of the test scans without scores.",
}
"""Commands of a training, which have a parser of their own (`train.py`): one line on each."""

SYNONYMS = {
    "lr": "learning_rate",
    "epochs": "max_epochs",
    "num_epochs": "max_epochs",
    "steps": "max_steps",
    "batch": "batch_size",
    "bs": "batch_size",
    "workers": "num_workers",
    "gpus": "devices",
    "gpu": "devices",
    "fp16": "precision",
    "bf16": "precision",
    "amp": "precision",
    "resume": "ckpt_path",
    "checkpoint": "ckpt_path",
    "ckpt": "ckpt_path",
    "resume_from_checkpoint": "ckpt_path",
    "warm_start": "start_from",
    "init_from": "start_from",
    "finetune": "start_from",
    "finetune_from": "start_from",
    "output": "default_root_dir",
    "output_dir": "default_root_dir",
    "wd": "weight_decay",
}
"""Name of a setting in other programs: its name here."""

_HYPHENS = "-\N{EN DASH}\N{EM DASH}"
"""The hyphen, and the dashes that word processors put in the place of two hyphens."""

_QUOTES = "YAML takes names like 001 (1) and 010 (8) for numbers; put them in quotes"


def explain_usage(message: str, parser: ArgumentParser, arguments: Sequence[str], short: str = "") -> str:
    """Return one line: what was given, what is allowed, what to do.

    Args:
        message: Message of the parser.
        parser: The parser that refused; it knows all options.
        arguments: Words of the command line. Files that it names are read to find the place of the mistake.
        short: How the command is typed without the names of options, such as `mois try BUNDLE SCAN...`, or "".
    """
    settings = list(read_settings(arguments))
    if match := re.search(r"unrecognized arguments: (.*)|does not accept option '([^']+)'", message):
        return _unknown(match.group(2) or match.group(1), parser, arguments, settings, short)
    if match := re.match(r"Option '([^']+)' is not accepted", message):
        return _unknown_init_arg(match.group(1), settings)
    if match := re.match(r"argument subcommand: invalid choice: '([^']+)' \(choose from (.*)\)", message):
        first = arguments[0] == match.group(1)  # not the second word of a command of two words
        choices = list(dict.fromkeys([*(TRAINING if first else ()), *re.findall(r"\w+", match.group(2))]))
        return f"{match.group(1)} is no command; {_did_you_mean(match.group(1), choices)}"
    if match := re.match(r'expected "(?:\w+\.)?subcommand" to be one of {(.*)}', message):
        return f"no command was given; choose one of {match.group(1).replace(',', ', ')}"
    if match := re.match(r"the following arguments are required: (.*)", message):
        keys = [_without_command(key, parser) for key in match.group(1).split(", ")]
        typed = f"write {short}, or " if keys[0].upper() in short.replace("...", "").split() else ""
        way = f"{typed}set it with --{keys[0]}=VALUE, or in a file given with --config FILE"
        return f"not set: {', '.join(keys)}; {way}"
    if match := re.match(r"argument (?:-\w+/)?--(\S+): expected (?:one|at least one) argument", message):
        return f"{match.group(1)} has no value; write --{match.group(1)}=VALUE"
    if match := re.match(r'Parser key "([^"]+)":\s*(.*)', message, flags=re.DOTALL):
        return _explain_value(match.group(1), match.group(2), settings)
    return one_line(message)


def _unknown(
    word: str, parser: ArgumentParser, arguments: Sequence[str], settings: Sequence[Setting], short: str
) -> str:
    """Explain an argument that no option takes."""
    given = word.split()[0]
    known = _known_keys(parser, arguments)
    key = given.lstrip(_HYPHENS).partition("=")[0]
    if not given.startswith("--") and any(one.startswith("--") for one in word.split()):
        given = next((one for one in arguments if one.startswith(given)), given)
    if given in arguments and not given.startswith("--"):
        if key in known:
            return f"{given} is taken for no option; write two hyphens: --{given.lstrip(_HYPHENS)}"
        command = " ".join(one for one in short.split()[1:] if not one.rstrip(".").isupper())
        first = f"{command} {given} ..." if short else ""
        way = f"write it right behind the command, {first}" if first else f"write --OPTION={given}"
        return f"{given} belongs to no option; {way}"
    if key in known and " " in word:
        return f"{word} is one argument; write --{key}={word.partition(' ')[2].strip()}"
    place = next((setting.place for setting in settings if setting.key == key), "")
    return f"{key} is no setting{place}; {_did_you_mean(key, [*known, *_init_args(settings)])}"


def _explain_value(key: str, reason: str, settings: Sequence[Setting]) -> str:
    key = _full_key(key, settings)
    if match := re.search(r"Problem with given class_path .*?Parser key \"([^\"]+)\":\s*(.*)", reason, flags=re.DOTALL):
        return _explain_value(f"{key}.init_args.{match.group(1)}", match.group(2), settings)
    if match := re.search(r"Option '([^']+)' is not accepted", reason):
        return _unknown_init_arg(match.group(1), settings)
    if match := re.search(r"Problem with given class_path '([^']+)':\s*([^\n]*)", reason):
        return _explain_class_path(key, match.group(1), match.group(2))
    if match := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", reason):
        given, base = match.groups()
        module = given if class_of(given) is None else given.rpartition(".")[0]
        kinds = {name: class_of(f"{module}.{name}") for name in _classes(module)}
        fit = [
            f"{module}.{name}"
            for name, kind in kinds.items()
            if kind and base in {one.__name__ for one in kind.__mro__}
        ]
        return f"{key}={given} is no {base}; {_did_you_mean(given, fit)}"
    if match := re.search(r"Expected a dot import path string: (\S+)", reason):
        return f"{key}={match.group(1)} is no class; write its import path, MODULE.CLASS"
    if match := re.search(r"Not a valid subclass of (\w+)\. Got value: (.*)", reason):
        return f"{key}={_null(match.group(2))} is not allowed; give a class ({match.group(1)}) by its import path"
    if match := re.search(r"File does not exist: '([^']+)'", reason):
        shipped = _shipped_config(match.group(1)) if key in CONFIGS else ""
        return f"{key}: there is no file {match.group(1)}{shipped}"
    if match := re.search(r"Unable to load config [\"']([^\"']+)[\"']", reason):
        value = match.group(1)
        if not value.endswith((".yaml", ".yml", ".json")):
            meant = difflib.get_close_matches(f"{key}/{value}", config_names(), n=1) if key in OPTIONS else []
            cure = f"did you mean {meant[0]}, a shipped config?" if meant else f"set one of them, --{key}.NAME=VALUE"
            return f"{key}={value} is not allowed: {key} is a group of settings; {cure}"
        return f"{key}={value}: there is no such file; paths in a config are relative to that config"
    expected = re.findall(r"Expected an? (.*?)(?:\. Got value|\n|$)", reason)
    value = re.search(r"(?:Got value|Given value): (.*)", reason)
    if expected and value:
        return _not_allowed(key, value.group(1).strip(), expected, settings)
    return f"{key}: {one_line(reason)}"


def _not_allowed(key: str, value: str, expected: Sequence[str], settings: Sequence[Setting]) -> str:
    names = [_readable_type(name) for name in expected if not name.startswith("path but")]
    hint = type_of(key, settings)
    if not isinstance(hint, Unknown) and hint not in (None, typing.Any) and type(None) not in typing.get_args(hint):
        names = [
            name for name in names if name != "null"
        ] or names  # the value around it may be null, not the value itself
    allowed = " or ".join(dict.fromkeys(names))
    if nested := re.search(r"NestedArg\(key='([^']+)'", value):
        return f"{key}.{nested.group(1)} is no setting: {key} is one value; give {allowed}"
    line = f"{key}={_null(value)} is not allowed; give {allowed}"
    return f"{line}: {_QUOTES}{_quoted(key, settings)}" if "str" in names and re.fullmatch(r"[-\d.]+", value) else line


def _quoted(key: str, settings: Sequence[Setting]) -> str:
    """Return the end of a message: how to write a list on the command line."""
    written = [one.value for one in settings if one.key == key and one.source == COMMAND_LINE]
    if not written or not re.fullmatch(r"\[.*\]", written[-1]):
        return f', {key.rpartition(".")[2]}: ["001", "010"]'
    names = [one.strip().strip("\"'") for one in written[-1].strip("[]").split(",")]
    return f", --{key}='{as_yaml(names)}'"


def _explain_class_path(key: str, class_path: str, reason: str) -> str:
    module, _, name = class_path.rpartition(".")
    if "has no attribute" in reason and class_of(class_path) is None:
        return f"{key}={class_path}: {module} has no class {name}; {_did_you_mean(name, _classes(module))}"
    if "'NoneType' object has no attribute" in reason:
        return f"{key}.init_args of {class_path} is null; write settings under it, or leave it out"
    if "No module named" in reason:
        close = [one for one in difflib.get_close_matches(module, PLUG_IN_MODULES) if name in _classes(one)]
        cure = (
            f"did you mean {close[0]}.{name}?" if close else "the folder of a module of yours has to be on PYTHONPATH"
        )
        return f"{key}={class_path}: there is no module {module}; {cure}"
    return f"{key}={class_path}: {reason}"


def _unknown_init_arg(name: str, settings: Sequence[Setting]) -> str:
    """Explain an argument that a class does not take: wrong name, wrong place, or given before its class."""
    if name == "class_path":
        return _beside_class_path(settings)
    first, dot, _ = name.partition(".")
    if dot and (close := difflib.get_close_matches(first, ["init_args", "class_path"], n=1)):
        owner = next((one for one in settings if one.key.rpartition(".")[2] == first), None)
        where = f"{owner.key} is no key of a class{owner.place}" if owner else f"{first} is no key of a class"
        return f"{where}; did you mean {close[0]}?"
    written = [(at, one) for at, one in enumerate(settings) if one.key.rpartition(".")[2] == name.rpartition(".")[2]]
    for at, setting in written:
        owner_key = setting.key.rpartition(".")[0].removesuffix(".init_args")
        named = [
            (place, one)
            for place, one in enumerate(settings)
            if one.key in (owner_key, f"{owner_key}.class_path") and isinstance(one.value, str)
        ]
        if not named:
            continue
        place, owner_setting = named[-1]
        class_path = owner_setting.value
        if name not in _parameters(class_path):
            suggestion = _did_you_mean(name, _parameters(class_path))
            return f"{setting.key} is no setting of {class_path}{setting.place}; {suggestion}"
        if place > at:
            after = f"--{owner_key}={class_path}" if owner_setting.source == COMMAND_LINE else f"{owner_setting.source}"
            return f"{setting.key} stands before {after}, which names its class; write it behind that"
    if written:
        owner_key = written[0][1].key.rpartition(".")[0].removesuffix(".init_args")
        return f"{written[0][1].key}: no class is named that has it; name one first, --{owner_key}=MODULE.CLASS"
    return f"{name} is no setting of the class that it is given to; see its signature"


def _beside_class_path(settings: Sequence[Setting]) -> str:
    owners = [one.key.removesuffix(".class_path") for one in settings if one.key.endswith(".class_path")]
    for owner in owners:
        for one in settings:
            rest = one.key.removeprefix(f"{owner}.")
            if rest != one.key and "." not in rest and rest not in ("class_path", "init_args", "dict_kwargs"):
                return f"{one.key} stands beside class_path{one.place}; write it under {owner}.init_args"
    return "class_path stands where a class takes no settings; write them under init_args"


def _full_key(key: str, settings: Sequence[Setting]) -> str:
    """Return the full dotted key of an init_arg that jsonargparse names without its class."""
    full = {setting.key for setting in settings if f".{setting.key}".endswith(f".{key}")}
    return full.pop() if len(full) == 1 else key


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    group, _, last = word.rpartition(".")
    meant = [one for one in known if one.rpartition(".")[2] == SYNONYMS.get(last.lower().replace("-", "_"))]
    close = [one for one in meant if one.rpartition(".")[0] == group] or meant
    close = close or difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"there is {', '.join(known)}" if 0 < len(known) <= 20 else "--help lists what there is"


def _known_keys(parser: ArgumentParser, arguments: Sequence[str]) -> list[str]:
    for word in arguments:  # a command has one word or two
        parser = subparsers(parser).get(word, parser)
    return [action.dest for action in parser._actions]


def _init_args(settings: Sequence[Setting]) -> list[str]:
    """Return the keys of all arguments of the named classes of data and model."""
    named = {one.key.removesuffix(".class_path"): one.value for one in settings if isinstance(one.value, str)}
    owners = [owner for owner in named if owner == "data" or owner.startswith("model.")]
    return [f"{owner}.init_args.{name}" for owner in owners for name in _parameters(named[owner])]


def subparsers(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    """Return the parser of each command of a parser, by the command's word."""
    choices = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    return dict(choices[0]) if choices else {}


def _without_command(key: str, parser: ArgumentParser) -> str:
    """Return the key of a setting without the words of its command: "out" of "bank.merge.out"."""
    first, _, rest = key.partition(".")
    inner = subparsers(parser)
    return _without_command(rest, inner[first]) if first in inner else key


def _classes(module: str) -> list[str]:
    try:
        members = vars(importlib.import_module(module))
    except ImportError:
        return []
    return [name for name, value in members.items() if inspect.isclass(value) and not name.startswith("_")]


def _parameters(class_path: str) -> list[str]:
    kind = class_of(class_path)
    try:
        return list(inspect.signature(kind).parameters) if kind is not None else []
    except ValueError:
        return []


def _shipped_config(file: str) -> str:
    """Return the end of a message on a missing config: the shipped config that was meant, if there is one."""
    close = difflib.get_close_matches(Path(file).stem, config_names(), n=1)
    return f"; did you mean {close[0]}, a shipped config?" if close else ""


def _null(value: str) -> str:
    return "null" if value == "None" else value


def _readable_type(name: str) -> str:
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", name)
    name = re.sub(r"typing\.Literal\[(.*)\]", r"\1", name)
    name = {"Sequence": "a list, [] for an empty one", "tuple": "a list such as [1,3]"}.get(name, name)
    return name.replace("NoneType", "null").replace("'", "").replace("typing.", "")
