"""A propagation of a session in parts, so that a server can answer clicks between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mois.inference.search import Search
from mois.session import InteractiveSession


def prepare_propagation(session: InteractiveSession) -> Iterator[float]:
    """Compute what the next `propagate` of a session will find, part by part, and yield the share that is done.

    The session does not change. Actions between two parts are allowed: if one of them changes the exemplars, the
    search begins again with the new ones, and the share goes back to 0.
    """
    while True:
        on_scan, shown = session._bench.on_scan, session._shown  # of the current type of lesions
        exemplars = list(shown.exemplars.values())
        search = Search(on_scan.segmenter, on_scan.encoded, [on_scan.exemplars_in_use(shown)[1]])
        for share in search.parts(tile_by_tile=True):
            if not _same(exemplars, list(session._shown.exemplars.values())):
                break
            yield min(share, 0.99)
        else:
            on_scan.answer(session._shown, search.answers[0])
            yield 1.0
            return
        yield 0.0


def _same(before: Sequence[object], now: Sequence[object]) -> bool:
    return len(before) == len(now) and all(one is other for one, other in zip(before, now, strict=True))
