"""Ctrl-C ends whatever is being done in one line, which says how to go on, and with exit code 130; twice, at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

CODE = 128 + signal.SIGINT
AGAIN = "give the command again"
WAY_ON = "MOIS_WAY_ON"
"""Environment variable in which a program that runs others tells them what its user has to do to go on."""

STDERR = 2
"""File descriptor; a handler may not use the stream, in the middle of whose use it may be called."""

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
_SHOW_CURSOR = b"\x1b[?25h"


@contextmanager
def ctrl_c_ends(how_to_go_on: Callable[[], str] = lambda: AGAIN, *, to_the_end: bool = False) -> Iterator[None]:
    """Have Ctrl-C end what is done here; contexts may lie within each other, and the inner one speaks.

    A part of the program that sets a handler of its own calls `end_now` when it has had enough. A Ctrl-C that is
    ignored, as in a job that a shell runs in the background, stays ignored.

    Args:
        how_to_go_on: What the user has to do to go on, for the end of the line.
        to_the_end: The process ends with this context: from then on Ctrl-C ends it without a word, where Python and
            its libraries are tidying up.
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
    """Say that Ctrl-C ends this process, and how to go on; the next Ctrl-C ends it without tidying up.

    Raises:
        SystemExit: With 130.
    """
    signal.signal(signal.SIGINT, _leave)
    if all(os.environ.get(name, "0") == "0" for name in _RANKS):
        os.write(STDERR, f"\nstopped by Ctrl-C; {os.environ.get(WAY_ON, how_to_go_on)}\n".encode())
    raise SystemExit(CODE)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    if os.isatty(STDERR):
        os.write(STDERR, _SHOW_CURSOR)  # a progress bar may have hidden it
    os._exit(CODE)


def _handler() -> object:
    return signal.getsignal(signal.SIGINT)
