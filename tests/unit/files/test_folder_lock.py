"""A folder is written by one process at a time, and free again as soon as that one ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mois.files.folder_lock import NAME, FolderLock, locked

HOLD = """
import sys, time
from pathlib import Path
from mois.files.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, encoding="utf-8")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_folder_that_another_process_holds_is_refused_until_that_one_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x"
    with holder(folder) as process:
        with pytest.raises(ValueError, match="is being written by") as refused:
            FolderLock(folder)
        assert str(refused.value) == (
            f"{folder} is being written by process {process.pid} on {socket.gethostname()}; wait until it ends, or "
            "choose another folder."
        )
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (folder / NAME).is_file()  # what a killed process left
        with locked(folder):
            pass
    assert list(folder.iterdir()) == []


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with locked(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    with locked(tmp_path / "new"):
        (tmp_path / "new" / "result").touch()
    assert (tmp_path / "new" / "result").is_file()
    (tmp_path / "there").mkdir()
    with locked(tmp_path / "there"):
        pass
    assert (tmp_path / "there").is_dir()


def test_one_process_holds_a_folder_once_and_again_after_releasing_it(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(ValueError, match="by this process, elsewhere"):
        FolderLock(tmp_path)
    lock.release()
    lock.release()
    with locked(tmp_path), locked(tmp_path / "inner"):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()


def test_a_forked_process_that_outlives_its_parent_holds_nothing(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    (told, tells), (waits, ends) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:  # pragma: no cover
        os.write(tells, b".")
        os.close(ends)
        os.read(waits, 1)
        os._exit(0)
    try:
        os.read(told, 1)
        lock.forget()  # as if this process had been killed
        with locked(tmp_path):
            pass
    finally:
        os.close(ends)
        os.waitpid(child, 0)


def test_without_locks_of_the_file_system_the_process_that_the_file_names_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserWarning, match="cannot be locked on this file system; let no other process write into it"):
        FolderLock(tmp_path).release()
    with holder(tmp_path) as process:
        with pytest.raises(ValueError, match=f"is being written by process {process.pid} on"):
            FolderLock(tmp_path)
        process.kill()
        process.wait()
        with pytest.warns(UserWarning, match="cannot be locked"):
            FolderLock(tmp_path).release()
    (tmp_path / NAME).write_text('{"process": 7, "host": "elsewhere"}')
    with pytest.warns(UserWarning, match="process 7 on elsewhere may be writing there"):
        FolderLock(tmp_path).release()


@pytest.mark.parametrize(
    "content", ["", "[" * 1000, "notes of mine", "[1]", '{"process": "7", "host": 1}', '{"process": 1}']
)
def test_what_stands_in_a_lock_that_nobody_holds_does_no_harm(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    with locked(tmp_path):
        with pytest.raises(ValueError, match="is being written by"):
            FolderLock(tmp_path)
        assert content == "" or (tmp_path / NAME).read_text() == content
    assert not (tmp_path / NAME).exists()


def test_a_link_a_pipe_or_a_folder_in_the_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    for name in ("link", "pipe", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "folder" / NAME).mkdir()
    (tmp_path / "link" / NAME).symlink_to(target)
    os.mkfifo(tmp_path / "pipe" / NAME)
    for name in ("link", "pipe", "folder"):
        with pytest.raises(ValueError, match=r"\.lock is no regular file; remove it, or choose another folder"):
            FolderLock(tmp_path / name)
    assert target.read_text() == "mine"
