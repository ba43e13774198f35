"""`mois COMMAND`: the composition root, which alone brings method, adapters and datamodules together.

A file holds a command. Every import that costs time stands inside its command, so that `mois --help` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

from jsonargparse import auto_cli

from mois.arguments import OneLineParser, command_line
from mois.cli.compare import compare
from mois.cli.curves import curves
from mois.cli.demo import demo
from mois.cli.doctor import doctor
from mois.cli.evaluate import evaluate
from mois.cli.export import export_nnunet
from mois.cli.journal import journal
from mois.cli.phantom import phantom
from mois.cli.segment import segment

COMMANDS: list[Callable[..., None] | type] = [
    phantom,
    doctor,
    demo,
    curves,
    export_nnunet,
    evaluate,
    compare,
    segment,
    journal,
]

LEADING: dict[str, str] = {"compare": "runs", "journal": "sessions"}
"""Commands that take a list as the words that follow them, and what its option is called."""

FIRST: dict[str, str] = {"segment": "image"}
"""Commands that take one value as the word that follows them, and what its option is called."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; mistakes end in one line (MOIS_TRACEBACK=1 shows where)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with command_line(given):
        given = with_options(given)
        auto_cli(COMMANDS, args=given, as_positional=False, parser_class=OneLineParser, prog="mois")


def with_options(given: Sequence[str]) -> list[str]:
    """Return `compare A B --out C` as `compare --runs=["A", "B"] --out C`; see `LEADING` and `FIRST`."""
    command, words = given[:1], list(given[1:])
    count = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    if command and command[0] in LEADING and count:
        return [*command, f"--{LEADING[command[0]]}={json.dumps(words[:count])}", *words[count:]]
    if command and command[0] in FIRST and count:
        return [*command, f"--{FIRST[command[0]]}={words[0]}", *words[1:]]
    return list(given)
