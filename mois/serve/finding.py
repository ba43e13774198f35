"""A propagation in the background, for one type of lesions or for all."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mois.errors import one_line
from mois.serve.host import Seat
from mois.serve.refusals import Cancelled, Refusal


class Finding:
    """A propagation in the background.

    Args:
        seat: Who propagates.
        every_type: Whether lesions of all types that have an exemplar are found, and not of the current type alone.

    Attributes:
        share: Share that is done, 0 to 1.
        found: Number of lesions found; None before the end.
        error: Why it ended early, in one line.
    """

    def __init__(self, seat: Seat, every_type: bool = False) -> None:
        self.share = 0.0
        self.found: int | None = None
        self.error = ""
        self._done, self._count = 0, 1  # types
        self._stop = threading.Event()
        run = self._find_every_type if every_type else self._find
        self._thread = threading.Thread(target=self._run, args=(run, seat), name="propagation", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it goes on."""
        return self._thread.is_alive()

    def cancel(self) -> None:
        """Stop after the part under way. What was found for a type before stays."""
        self._stop.set()

    def _run(self, find: Callable[[Seat], int], seat: Seat) -> None:
        try:
            self.found = find(seat)
        except Cancelled:
            self.error = "Stopped; nothing has changed." if not self._done else "Stopped; the types before are found."
        except Refusal as refusal:
            self.error = refusal.text
        except ValueError as error:
            self.error = one_line(str(error))
        except Exception:
            self.error = "The server made a mistake while it searched; nothing has changed."
            raise

    def _find(self, seat: Seat) -> int:
        return seat.propagate(progress=self._progress, cancelled=self._stop.is_set)

    def _find_every_type(self, seat: Seat) -> int:
        """Find the lesions of each type that has an exemplar; the current type last, as `propagate_all` does."""
        state = seat.look(lambda session: session.state)
        types = seat.look(lambda session: session.types)
        current, found = state.type, 0
        wanted = [name for name in types if state.of_type(name).exemplars]
        self._count = max(1, len(wanted))
        for name in sorted(wanted, key=lambda each: each == current):
            _use(seat, name)
            found += self._find(seat)
            self._done += 1
        _use(seat, current)
        return found

    def _progress(self, share: float) -> None:
        self.share = (self._done + share) / self._count


def _use(seat: Seat, name: str) -> None:
    if seat.look(lambda session: session.state).type != name:
        seat.do(lambda session: session.use(name))
