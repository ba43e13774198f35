"""The commands, the words that they take without an option's name, and the list of commands."""

from __future__ import annotations

import inspect
import json
import re
from argparse import HelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from jsonargparse import auto_cli

from mois.cli.adapt import adapt
from mois.cli.arguments import OneLineParser, command_line
from mois.cli.bank import list_banks, merge_bank_files, show_bank
from mois.cli.bundle import pull, push
from mois.cli.compare import compare
from mois.cli.completion import completion
from mois.cli.configs import configs
from mois.cli.curves import curves
from mois.cli.dataset_from_sessions import from_sessions
from mois.cli.demo import demo
from mois.cli.doctor import doctor
from mois.cli.evaluate import evaluate
from mois.cli.export import export_nnunet, export_sam2
from mois.cli.folds import folds, with_training_options
from mois.cli.follow_up import follow_up
from mois.cli.forgetting import forgetting
from mois.cli.init import init
from mois.cli.journal import journal
from mois.cli.messages import say
from mois.cli.old_options import evaluate_option, with_new_evaluate_keys, with_new_options
from mois.cli.phantom import phantom
from mois.cli.segment import segment
from mois.cli.serve import serve
from mois.cli.sweep import sweep
from mois.cli.try_bundle import try_bundle
from mois.cli.usage import TRAINING
from mois.cli.view import view
from mois.files.text import as_yaml
from mois.machine.full_memory import ACCELERATOR, full_memory, memory_cure

COMMANDS: list[Callable[..., None]] = [
    phantom,
    doctor,
    init,
    try_bundle,
    adapt,
    demo,
    configs,
    curves,
    export_nnunet,
    evaluate,
    compare,
    forgetting,
    folds,
    sweep,
    segment,
    journal,
    follow_up,
    serve,
    view,
    completion,
]

GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "bank": {"ls": list_banks, "show": show_bank, "merge": merge_bank_files},
    "dataset": {"from-sessions": from_sessions},
    "export": {"sam2": export_sam2, "nnunet": export_nnunet},
    "bundle": {"push": push, "pull": pull},
}
"""Commands of two words, such as `mois bank ls`: first word, second word, function."""

GROUP_HELP: dict[str, str] = {
    "bank": "List, show or merge exemplar banks.",
    "dataset": "Make a dataset for a training.",
    "export": "Write a model for other programs of SAM 2, or a dataset for nnU-Net.",
    "bundle": "Share bundles over the Hugging Face hub.",
}
"""One line on each first word."""

_LISTS = ("list[str]", "list[int]", "list[float]")
_USUAL_NAME = 16
"""Longer names of commands are not aligned: that would leave too little room for the lines of all others."""

HELP = ("-h", "--help")
VERSION = "--version"

LEADING: dict[str, str] = {
    "bank ls": "places",
    "bank merge": "banks",
    "compare": "runs",
    "dataset from-sessions": "sessions",
    "follow_up": "scans",
    "forgetting": "bundles",
    "journal": "sessions",
    "segment": "image",
    "view": "image",
}
"""Commands whose first words are a list: the option of the list."""

FIRST: dict[str, tuple[str, ...]] = {
    "bank show": ("file",),
    "bundle push": ("bundle", "repo"),
    "bundle pull": ("repo",),
    "completion": ("shell",),
    "configs": ("name",),
    "curves": ("run",),
    "doctor": ("root",),
    "init": ("root",),
    "phantom": ("out",),
    "serve": ("viewer",),
    "sweep": ("file",),
    "try": ("bundle", "scan"),
}
"""Commands whose first words are values: the options of the values, in their order."""

REPEATED: dict[str, tuple[str, ...]] = {
    "segment": ("image", "bundle"),
    "serve": ("bundle",),
    "try": ("scan",),
    "view": ("image", "bundle"),
}
"""Options that may be given several times: each word is an entry of a list. One of them may be the last of `FIRST`."""

FLAGS: dict[str, tuple[str, ...]] = {"evaluate": ("log",), "view": ("no_browser",)}
"""Options that are written without a value."""


class CommandParser(OneLineParser):
    """Parser of all commands but those of a training. Its help says which options may be left out."""

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """Return the help, with the words that may follow the command without an option's name."""
        usage, blank, rest = super().format_help(formatter).partition("\n\n")
        name = " ".join(re.sub(r"\[[^]]*\]|--\S+ \S+", "", self.prog).split()[1:])
        short = short_form(name)
        return f"{usage}{blank}{f'Short: {short}{blank}' if short else ''}{rest}"


class EvaluateParser(CommandParser):
    """Parser of `mois evaluate`. Its configs may hold old names."""

    with_new_keys = staticmethod(with_new_evaluate_keys)


def run(given: Sequence[str]) -> None:
    """Run a command. Without a command, print the list of commands."""
    if not given or given[0] in HELP:
        say(overview())
        return
    if given[0] == VERSION:
        from mois.sharing.provenance import code_version

        say(f"mois {code_version()}")
        return
    if given[0] in TRAINING:
        from mois.cli.train import main

        main(given)
        return
    short = short_form(" ".join(given[: 2 if given[0] in GROUPS else 1]))
    with command_line(given, short), memory_cure(partial(_what_frees_memory, given[0])):
        words, parser_class = with_options(given), CommandParser
        if given[0] == "evaluate":
            words, parser_class = list(with_new_options(words, evaluate_option)), EvaluateParser
        auto_cli(components(given[0]), args=words, as_positional=False, parser_class=parser_class, prog="mois")


