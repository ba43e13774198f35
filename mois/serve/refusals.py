"""What a server refuses, each with its HTTP status and one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mois.session import InteractiveSession


class Refusal(Exception):  # noqa: N818 - the word of the protocol
    """A request that is refused.

    Args:
        status: HTTP status.
        text: One line: what was given, what is allowed, what to do. It names no patient and no file.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Watching(Refusal):
    """Another client writes to this scan; this client can watch."""

    def __init__(self, writer: str) -> None:
        super().__init__(409, f"{writer} writes to this scan; you can watch until {writer} leaves.")


class Cancelled(Refusal):
    """A propagation that its client cancelled."""

    def __init__(self) -> None:
        super().__init__(409, "the propagation was cancelled; nothing has changed.")


@contextmanager
def all_or_nothing(session: InteractiveSession) -> Iterator[None]:
    """Take back what a request did to a session, if a part of the request is refused."""
    before = len(session.actions)
    try:
        yield
    except ValueError:
        for _ in range(len(session.actions) - before):
            session.undo()
        raise
