"""Leases: a client claims one, shows its token with each request, and loses it if it is silent or idle."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mois.serve.refusals import Refusal

Held = TypeVar("Held")


@dataclass
class Lease(Generic[Held]):
    """A lease of a client.

    Attributes:
        token: What the client shows.
        number: Number of the client since the server began.
        held: What the client works with.
        lock: Held during a request, so that requests of one client go one after the other.
    """

    token: str
    number: int
    held: Held
    acted: float
    alive: float
    lock: threading.RLock = field(default_factory=threading.RLock)


class Leases(Generic[Held]):
    """All leases of a server.

    Args:
        most: Largest number of leases.
        idle_s: A lease ends after so many seconds without an action.
        silent_s: A lease ends after so many seconds without any request.
        ended: Called with what the client of an ended lease worked with.
    """

    def __init__(self, most: int, idle_s: float, silent_s: float, ended: Callable[[Held], None]) -> None:
        self.idle_s = idle_s
        self.silent_s = silent_s
        self._most = most
        self._ended = ended
        self._leases: dict[str, Lease[Held]] = {}
        self._count = 0
        self._lock = threading.Lock()

    def claim(self, held: Callable[[int], Held]) -> Lease[Held]:
        """Return a new lease.

        Args:
            held: Makes what the client works with, given its number.

        Raises:
            Refusal: With status 503 if there are as many leases as allowed.
        """
        self._end_old()
        with self._lock:
            if len(self._leases) >= self._most:
                raise Refusal(503, f"{self._most} clients are at work; wait until one leaves.")
            self._count += 1
            now = time.monotonic()
            lease = Lease(secrets.token_urlsafe(24), self._count, held(self._count), now, now)
            self._leases[lease.token] = lease
            return lease

    def of(self, token: str, *, acts: bool) -> Lease[Held]:
        """Return the lease of a token.

        Args:
            token: The token.
            acts: Whether the client acts, and does not only show that it is alive.

        Raises:
            Refusal: With status 410 if there is no such lease any more.
        """
        self._end_old()
        with self._lock:
            if token not in self._leases:
                raise Refusal(410, "the lease has ended; claim another and send the image again: its lesions are kept.")
            lease = self._leases[token]
            lease.alive = time.monotonic()
            if acts:
                lease.acted = lease.alive
            return lease

    def left_s(self, lease: Lease[Held]) -> float:
        """Return the seconds until a lease ends without an action."""
        return max(0.0, self.idle_s - (time.monotonic() - lease.acted))

    def release(self, token: str) -> None:
        """End a lease."""
        with self._lock:
            lease = self._leases.pop(token, None)
        if lease is not None:
            self._ended(lease.held)

    def _end_old(self) -> None:
        now = time.monotonic()
        with self._lock:
            old = [
                lease.token
                for lease in self._leases.values()
                if now - lease.acted > self.idle_s or now - lease.alive > self.silent_s
            ]
        for token in old:
            self.release(token)
