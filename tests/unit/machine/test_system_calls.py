"""Replacements of calls that only Linux and macOS have do the same."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mois.machine import system_calls
from mois.machine.system_calls import (
    installed_memory_bytes,
    keep_freed_memory,
    lock_file,
    open_flags,
    read_at,
    sync_folder,
    write_at,
)
from tests.support.paths import ROOT


def test_bytes_are_read_and_written_in_place_without_pread_and_pwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pread")
    monkeypatch.delattr(os, "pwrite")
    file = os.open(tmp_path / "a", open_flags("O_RDWR", "O_CREAT", "O_OF_NO_SYSTEM"))
    assert write_at(file, b"abc", 4) == 3
    assert write_at(file, memoryview(b"xy"), 0) == 2
    assert read_at(file, 100, 1) == b"y\0\0abc"
    assert read_at(file, 2, 5) == b"bc"
    os.close(file)


def test_a_file_is_locked_by_msvcrt_behind_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = []

    def locking(file: int, mode: int, count: int) -> None:
        places.append((os.lseek(file, 0, os.SEEK_CUR), mode, count))
        if len(places) > 1:
            raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(system_calls, "_FCNTL", None)
    monkeypatch.setattr(system_calls, "_MSVCRT", SimpleNamespace(locking=locking, LK_NBLCK=2))
    file = os.open(tmp_path / "a", open_flags("O_RDWR", "O_CREAT"))
    lock_file(file)
    assert places == [(1 << 30, 2, 1)]
    with pytest.raises(PermissionError):
        lock_file(file)
    os.close(file)


def test_without_any_lock_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_calls, "_FCNTL", None)
    monkeypatch.setattr(system_calls, "_MSVCRT", None)
    with pytest.raises(OSError, match="not supported") as caught:
        lock_file(0)
    assert caught.value.errno == errno.ENOTSUP


def test_folders_and_memory_where_the_system_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 << 28 < installed_memory_bytes() < sys.maxsize
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.delattr(os, "O_DIRECTORY")
    assert installed_memory_bytes() == sys.maxsize
    sync_folder(tmp_path / "missing")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide for themselves")
def test_freed_memory_is_kept_for_the_next_tensors() -> None:
    code = """
import resource, sys
from mois.machine.system_calls import keep_freed_memory
print(sys.argv[1] == "keep" and keep_freed_memory())
for turn in range(12):
    if turn == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(12 << 20) for _ in range(3)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {}
    for what in ("keep", "return"):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        told, number = subprocess.run(
            [sys.executable, "-c", code, what],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            check=True,
        ).stdout.split()
        assert told == str(what == "keep")
        faults[what] = int(number)
    assert 5 * faults["keep"] < faults["return"]  # 0 and 61120 pages of 4 KiB, where 36 MiB were used ten times


def test_what_the_environment_says_of_freed_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not keep_freed_memory()
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
