"""A folder that one process writes into at a time.

The lock is a file `.lock` in the folder, held by `flock`: the system lets go of it when the process ends, however it
ends. The file says who has it. Where a file system knows no such locks, the process that the file names is looked for;
on another machine it cannot be found, and one line says so.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAME = ".lock"
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class FolderLock:
    """Holds a folder until it is released.

    Args:
        folder: Made if it is missing.

    Raises:
        ValueError: If another process, or another part of this one, has it.
        OSError: If the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / NAME
        self._made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            self._file = self._open()
            if self._is_ours():
                break
            os.close(self._file)  # its holder removed it between our two steps: there is a new one
        self._process = os.getpid()
        _HOLDERS.append(self)
        self._write(json.dumps({"process": self._process, "host": socket.gethostname()}))

    def release(self) -> None:
        """Let others have the folder, and remove it where it was made for nothing; twice does no harm."""
        if self._file < 0:
            return
        if self._is_ours():
            self._path.unlink(missing_ok=True)
        self.forget()
        if self._made:  # and nothing was written: what was refused leaves nothing behind
            with suppress(OSError):
                self.folder.rmdir()

    def forget(self) -> None:
        """Close the file without giving the folder up: what a forked process does, of which the parent holds it."""
        os.close(self._file)
        self._file = -1
        _HOLDERS.remove(self)

    def _open(self) -> int:
        other = f"{self._path} is no regular file; remove it, or choose another folder."
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            if error.errno in (errno.EISDIR, errno.ELOOP, errno.ENXIO):  # a folder, a link, a socket
                raise ValueError(other) from error
            raise
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise ValueError(other)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._refuse_holder(file, known=error.errno in _HELD)
        except BaseException:
            os.close(file)
            raise
        return file

    def _refuse_holder(self, file: int, *, known: bool) -> None:
        """Refuse a folder that another process has; where locks are not known, so far as the file tells.

        Raises:
            ValueError: If another process has it.
        """
        holder = _read(file)
        process, host = holder.get("process"), holder.get("host")
        here = host == socket.gethostname()
        who = f"process {process} on {host}" if process else "another process"
        who = "this process, elsewhere" if here and process == os.getpid() else who
        if known or (here and isinstance(process, int) and process != os.getpid() and _runs(process)):
            raise ValueError(f"{self.folder} is being written by {who}; wait until it ends, or choose another folder.")
        where = f"; {who} may be writing there" if process and not here else ""
        warnings.warn(
            f"{self.folder} cannot be locked on this file system{where}; let no other process write into it.",
            stacklevel=4,
        )

    def _is_ours(self) -> bool:
        """Tell whether the file that we hold still stands in the folder."""
        try:
            return os.path.samestat(os.fstat(self._file), self._path.lstat())
        except FileNotFoundError:
            return False

    def _write(self, text: str) -> None:
        """Say who holds it, but never over what somebody else has put there."""
        if os.fstat(self._file).st_size and not _read(self._file):
            return
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text.encode(), 0)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder within a block; raises as `FolderLock` does."""
    lock = FolderLock(folder)
    try:
        yield
    finally:
        lock.release()


_HOLDERS: list[FolderLock] = []


def _read(file: int) -> dict[str, Any]:
    try:
        content = json.loads(os.pread(file, 1000, 0))
    except (ValueError, RecursionError):
        return {}
    whole = isinstance(content, dict) and type(content.get("process")) is int and type(content.get("host")) is str
    return content if whole else {}


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is somebody else's
        return True
    return True


def _forget_all() -> None:
    for lock in [*_HOLDERS]:
        lock.forget()


os.register_at_fork(after_in_child=_forget_all)  # a data worker that outlives its training must not hold its folder
