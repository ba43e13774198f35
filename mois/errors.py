"""Errors about bad input, each in one line. Names of files and people are shown as they are."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager


def without_control_codes(text: str) -> str:
    """Return a text with its control codes replaced by their numbers. Line breaks and tabs stay."""
    if text.isprintable():
        return text
    return "".join(
        sign if sign in "\n\t" or unicodedata.category(sign) not in ("Cc", "Cf", "Cs") else _escaped(sign)
        for sign in text
    )


def as_text(name: str) -> str:
    """Return the name of a file as valid Unicode, as JSON needs. Bytes that are no UTF-8 become a replacement sign."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")


_LONGEST_LINE = 1800
"""Largest number of characters in a message. A damaged file may hold a name of many thousands."""


class DataError(ValueError):
    """A file or a dataset that cannot be used. The message is one line with the name and the cure."""


@contextmanager
def told_where(where: str) -> Iterator[None]:
    """Begin the message of an error about bad input with what was at work, such as an entry of a list.

    Raises:
        ValueError: If the block raises one. A `DataError` stays one.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def one_line(text: str) -> str:
    """Return the text without line breaks and runs of blanks. A very long text is cut in its middle."""
    line = without_control_codes(" ".join(text.split()))
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 300]} ... {line[-200:]}"
