"""Files that are whole or not there: nobody finds half a result, however a process ends.

What stands at a path may have been put there by anybody: only regular files are read, and only regular files are
replaced. A temporary file has a name that nobody can guess, and is never opened through a link.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import time
import unicodedata
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from mois.errors import DataError

_ABANDONED_S = 3600


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield another name beside a file; what is written there takes the file's place when the block ends well.

    The file gets the permissions that the user's umask leaves, whatever the block's writer gave it.

    Args:
        path: What readers will find; its folder is made, an older file is replaced.

    Raises:
        ValueError: If something stands there that is no regular file: a folder, a device, a pipe or a link.
        OSError: If the system refuses it, as on a full disk; its file name is this path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _refuse_other(path, stat.S_IFREG)
    part = _beside(path, "part")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
        allowed = stat.S_IMODE(part.stat().st_mode)
        with naming(path, part):
            yield part
        if stat.S_IMODE(part.stat().st_mode) != allowed:  # safetensors makes files that their owner alone can read
            part.chmod(allowed)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path, own: Collection[str]) -> Iterator[Path]:
    """Yield a new folder beside another; it takes that one's place when the block ends well.

    Args:
        folder: What readers will find.
        own: Names in it that are replaced or go; what else stands in the older folder, such as notes, is kept.

    Raises:
        ValueError: If something stands there that is no folder: a file, a device, a pipe or a link.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _refuse_other(folder, stat.S_IFDIR)
    part, old = _beside(folder, "part"), _beside(folder, "old")
    part.mkdir()
    try:
        yield part
        if folder.exists():
            folder.rename(old)
        try:
            for path in old.iterdir() if old.exists() else ():
                if path.name not in own:
                    path.rename(part / path.name)
            part.rename(folder)
        except BaseException:
            for path in [path for path in part.iterdir() if path.name not in own] if old.exists() else ():
                path.rename(old / path.name)
            if old.exists():
                old.rename(folder)
            raise
    finally:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)  # follows no link


def read_regular(path: Path, most_bytes: int | None = None) -> bytes:
    """Return what a regular file holds; a pipe or a device, which might never end, is not waited for.

    Args:
        path: May be a link to a regular file.
        most_bytes: Size from which the file is refused unread; None takes any.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no regular file, or too large.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most_bytes is not None and size > most_bytes:
            raise ValueError(f"{path} has {size} bytes, of {most_bytes} at most; give another file.")
        return file.read()


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to be read; a pipe or a device is not waited for.

    Args:
        path: May be a link to a regular file.

    Raises:
        FileNotFoundError: If there is no such file.
        DataError: If it is no regular file.
    """
    mode = path.stat().st_mode  # a socket cannot be opened
    if stat.S_ISREG(mode):
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        mode = os.fstat(handle).st_mode
        if stat.S_ISREG(mode):
            return os.fdopen(handle, "rb")
        os.close(handle)
    raise DataError(f"{path} is a {_kind(mode)}, not a regular file; give another path.")


@contextmanager
def naming(path: Path, part: Path | None = None) -> Iterator[None]:
    """Let the system's errors name the file that was to be written, where they know none or its unfinished part."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and str(error.filename) in ("None", str(part or path)):
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _beside(path: Path, ending: str) -> Path:
    """Return a name in the same folder that nobody can guess; it begins with a dot and ends like the path."""
    return path.with_name(f".{path.name[-40:]}.{uuid.uuid4().hex}.{ending}")


def _refuse_other(path: Path, kind: int) -> None:
    """Refuse to write over what is of another kind than a file (or folder) of ours.

    Raises:
        ValueError: If something else stands there.
    """
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if stat.S_IFMT(mode) != kind:
            raise ValueError(
                f"{path} is a {_kind(mode)}, which is not written over; remove it, or choose another path."
            )


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "folder",
        stat.S_IFLNK: "symbolic link",
        stat.S_IFIFO: "pipe",
        stat.S_IFSOCK: "socket",
    }
    return kinds.get(stat.S_IFMT(mode), "device")


def refuse_links(folder: Path, parts: Sequence[str] = ("",)) -> None:
    """Refuse a folder in which a link leads out of it: what it points to is not part of it.

    Args:
        folder: Itself may be a link.
        parts: Folders within it that are looked at; "" is the folder itself.

    Raises:
        DataError: Naming the first such link.
    """
    inside = folder.resolve()
    for part in parts:
        with suppress(FileNotFoundError, NotADirectoryError):
            for path in sorted((folder / part).iterdir()):
                if path.is_symlink() and not path.resolve().is_relative_to(inside):
                    raise DataError(f"{path} is a link that leads out of {folder}; copy what it points to instead.")


def one_form(name: str) -> str:
    """Return a name with each letter as one sign: macOS and some programs write an accent as a sign of its own."""
    return unicodedata.normalize("NFC", name)


def named(path: Path) -> Path:
    """Return the file of a name, in whichever form its letters are written; the path itself where there is none."""
    if path.name.isascii() or path.exists() or not path.parent.is_dir():
        return path
    wanted = one_form(path.name)
    return next((file for file in sorted(path.parent.iterdir()) if one_form(file.name) == wanted), path)


def is_abandoned(part: Path) -> bool:
    """Tell whether an unfinished file of `whole_file` is so old that whoever wrote it was killed.

    Raises:
        FileNotFoundError: If it is finished by now.
    """
    return part.suffix == ".part" and time.time() - part.stat().st_mtime > _ABANDONED_S


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all, and wait until it is on the disk."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes, whole or not at all, and wait until they are on the disk."""
    with whole_file(path) as part, part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a regular file's content."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
