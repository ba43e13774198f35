"""JSON that was written by anybody: read as it stands, compared with what it must hold, or refused in one line.

`json.loads` takes NaN, keys that stand there twice and any depth; a dict that is read with `[...]` fails with a
KeyError. Here a text becomes a value of a declared type (a dataclass, or types of `typing`), or a DataError that names
the file and the place in it.
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
SHOWN = 60
"""Characters of a wrong value that a message shows."""
DIGEST = "sha256"
"""Key of a record under which the digest of all its other keys stands."""
_ADAPTERS: dict[Any, TypeAdapter[list[Any]]] = {}
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
_CURE = "give another file"


def read_record(path: Path, kind: type[Record], cure: str = _CURE, most_bytes: int = MOST_BYTES) -> Record:
    """Return what a JSON file holds, as a value of a type.

    Args:
        path: A regular file.
        kind: A dataclass, or a type such as `dict[str, float]`.
        cure: End of the message where it does not hold that.
        most_bytes: Size from which the file is refused unread.

    Raises:
        DataError: If it is no regular file, too large, no JSON, or holds something else.
        FileNotFoundError: If there is no such file.
    """
    return as_record(parse_json(read_regular(path, most_bytes), str(path), cure), kind, str(path), cure)


def read_json(path: Path, cure: str = _CURE, most_bytes: int = MOST_BYTES) -> Any:
    """Return what a JSON file holds, its types unchecked; raises as `read_record` does."""
    return parse_json(read_regular(path, most_bytes), str(path), cure)


def parse_json(content: bytes | str, name: str, cure: str = _CURE) -> Any:
    """Return what a JSON text holds: numbers are finite, no key stands twice in an object, texts are Unicode.

    Args:
        content: The text; bytes are UTF-8, with or without a byte order mark.
        name: Of the file, for messages.
        cure: End of a message.

    Raises:
        DataError: If it is not such a text.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_unique)
        if _is_deep(value):
            raise DataError(f"more than {DEEPEST_NESTING} lists and objects inside each other")
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a pair of surrogates is no text
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
    """Return plain JSON values as a value of a type, every key of which is there.

    Args:
        plain: What `parse_json` gave.
        kind: A dataclass, or a type such as `dict[str, float]`. Numbers, texts and truth values are not mixed up.
        name: Of the file, for messages.
        cure: End of a message.
        later: Keys, with dots between them, that files of this format may lack; they take the dataclass's default.
        complete: Whether all others have to be there, those with a default included.

    Raises:
        DataError: Naming the first place that is wrong.
    """
    try:
        made = _adapter(kind).validate_json(json.dumps([plain], allow_nan=False))[0]
    except ValidationError as error:
        raise DataError(f"{name}: {_first_fault(error)}; {cure}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is no record of this program ({_reason(error)}); {cure}.") from error
    whole = json.loads(_adapter(kind).dump_json([made]))[0] if complete else None
    for missing in _missing(whole, plain):
        if missing not in later:
            raise DataError(f"{name} lacks {missing[: 4 * SHOWN]}; {cure}.")
    return made  # type: ignore[no-any-return]


def digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record, whatever the order and layout of its keys; that of `DIGEST` is left out.

    Raises:
        DataError: If a number in it is not finite.
    """
    rest = {key: value for key, value in content.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with its digest, as a reader of its JSON finds it: keys are texts there.

    Raises:
        ValueError: If a number in it is not finite.
    """
    plain = json.loads(json.dumps(content, allow_nan=False))
    return {**plain, DIGEST: digest(plain)}


def check_seal(content: Mapping[str, Any], name: str, cure: str = _CURE) -> None:
    """Refuse a record that is not as it was written.

    Raises:
        DataError: If its digest is missing or is that of something else.
    """
    if DIGEST not in content:
        raise DataError(f"{name} lacks {DIGEST}; {cure}.")
    if content[DIGEST] != digest(content):
        raise DataError(f"{name} was changed after it was written (its {DIGEST} is that of something else); {cure}.")


def _adapter(kind: Any) -> TypeAdapter[list[Any]]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(list[kind], config=_STRICT)  # a list hands its settings down to a dataclass
    return _ADAPTERS[kind]


def _no_number(word: str) -> float:
    raise DataError(f"{word} is no number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise DataError(f"{text[:SHOWN]} is too large for a number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"the key {twice[:SHOWN]!r} stands there twice")
    return made


def _is_deep(value: Any) -> bool:
    """Tell whether more than `DEEPEST_NESTING` lists and objects stand inside each other."""
    level = [value]
    for _ in range(DEEPEST_NESTING + 1):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [each for some in inner for each in some if isinstance(each, dict | list)]
        if not level:
            return False
    return True


def _missing(whole: Any, plain: Any, place: str = "") -> Iterator[str]:
    """Yield the keys of a record that stand in `whole` but not in `plain`."""
    if isinstance(whole, dict) and isinstance(plain, dict):
        for key, value in whole.items():
            if key not in plain:
                yield f"{place}{key}"
            else:
                yield from _missing(value, plain[key], f"{place}{key}.")
    elif isinstance(whole, list) and isinstance(plain, list):
        for number, (one, other) in enumerate(zip(whole, plain, strict=False)):
            yield from _missing(one, other, f"{place}{number}.")


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    place = ".".join(str(part)[:SHOWN] for part in fault["loc"][1:])  # behind the place in the list
    if fault["type"] in ("missing", "missing_argument"):
        return f"lacks {place}"
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"holds {place}, which this version does not know"
    given = repr(fault["input"])
    given = given if len(given) <= SHOWN else f"{given[:SHOWN]}..."
    reason = fault["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    return f"{place or 'the whole'} is {given}: {reason}"


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
