"""A folder that one process writes into at a time.

The lock is a file `.lock` in the folder, held by `flock` (on Windows by `msvcrt.locking`). The system releases it when
the process ends in any way. The file names the process that holds it. A file system may not support such locks. Then
the process that the file names is searched on this machine. If the file names another machine, one warning says so.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mois.machine.system_calls import (
    after_fork_in_child,
    lock_file,
    open_flags,
    process_runs,
    read_at,
    write_at,
)

NAME = ".lock"
_FLAGS = open_flags("O_RDWR", "O_CREAT", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK")
_ERRORS_OF_HELD_LOCK = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class FolderLock:
    """Holds a folder until it is released.

    Args:
        folder: The folder; it is made if it is missing.

    Raises:
        ValueError: If another process, or another part of this process, holds the folder.
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
            os.close(self._file)  # its holder removed the file after we opened it: try the new file
        self._process = os.getpid()
        _HOLDERS.append(self)
        self._write(json.dumps({"process": self._process, "host": socket.gethostname()}))

    def release(self) -> None:
        """Release the folder, and remove it if this lock made it and it is empty. A second call does nothing."""
        if self._file < 0:
            return
        if self._is_ours() and sys.platform != "win32":  # Windows removes no open file; there the file stays, unlocked
            self._path.unlink(missing_ok=True)
        self.forget()
        if self._made:  # an empty folder that we made does not stay
            with suppress(OSError):
                self.folder.rmdir()

    def forget(self) -> None:
        """Close the file but keep the lock. A forked process does this, because its parent holds the lock."""
        os.close(self._file)
        self._file = -1
        _HOLDERS.remove(self)

    def _open(self) -> int:
        other = f"{self._path} is no regular file; remove it, or choose another folder."
        if self._path.is_symlink():  # where there is no O_NOFOLLOW
            raise ValueError(other)
        try:
            file = os.open(self._path, _FLAGS, 0o666)
        except OSError as error:
            if error.errno in (errno.EISDIR, errno.ELOOP, errno.ENXIO):  # a folder, a link, a socket
                raise ValueError(other) from error
            raise
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise ValueError(other)
            try:
                lock_file(file)
            except OSError as error:
                self._refuse_holder(file, known=error.errno in _ERRORS_OF_HELD_LOCK)
        except BaseException:
            os.close(file)
            raise
        return file

    def _refuse_holder(self, file: int, *, known: bool) -> None:
        """Refuse a folder that another process holds.

        Args:
            file: The open lock file.
            known: Whether the system said that the lock is held. Otherwise it supports no locks, and the content of
                the file decides.

        Raises:
            ValueError: If another process holds the folder.
        """
        holder = _read(file)
        process, host = holder.get("process"), holder.get("host")
        on_this_machine = host == socket.gethostname()
        holder_name = f"process {process} on {host}" if process else "another process"
        holder_name = "this process, elsewhere" if on_this_machine and process == os.getpid() else holder_name
        other = on_this_machine and isinstance(process, int) and process != os.getpid() and process_runs(process)
        if known or other or _held_here(file):
            raise ValueError(
                f"{self.folder} is being written by {holder_name}; wait until it ends, or choose another folder."
            )
        where = f"; {holder_name} may be writing there" if process and not on_this_machine else ""
        warnings.warn(
            f"{self.folder} cannot be locked on this file system{where}; let no other process write into it.",
            stacklevel=4,
        )

    def _is_ours(self) -> bool:
        """Return whether the file that we hold is still the file in the folder."""
        try:
            return os.path.samestat(os.fstat(self._file), self._path.lstat())
        except FileNotFoundError:
            return False

    def _write(self, text: str) -> None:
        """Write the name of the holder, unless the file has content of somebody else."""
        if os.fstat(self._file).st_size and not _read(self._file):
            return
        os.ftruncate(self._file, 0)
        write_at(self._file, text.encode(), 0)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder during a block. Raises the errors of `FolderLock`."""
    lock = FolderLock(folder)
    try:
        yield
    finally:
        lock.release()


_HOLDERS: list[FolderLock] = []


def _read(file: int) -> dict[str, Any]:
    try:
        content = json.loads(read_at(file, 1000, 0))
    except (ValueError, RecursionError):
        return {}
    whole = isinstance(content, dict) and type(content.get("process")) is int and type(content.get("host")) is str
    return content if whole else {}


def _held_here(file: int) -> bool:
    """Return whether another part of this process holds this file."""
    return any(os.path.samestat(os.fstat(file), os.fstat(lock._file)) for lock in _HOLDERS)


def _forget_all() -> None:
    for lock in [*_HOLDERS]:
        lock.forget()


after_fork_in_child(_forget_all)  # a data worker may outlive its training, and must not hold the folder