def components(name: str = "") -> dict[str, Any]:
    """Return all commands but those of a training, as the parser takes them.

    Args:
        name: Return the command of this first word alone, if there is one: half a second of CPU less for its parser.
    """
    groups = {first: {"_help": GROUP_HELP[first], **group} for first, group in GROUPS.items()}
    every = {**{command.__name__: command for command in COMMANDS}, **groups}
    return {name: every[name]} if name in every else every


def short_form(name: str) -> str:
    """Return how a command is typed without the names of options, such as `mois try BUNDLE SCAN...`, or ""."""
    if name in LEADING:
        return f"mois {name} {LEADING[name].upper()}..."
    words = [option.upper() for option in FIRST.get(name, ())]
    if words and FIRST[name][-1] in REPEATED.get(name, ()):
        words[-1] += "..."
    return f"mois {name} {' '.join(words)}" if words else ""


def _what_frees_memory(command: str, error: BaseException) -> str:
    """Return which settings free memory for a command."""
    of_the_gpu = full_memory(error).startswith(ACCELERATOR) and command in ("segment", "evaluate")
    first = "compute on the CPU (--device cpu), or " if of_the_gpu else ""
    return f"{first}end other programs that use it, or take a machine with more"


def overview() -> str:
    """Return all commands, one on each line."""
    firsts = {name: (command.__doc__ or "").partition("\n")[0] for name, command in _by_name().items()}
    width = max(len(name) for name in [*TRAINING, *firsts] if len(name) <= _USUAL_NAME)
    lines = [f"  {name:{width}}  {first}" for name, first in {**TRAINING, **firsts}.items()]
    return "\n".join(["mois COMMAND ...; what a command takes: mois COMMAND --help", "", *lines])


def _by_name() -> dict[str, Callable[..., None]]:
    """Return the function of each command but those of a training, by its one or two words."""
    groups = {f"{name} {second}": command for name, group in GROUPS.items() for second, command in group.items()}
    return {**{command.__name__: command for command in COMMANDS}, **groups}


def with_options(given: Sequence[str]) -> list[str]:
    """Return `compare A B --names a,b` as `compare --runs=["A", "B"] --names=["a", "b"]`; see `LEADING` and `FIRST`."""
    length = 2 if given and given[0] in GROUPS else 1
    name, words = " ".join(given[:length]), list(given[length:])
    words = with_training_options(words) if name == "folds" else words
    count = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    leading: list[str] = []
    if name in LEADING and count:
        leading = [f"--{LEADING[name]}={as_yaml(words[:count])}"]
    elif name in FIRST and count:
        options = FIRST[name]
        leading = [f"--{option}={word}" for option, word in zip(options, words[:count], strict=False)]
        if options[-1] in REPEATED.get(name, ()):
            leading += [f"--{options[-1]}={word}" for word in words[len(options) : count]]
        count = len(leading)
    else:
        count = 0
    rest = list(_with_flags(words[count:], FLAGS.get(name, ())))
    for option in REPEATED.get(name, ()):
        gathered, rest = _gathered(option, [*leading, *rest])
        leading, rest = [], [*gathered, *rest]
    return [*given[:length], *leading, *_with_lists(rest, _takes_lists(name))]


def _with_flags(words: Sequence[str], flags: Sequence[str]) -> Iterator[str]:
    """Yield words, with `--log` as `--log=true`, unless true or false follows."""
    for place, word in enumerate(words):
        is_flag = word.startswith("--") and word[2:] in flags
        yield f"{word}=true" if is_flag and words[place + 1 : place + 2] not in (["true"], ["false"]) else word


def _gathered(option: str, given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return an option that may be repeated as one option with a list of words, and the other words."""
    values: list[str] = []
    others: list[str] = []
    rest = iter(given)
    for word in rest:
        name, equals, value = word.partition("=")
        if name != f"--{option}":
            others.append(word)
            continue
        value = value if equals else next(rest, "")
        values += json.loads(value) if value.startswith("[") else [value]
    return ([f"--{option}={as_yaml(values)}"] if values else []), others


def _takes_lists(name: str) -> dict[str, bool]:
    """Return the options of a command that take a list of words or numbers, and whether they take words."""
    command = _by_name().get(name)
    parameters = inspect.signature(command).parameters.values() if command else ()
    types = {one.name: str(one.annotation) for one in parameters}
    return {name: kind.startswith("list[str]") for name, kind in types.items() if kind.startswith(_LISTS)}


def _with_lists(words: Sequence[str], options: Mapping[str, bool]) -> Iterator[str]:
    """Yield words, with `--trust a,b` as `--trust=["a", "b"]`, and `--pixel_mm 1,2` as `--pixel_mm=[1,2]`."""
    rest = iter(words)
    for word in rest:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in options:
            yield word
            continue
        value = value if equals else next(rest, "")
        if value in ("", "null") or value[0] == "[" or value.startswith("-" if options[name] else "--"):
            yield f"--{name}={value}"
        else:
            yield f"--{name}={as_yaml(value.split(',')) if options[name] else f'[{value}]'}"
