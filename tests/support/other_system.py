"""A session on a system without what only Linux and macOS have; run as a program by test_portability.py.

`python tests/support/other_system.py FOLDER story` plays a session in FOLDER, `... imports` imports every module.
"""

from __future__ import annotations

import builtins
import importlib
import os
import pkgutil
import signal
import sys
import warnings
from pathlib import Path

import pytest

OURS = ("mois", "adapters", "datamodules")
MODULES = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "select", "syslog", "termios", "tty")
"""Modules of Python that are missing on Windows, or do less there."""
OF_OS = (
    "O_CLOEXEC",
    "O_DIRECTORY",
    "O_NOFOLLOW",
    "O_NONBLOCK",
    "O_NOCTTY",
    "O_SYNC",
    "chown",
    "chroot",
    "fchmod",
    "fchown",
    "fork",
    "forkpty",
    "getegid",
    "geteuid",
    "getgid",
    "getloadavg",
    "getpgid",
    "getpgrp",
    "getuid",
    "killpg",
    "lchown",
    "lockf",
    "mkfifo",
    "mknod",
    "nice",
    "openpty",
    "pipe2",
    "posix_fadvise",
    "posix_fallocate",
    "pread",
    "preadv",
    "pwrite",
    "pwritev",
    "register_at_fork",
    "sched_getaffinity",
    "sched_setaffinity",
    "sendfile",
    "setpgid",
    "setsid",
    "statvfs",
    "sync",
    "sysconf",
    "uname",
    "wait",
    "wait3",
)
"""Names of `os` that are missing on Windows."""
OF_SIGNAL = ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGUSR1", "SIGUSR2", "alarm", "pthread_sigmask")
"""Names of `signal` that are missing on Windows."""


def import_libraries() -> None:
    """Import the packages of others first: they know Linux and may use what it has."""
    names = "torch lightning peft sam2 SimpleITK nibabel pydicom pandas matplotlib.pyplot wandb transformers torchio "
    for name in (names + "jsonargparse huggingface_hub scipy.optimize rich.console").split():
        importlib.import_module(name)


def take_away() -> None:
    """Take away from our modules what only Linux and macOS have."""
    usual = builtins.__import__

    def restricted(name, *rest, **named):  # type: ignore[no-untyped-def]
        importer = str(((rest[0] if rest else named.get("globals")) or {}).get("__name__", ""))
        if name.split(".")[0] in MODULES and importer.split(".")[0] in OURS:
            raise ImportError(f"{name} was taken away")
        return usual(name, *rest, **named)

    builtins.__import__ = restricted
    usual_module = importlib.import_module

    def restricted_module(name, package=None):  # type: ignore[no-untyped-def]
        if name in MODULES:
            raise ImportError(f"{name} was taken away")
        return usual_module(name, package)

    importlib.import_module = restricted_module
    for name in OF_OS:
        if hasattr(os, name):
            delattr(os, name)
    for name in OF_SIGNAL:
        if hasattr(signal, name):
            delattr(signal, name)
    os.supports_dir_fd = set()
    os.supports_fd = set()


def import_ours() -> list[str]:
    """Import every module of ours, and return the names."""
    names = []
    for package in OURS:
        found = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.", onerror=_raise)
        for each in found:
            if (
                each.name.endswith("__main__") or "monailabel_app" in each.name
            ):  # a program; in an environment of its own
                continue
            importlib.import_module(each.name)
            names.append(each.name)
    return names


def _raise(name: str) -> None:
    raise ImportError(name)


def play(folder: Path) -> None:
    """Click, propagate, reject, undo, save and load, with all features in the file."""
    from mois.session import InteractiveSession
    from tests.support.session_fakes import lps, make_model, three_lesions

    scan = three_lesions()
    session = InteractiveSession(make_model(memory_gib=0.0), scan, folder)
    session.click(lps(scan, 2, 20, 20))
    assert session.propagate() == 1
    session.reject(2)
    with pytest.raises(ValueError, match="is being written by this process, elsewhere"):
        InteractiveSession.load(folder, make_model(), scan)
    session.undo()
    session.save()
    voxels, actions = session.label_map(), session.actions
    assert session._bench.encoded.store.rows_in_file > 0
    session.close()
    again = InteractiveSession.load(folder, make_model(), scan)
    assert again.actions == actions
    assert bool((again.label_map() == voxels).all())
    assert int((voxels == 2).sum()) > 0
    again.redo()
    again.close()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    import_libraries()
    take_away()
    if sys.argv[2] == "imports":
        print(len(import_ours()), "modules")  # noqa: T201
    else:
        play(Path(sys.argv[1]))
        print("played")  # noqa: T201
