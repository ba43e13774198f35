"""`mois COMMAND`: the composition root, which alone brings method, adapters and datamodules together.

A file holds a command. Every import that costs time stands inside its command, so that `mois --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mois.machine.interrupts import GIVE_COMMAND_AGAIN, ctrl_c_ends
from mois.machine.system_calls import keep_freed_memory

GOES_ON = ("adapt", "demo", "evaluate", "folds", "segment", "sweep")
"""Commands that find their earlier results and go on."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line. Mistakes and Ctrl-C end in one line; MOIS_TRACEBACK=1 shows the traceback of a mistake."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    goes_on = bool(given) and given[0] in GOES_ON
    how_to_go_on = GIVE_COMMAND_AGAIN + (": it goes on where it was" if goes_on else "")
    with ctrl_c_ends(lambda: how_to_go_on):
        from mois.cli.commands import run

        run(given)


def script() -> None:
    """Run the command line of this process."""
    keep_freed_memory()
    with ctrl_c_ends(to_the_end=True):
        main()
