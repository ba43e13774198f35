"""Writes CSV tables that are safe in spreadsheets: a text is never run as a formula.

A spreadsheet takes a cell that begins with =, +, - or @ as a formula, and may run it. The name of a file may begin so.
Such a cell gets an apostrophe in front, which marks text in spreadsheets. `plain` takes it off again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any] | Sequence[Any]]) -> str:
    """Return rows as CSV text under the columns. A missing value is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([cell(name) for name in columns])
    for row in rows:
        values = [row.get(name) for name in columns] if isinstance(row, Mapping) else row
        writer.writerow([cell(value) for value in values])
    return text.getvalue()


def cell(value: Any) -> Any:
    """Return the cell for a value. A text that a spreadsheet would run gets an apostrophe in front."""
    if not isinstance(value, str) or not value.lstrip(" '").startswith(_FORMULA) or _is_number(value):
        return value
    return f"'{value}"


def plain(text: str) -> str:
    """Return the text from which `cell` made this cell."""
    return text[1:] if text.startswith("'") and cell(text[1:]) == text else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
