"""Tables for spreadsheets, in which a name is a name.

A spreadsheet takes a cell that begins with =, +, - or @ for a formula, also one that came from the name of a file, and
may run it. Such a cell gets an apostrophe in front, which spreadsheets take for "this is text"; readers of ours take it
off again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any] | Sequence[Any]]) -> str:
    """Return rows under their columns as CSV; what a row does not have is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([cell(name) for name in columns])
    for row in rows:
        values = [row.get(name) for name in columns] if isinstance(row, Mapping) else row
        writer.writerow([cell(value) for value in values])
    return text.getvalue()


def cell(value: Any) -> Any:
    """Return what is written for a value: a text that a spreadsheet would run is marked as text."""
    if not isinstance(value, str) or not value.lstrip(" '").startswith(_FORMULA) or _is_number(value):
        return value
    return f"'{value}"


def plain(text: str) -> str:
    """Return the text that `cell` was given."""
    return text[1:] if text.startswith("'") and cell(text[1:]) == text else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
