"""Reads text files that people write or export, in the usual encodings; other files are refused in one line."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mois.errors import DataError
from mois.files.atomic import read_regular
from mois.files.json_records import MOST_BYTES, parse_json

_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks. Excel and Notepad write them."""

_BINARY_FORMATS = (
    (b"\x1f\x8b", "a gzip file (an image?)"),
    (b"PK\x03\x04", "a zip archive (an Excel workbook?)"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a picture"),
)
_CURE = "save it as UTF-8 (Excel: CSV UTF-8)"


class Table(NamedTuple):
    """The content of a CSV file.

    Attributes:
        columns: Names of the columns, without blanks around them.
        rows: Cells by the name of their column, without blanks around them. A missing cell is "".
        lines: Number of the last line of each row in the file, from 1.
    """

    columns: list[str]
    rows: list[dict[str, str]]
    lines: list[int]


def read_text(path: Path, *, plain: bool = False) -> str:
    """Return the text of a file: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Args:
        path: A regular file.
        plain: Whether the file must be UTF-8, because another program reads it too.

    Raises:
        OSError: If the file cannot be opened.
        DataError: If the file has another encoding, is no text, or is no regular file.
    """
    try:
        content = read_regular(path, MOST_BYTES)
    except ValueError as error:  # a pipe, a folder, or far too large
        raise DataError(str(error)) from error
    if called := next((name for start, name in _BINARY_FORMATS if content.startswith(start)), None):
        raise DataError(f"{path}: is {called}, no text; give a text file, or export it as one.")
    allowed_marks = _MARKS[:1] if plain else _MARKS
    mark, encoding = next(((mark, name) for mark, name in allowed_marks if content.startswith(mark)), (b"", "utf-8"))
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        place = error.start + len(mark)
        raise DataError(f"{path}: byte {place} ({content[place]:#04x}) is no {encoding.upper()}; {_CURE}.") from error
    if "\0" in text:
        place = content.index(b"\0", len(mark))
        raise DataError(f"{path}: byte {place} is 0, so it is no text, or UTF-16 without its mark; {_CURE}.")
    return text


def as_yaml(value: Any) -> str:
    """Return a plain value as JSON on one line that YAML reads as the same value.

    YAML takes a pair of JSON's escapes (a rare letter or a picture in a name) for two characters, and refuses control
    codes as they are. So letters stay as they are, and only what YAML refuses is escaped.
    """
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: If the file cannot be opened.
        DataError: If the file is no text or no JSON (`mois.files.json_records.parse_json`).
    """
    text = read_text(path)
    if not text.strip():
        raise DataError(f"{path}: is empty; copy it again from its source.")
    return parse_json(text, str(path), "correct that place")


def read_table(path: Path) -> Table:
    """Return a CSV table. Its first line names the columns; commas, semicolons, tabs or bars separate the cells.

    Raises:
        OSError: If the file cannot be opened.
        DataError: If the file is no text or no table.
    """
    text = read_text(path)
    text = text if "\n" in text else text.replace("\r", "\n")
    hint, _, rest = text.partition("\n")
    skipped = 0
    if hint.strip().startswith("sep=") and len(hint.strip()) == 5:  # Excel writes the separator in the first line
        delimiter, text, skipped = hint.strip()[4], rest, 1
    else:
        header = next((line for line in text.splitlines() if line.strip()), "")
        delimiter = max(",;\t|", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    columns: list[str] = []
    rows: list[dict[str, str]] = []
    lines: list[int] = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if not any(stripped):
                continue
            line = reader.line_num + skipped
            if not columns:
                columns = _columns(path, stripped)
                continue
            if any(stripped[len(columns) :]):
                raise DataError(
                    f"{path}: line {line} has {len(stripped)} cells, its header {len(columns)}; correct that line "
                    "(a comma in a cell needs quotes around it)."
                )
            rows.append(dict(zip(columns, [*stripped, *[""] * len(columns)], strict=False)))
            lines.append(line)
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num + skipped}: {error}; correct that line.") from error
    if not columns:
        raise DataError(f"{path}: is empty; its first line names the columns, each other one is a row.")
    return Table(columns, rows, lines)


def _columns(path: Path, names: Sequence[str]) -> list[str]:
    while names and not names[-1]:  # Excel leaves separators at the end
        names = names[:-1]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: column {twice[0]!r} stands twice in its header; rename one.")
    return list(names)
