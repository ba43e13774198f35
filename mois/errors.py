"""Errors about bad input, each in one line, and words of messages. Names of files and people are shown as they are."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args, get_origin, get_type_hints


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


def counted(count: int, noun: str) -> str:
    """Return a number of things in words.

    Examples:
        >>> counted(1, "scan"), counted(2, "scan")
        ('1 scan', '2 scans')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(names: Sequence[object]) -> str:
    """Return the first five names, and three dots if there are more.

    Examples:
        >>> listed(["sub-01", "sub-02"]), listed(range(6))
        ('sub-01, sub-02', '0, 1, 2, 3, 4, ...')
    """
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")


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


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Refuse a value that is none of the choices.

    Args:
        name: Name of the setting, such as inference.level.
        value: Its value.
        choices: What it may be.

    Raises:
        ValueError: If it is another one.

    Examples:
        >>> check_choice("inference.window", "on", ("off", "auto"))
        Traceback (most recent call last):
        ValueError: inference.window='on' is unknown; choose off or auto.
    """
    if value not in choices:
        *first, last = map(str, choices)
        raise ValueError(f"{name}={value!r} is unknown; choose {' or '.join(filter(None, (', '.join(first), last)))}.")


def check_choices(settings: object, prefix: str) -> None:
    """Refuse fields of a dataclass whose type is a `Literal`, if their values are none of it.

    The command line checks types itself; from Python a misspelt word would be taken for another one.

    Args:
        settings: The dataclass.
        prefix: Where its fields are in a config, such as inference.

    Raises:
        ValueError: If a value is none of the choices; the message names all of them.
    """
    for name, choices in _choices_of(type(settings)):
        check_choice(f"{prefix}.{name}", getattr(settings, name), choices)


def _choices_of(kind: type) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Yield each field of a class that is a `Literal`, or a `Literal` or None, with what it may be."""
    for name, hint in get_type_hints(kind).items():
        parts = [hint] if get_origin(hint) is Literal else get_args(hint)
        if any(get_origin(part) is Literal for part in parts):
            yield name, tuple(choice for part in parts for choice in (get_args(part) or (None,)))


def one_line(text: str) -> str:
    """Return the text without line breaks and runs of blanks. A very long text is cut in its middle."""
    line = without_control_codes(" ".join(text.split()))
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 300]} ... {line[-200:]}"
