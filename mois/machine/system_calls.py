"""Calls of the operating system that only Linux and macOS have, each with a replacement for other systems.

Sessions use them through this module alone. So they also work where there is no fcntl, os.pread or os.pwrite.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LOCKED_BYTE = 1 << 30
"""Place of the byte that Windows locks: far behind the content, because a locked byte cannot be read."""
_SEEK_LOCK = threading.Lock()
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


_FCNTL, _MSVCRT = _module("fcntl"), _module("msvcrt")


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory(most_bytes: int = 256 << 20) -> bool:
    """Let this process keep memory that it frees, up to a limit, for its next tensors. Return whether the system can.

    Without it, the C library of Linux gives freed memory back above 20 MB or so. The system fills each page with zeros
    when it is used again: a tenth of the CPU time of a search with `LearnedMatching`. Blocks of 32 MiB or more go back
    as before. If the environment says what to keep (MALLOC_TRIM_THRESHOLD_), nothing changes.
    """
    if not sys.platform.startswith("linux") or "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl has not
    return mallopt is not None and bool(mallopt(_TRIM_THRESHOLD, most_bytes) and mallopt(_MMAP_THRESHOLD, 32 << 20))


def open_flags(*names: str) -> int:
    """Return flags of `os.open` by name, such as "O_NOFOLLOW", without those that this system does not have.

    Bytes are never translated: on Windows the flag O_BINARY is added.
    """
    flags = getattr(os, "O_BINARY", 0)
    for name in names:
        flags |= getattr(os, name, 0)
    return flags


def read_at(file: int, size: int, place: int) -> bytes:
    """Return at most `size` bytes of an open file, from byte `place` on."""
    if hasattr(os, "pread"):
        return os.pread(file, size, place)
    with _SEEK_LOCK:
        os.lseek(file, place, os.SEEK_SET)
        return os.read(file, size)


def write_at(file: int, data: bytes | memoryview, place: int) -> int:
    """Write bytes into an open file from byte `place` on, and return how many were written."""
    if hasattr(os, "pwrite"):
        return os.pwrite(file, data, place)
    with _SEEK_LOCK:
        os.lseek(file, place, os.SEEK_SET)
        return os.write(file, data)


def lock_file(file: int) -> None:
    """Lock an open file for this process alone, without a wait. The system unlocks it when the file is closed.

    Raises:
        OSError: If the file is locked (EWOULDBLOCK, EAGAIN or EACCES), or cannot be locked here (ENOTSUP and others).
    """
    if _FCNTL is not None:
        _FCNTL.flock(file, _FCNTL.LOCK_EX | _FCNTL.LOCK_NB)
        return
    if _MSVCRT is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    with _SEEK_LOCK:
        os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
        _MSVCRT.locking(file, _MSVCRT.LK_NBLCK, 1)


def sync_folder(folder: Path) -> None:
    """Wait until the list of files of a folder is on the disk. Windows opens no folders and does without."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def process_runs(process: int) -> bool:
    """Return whether a process of this machine runs. Windows is not asked: there the question would end the process."""
    if sys.platform == "win32":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # the process belongs to another user
        return True
    return True


def after_fork_in_child(call: Callable[[], None]) -> None:
    """Call this in each forked process. Systems that cannot fork do without."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)


class _WindowsMemory(ctypes.Structure):
    """MEMORYSTATUSEX of Windows."""

    _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
        (name, ctypes.c_ulonglong) for name in ("total", "free", "total_page", "free_page", "virtual", "left", "more")
    ]


def installed_memory_bytes() -> int:
    """Return the memory of this machine in bytes; the largest number if the system does not tell."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    windows: Any = getattr(ctypes, "windll", None)
    if windows is None:
        return sys.maxsize
    status = _WindowsMemory(length=ctypes.sizeof(_WindowsMemory))
    windows.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status.total)
