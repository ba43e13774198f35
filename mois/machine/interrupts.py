"""Ctrl-C ends a command with exit code 130 and one line that says how to go on. A second Ctrl-C ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

CODE = 128 + signal.SIGINT
GIVE_COMMAND_AGAIN = "give the command again"
HOW_TO_GO_ON = "MOIS_HOW_TO_GO_ON"
"""Environment variable by which the demo tells the commands that it starts what the user has to do to go on."""

STDERR = 2
"""File descriptor. A signal handler may interrupt a use of the stream, so it must not use the stream itself."""

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
_SHOW_CURSOR = b"\x1b[?25h"


@contextmanager
def ctrl_c_ends(
    how_to_go_on: Callable[[], str] = lambda: GIVE_COMMAND_AGAIN, *, to_the_end: bool = False
) -> Iterator[None]:
    """Let Ctrl-C end the program within this context. Contexts may be nested: the inner context writes the line.

    Code with a handler of its own calls `end_now` to end the program. An ignored Ctrl-C stays ignored: a shell ignores
    it for jobs in the background.

    Args:
        how_to_go_on: Returns what the user has to do to go on, for the end of the line.
        to_the_end: Whether the process ends with this context. After the context, Ctrl-C then ends the process without
            a line, while Python and its libraries clean up.
    """
    if threading.current_thread() is not threading.main_thread() or _handler() is signal.SIG_IGN:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        end_now(how_to_go_on())

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    except KeyboardInterrupt:  # of a library that raises it by itself
        end_now(how_to_go_on())
    finally:
        if to_the_end:
            signal.signal(signal.SIGINT, _leave)
        elif _handler() is not _leave:
            signal.signal(signal.SIGINT, before)


def end_now(how_to_go_on: str) -> NoReturn:
    """Write that Ctrl-C ends this process and how to go on, and end it. The next Ctrl-C ends it without clean-up.

    Raises:
        SystemExit: With 130.
    """
    signal.signal(signal.SIGINT, _leave)
    if all(os.environ.get(name, "0") == "0" for name in _RANKS):
        os.write(STDERR, f"\nstopped by Ctrl-C; {os.environ.get(HOW_TO_GO_ON, how_to_go_on)}\n".encode())
    raise SystemExit(CODE)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    if os.isatty(STDERR):
        os.write(STDERR, _SHOW_CURSOR)  # a progress bar may have hidden it
    os._exit(CODE)


def _handler() -> object:
    return signal.getsignal(signal.SIGINT)
