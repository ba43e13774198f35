"""`mois COMMAND`: the composition root, which alone brings method, adapters and datamodules together.

A file holds a command. Every import that costs time stands inside its command, so that `mois --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from jsonargparse import auto_cli

from mois.arguments import OneLineParser, command_line
from mois.cli.curves import curves
from mois.cli.demo import demo
from mois.cli.doctor import doctor
from mois.cli.phantom import phantom

COMMANDS: list[Callable[..., None] | type] = [phantom, doctor, demo, curves]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; mistakes end in one line (MOIS_TRACEBACK=1 shows where)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with command_line(given):
        auto_cli(COMMANDS, args=given, as_positional=False, parser_class=OneLineParser, prog="mois")
