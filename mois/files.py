"""Files that are whole or not there: nobody finds half a result, however a process ends."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ABANDONED_S = 3600


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield another name beside a file; what is written there takes the file's place when the block ends well.

    Args:
        path: What readers will find; its folder is made, an older file is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def is_abandoned(part: Path) -> bool:
    """Tell whether an unfinished file of `whole_file` is so old that whoever wrote it was killed.

    Raises:
        FileNotFoundError: If it is finished by now.
    """
    return part.suffix == ".part" and time.time() - part.stat().st_mtime > _ABANDONED_S


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes, whole or not at all."""
    with whole_file(path) as part:
        part.write_bytes(content)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
