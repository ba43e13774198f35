"""Reads JSON that anybody may have written: as a value of a declared type, or refused in one line.

`json.loads` accepts NaN, repeated keys and any depth. A missing key of a dict raises a KeyError. Here a text becomes a
value of a declared type (a dataclass, or a type of `typing`), or a DataError that names the file and the place in it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mois.errors import DataError
from mois.files.atomic import read_regular

Record = TypeVar("Record")
MOST_BYTES = 64 << 20
DEEPEST_NESTING = 40
"""Largest number of lists and objects inside each other. Our own records have 8 at most."""
SHOWN_CHARACTERS = 60
"""Largest number of characters of a wrong value in a message."""
DIGEST = "sha256"
"""Key of a record that holds the digest of all other keys."""
_ADAPTERS: dict[Any, TypeAdapter[list[Any]]] = {}
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
_CURE = "give another file"


def read_record(path: Path, kind: type[Record], cure: str = _CURE, most_bytes: int = MOST_BYTES) -> Record:
    """Return the content of a JSON file as a value of a type.

    Args:
        path: A regular file.
        kind: A dataclass, or a type such as `dict[str, float]`.
        cure: End of the message about a bad file.
        most_bytes: Largest size; a larger file is refused unread.

    Raises:
        DataError: If the file is no regular file, too large, no JSON, or of another type.
        FileNotFoundError: If the file does not exist.
    """
    return as_record(parse_json(read_regular(path, most_bytes), str(path), cure), kind, str(path), cure)


def read_json(path: Path, cure: str = _CURE, most_bytes: int = MOST_BYTES) -> Any:
    """Return the content of a JSON file without a check of its types. Raises the errors of `read_record`."""
    return parse_json(read_regular(path, most_bytes), str(path), cure)


def parse_json(content: bytes | str, name: str, cure: str = _CURE) -> Any:
    """Return the value of a JSON text with finite numbers, distinct keys and valid Unicode.

    Args:
        content: The text; bytes are UTF-8, with or without a byte order mark.
        name: Name of the file, for messages.
        cure: End of the message.

    Raises:
        DataError: If the text is no such JSON.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_unique)
        if _is_deep(value):
            raise DataError(f"more than {DEEPEST_NESTING} lists and objects inside each other")
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no valid text
    except RecursionError as error:
        raise DataError(f"{name} is no JSON that can be read (too many objects inside each other); {cure}.") from error
    except ValueError as error:
        raise DataError(f"{name} is cut short or no JSON ({_reason(error)}); {cure}.") from error
    return value


def as_record(
    plain: Any,
    kind: type[Record],
    name: str,
    cure: str = _CURE,
    *,
    later: Collection[str] = (),
    complete: bool = True,
) -> Record:
    """Return plain JSON values as a value of a type.

    Args:
        plain: The value that `parse_json` returned.
        kind: A dataclass, or a type such as `dict[str, float]`. Numbers, texts and truth values are not converted.
        name: Name of the file, for messages.
        cure: End of the message.
        later: Keys, joined by dots, that older files may lack. They take the default of the dataclass.
        complete: Whether all other keys must be present, even keys with a default.

    Raises:
        DataError: If the value is of another type; the message names the first wrong place.
    """
    try:
        record = _adapter(kind).validate_json(json.dumps([plain], allow_nan=False))[0]
    except ValidationError as error:
        raise DataError(f"{name}: {_first_fault(error)}; {cure}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is no record of this program ({_reason(error)}); {cure}.") from error
    whole = json.loads(_adapter(kind).dump_json([record]))[0] if complete else None
    for missing in _missing(whole, plain):
        if missing not in later:
            raise DataError(f"{name} lacks {missing[: 4 * SHOWN_CHARACTERS]}; {cure}.")
    return record  # type: ignore[no-any-return]


def digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record without its key `DIGEST`. The order and layout of the keys play no part.

    Raises:
        DataError: If a number in it is not finite.
    """
    rest = {key: value for key, value in content.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record and its digest as plain JSON values. All keys become strings, as after writing and reading.

    Raises:
        ValueError: If a number in it is not finite.
    """
    plain = json.loads(json.dumps(content, allow_nan=False))
    return {**plain, DIGEST: digest(plain)}


def check_seal(content: Mapping[str, Any], name: str, cure: str = _CURE) -> None:
    """Refuse a record that was changed after it was written.

    Raises:
        DataError: If its digest is missing, or does not fit its content.
    """
    if DIGEST not in content:
        raise DataError(f"{name} lacks {DIGEST}; {cure}.")
    if content[DIGEST] != digest(content):
        raise DataError(f"{name} was changed after it was written (its {DIGEST} is that of something else); {cure}.")


def _adapter(kind: Any) -> TypeAdapter[list[Any]]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(list[kind], config=_STRICT)  # a list passes its settings to a dataclass
    return _ADAPTERS[kind]


def _no_number(word: str) -> float:
    raise DataError(f"{word} is no number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise DataError(f"{text[:SHOWN_CHARACTERS]} is too large for a number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"the key {twice[:SHOWN_CHARACTERS]!r} stands there twice")
    return unique


def _is_deep(value: Any) -> bool:
    """Tell whether more than `DEEPEST_NESTING` lists and objects stand inside each other."""
    level = [value]
    for _ in range(DEEPEST_NESTING + 1):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [each for some in inner for each in some if isinstance(each, dict | list)]
        if not level:
            return False
    return True


def _missing(whole: Any, plain: Any, prefix: str = "") -> Iterator[str]:
    """Yield the keys of a record that are in `whole` but not in `plain`."""
    if isinstance(whole, dict) and isinstance(plain, dict):
        for key, value in whole.items():
            if key not in plain:
                yield f"{prefix}{key}"
            else:
                yield from _missing(value, plain[key], f"{prefix}{key}.")
    elif isinstance(whole, list) and isinstance(plain, list):
        for number, (one, other) in enumerate(zip(whole, plain, strict=False)):
            yield from _missing(one, other, f"{prefix}{number}.")


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    place = ".".join(str(part)[:SHOWN_CHARACTERS] for part in fault["loc"][1:])  # without the position in the list
    if fault["type"] in ("missing", "missing_argument"):
        return f"lacks {place}"
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"holds {place}, which this version does not know"
    given = repr(fault["input"])
    given = given if len(given) <= SHOWN_CHARACTERS else f"{given[:SHOWN_CHARACTERS]}..."
    reason = fault["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    return f"{place or 'the whole'} is {given}: {reason}"


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
