"""Bad input, said in one line, in which a name of a file or a person is shown as it is."""

from __future__ import annotations

import unicodedata


def without_control_codes(text: str) -> str:
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


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")


_LONGEST = 1800
"""Characters of a line that somebody is to read; a damaged file may hold a name of thousands."""


class DataError(ValueError):
    """A file or a dataset that cannot be used: one line that names it and the cure."""


def one_line(text: str) -> str:
    """Return the text without line breaks and runs of blanks; of a very long one, the beginning and the end."""
    line = without_control_codes(" ".join(text.split()))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 300]} ... {line[-200:]}"
