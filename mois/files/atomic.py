"""Writes files whole or not at all: no reader finds half a result, however a process ends.

Anybody may have put something at a path. So only regular files are read, and only regular files are replaced. A
temporary file has a name that nobody can guess, and is never opened through a link.
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
from mois.machine.system_calls import open_flags

_ABANDONED_S = 3600


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file. It replaces the file at `path` when the block ends without an error.

    The file gets the permissions of the umask of the user, even if the writer sets other permissions.

    Args:
        path: Path of the file. Its folder is made, and an older file is replaced.

    Raises:
        ValueError: If the path holds a folder, a device, a pipe or a link.
        OSError: If the system refuses to write, as on a full disk. The error names this path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _refuse_other(path, stat.S_IFREG)
    part = _beside(path, "part")
    try:
        os.close(os.open(part, open_flags("O_WRONLY", "O_CREAT", "O_EXCL", "O_NOFOLLOW"), 0o666))
        allowed = stat.S_IMODE(part.stat().st_mode)
        with naming(path, part):
            yield part
        if stat.S_IMODE(part.stat().st_mode) != allowed:  # safetensors makes files that only their owner can read
            part.chmod(allowed)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path, own: Collection[str]) -> Iterator[Path]:
    """Yield a temporary folder. It replaces `folder` when the block ends without an error.

    Args:
        folder: Path of the folder.
        own: Names of files that are replaced or deleted. Other files of the older folder, such as notes, are kept.

    Raises:
        ValueError: If the path holds a file, a device, a pipe or a link.
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
    """Return the content of a regular file. Pipes and devices are refused, because they might never end.

    Args:
        path: Path of the file, or of a link to it.
        most_bytes: Largest size; a larger file is refused unread. None allows any size.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the path holds no regular file, or the file is too large.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most_bytes is not None and size > most_bytes:
            raise ValueError(f"{path} has {size} bytes, of {most_bytes} at most; give another file.")
        return file.read()


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading. Pipes and devices are refused without a wait.

    Args:
        path: Path of the file, or of a link to it.

    Raises:
        FileNotFoundError: If the file does not exist.
        DataError: If the path holds no regular file.
    """
    mode = path.stat().st_mode  # a socket cannot be opened
    if stat.S_ISREG(mode):
        handle = os.open(path, open_flags("O_RDONLY", "O_NONBLOCK", "O_CLOEXEC"))
        mode = os.fstat(handle).st_mode
        if stat.S_ISREG(mode):
            return os.fdopen(handle, "rb")
        os.close(handle)
    raise DataError(f"{path} is a {_kind(mode)}, not a regular file; give another path.")


@contextmanager
def naming(path: Path, part: Path | None = None) -> Iterator[None]:
    """Make errors of the system name `path`, if they name no file or the temporary file `part`."""
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
    """Return a path in the same folder with a name that nobody can guess: dot, name, random digits, ending."""
    return path.with_name(f".{path.name[-40:]}.{uuid.uuid4().hex}.{ending}")


def _refuse_other(path: Path, kind: int) -> None:
    """Refuse to replace anything that is not of this kind: a regular file, or a folder.

    Raises:
        ValueError: If the path holds another kind.
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
    """Refuse a folder that holds a link to a place outside of it.

    Args:
        folder: The folder. It may be a link itself.
        parts: Folders within it that are searched; "" is the folder itself.

    Raises:
        DataError: If there is such a link; the message names the first.
    """
    inside = folder.resolve()
    for part in parts:
        with suppress(FileNotFoundError, NotADirectoryError):
            for path in sorted((folder / part).iterdir()):
                if path.is_symlink() and not path.resolve().is_relative_to(inside):
                    raise DataError(f"{path} is a link that leads out of {folder}; copy its target there instead.")


def one_form(name: str) -> str:
    """Return a name in Unicode form NFC: each accented letter is one sign. macOS stores the accent as a second sign."""
    return unicodedata.normalize("NFC", name)


def named(path: Path) -> Path:
    """Return the file with this name in any Unicode form; the path itself if there is no such file."""
    if path.name.isascii() or path.exists() or not path.parent.is_dir():
        return path
    normal_name = one_form(path.name)
    return next((file for file in sorted(path.parent.iterdir()) if one_form(file.name) == normal_name), path)


def is_abandoned(part: Path) -> bool:
    """Return whether a temporary file of `whole_file` is so old that its writer must have been killed.

    Raises:
        FileNotFoundError: If the file was finished in the meantime.
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
