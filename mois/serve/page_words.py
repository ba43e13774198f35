"""Refusals of a session in the words of the page, whose reader has keys and a list instead of Python's arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

_CHOOSE = r"choose lesion \1 in the list and press C to correct it, or take the place out of it first (hold Shift)"
_WORDS = (
    (r"point_lps_mm=\[[^\]]*\] lies in lesion (\d+); give lesion=.*", rf"this place lies in lesion \1; {_CHOOSE}."),
    (r"points_lps_mm: the scribble crosses lesion (\d+); give .*", rf"the scribble crosses lesion \1; {_CHOOSE}."),
    (
        r"point_lps_mm=\[[^\]]*\]: a negative click outside every lesion; name a lesion\.",
        "a negative click outside every lesion; choose a lesion in the list and press C first.",
    ),
    (r"lesion=(\d+) is locked; unlock it first\.", r"lesion \1 is locked; choose it and press L to unlock it."),
    (r"lesion=(\d+) does not exist;", r"lesion \1 does not exist;"),
    (r"click in the lesion, or give its mask\.", "click in the lesion instead."),
)
"""Messages of `mois.session.workbench` as patterns, and what the page says. The keys are those of web/keys.js."""


def page_words(message: str) -> str:
    """Return a message of a session in the words of the page; other messages as they are."""
    for pattern, words in _WORDS:
        message = re.sub(pattern, words, message)
    return message


@contextmanager
def in_page_words() -> Iterator[None]:
    """Say what a session refuses in the words of the page."""
    try:
        yield
    except ValueError as error:
        raise ValueError(page_words(str(error))) from error
