"""Names of files and people as a terminal may show them: as they are, never as commands to it."""

from __future__ import annotations

import sys
import unicodedata


def shown(text: str) -> str:
    """Return a text without control codes, which are shown as numbers; line breaks and tabs stay."""
    if text.isprintable():
        return text
    return "".join(
        sign if sign in "\n\t" or unicodedata.category(sign) not in ("Cc", "Cf", "Cs") else _escaped(sign)
        for sign in text
    )


def as_text(name: str) -> str:
    """Return the name of a file as text: bytes that are no UTF-8 become the sign for an unknown one, as JSON needs."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def accept_all_signs() -> None:
    """Let what the terminal's encoding has no sign for be written in words, instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")
