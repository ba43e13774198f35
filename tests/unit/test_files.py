"""A file is there as a whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from mois.files import whole_file, write_bytes, write_text


def test_a_file_appears_when_it_is_whole_and_an_older_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "grün")
    with whole_file(path) as part:
        part.write_text("half", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "grün"
    assert path.read_text(encoding="utf-8") == "half"
    write_bytes(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with whole_file(path) as part:
            part.write_text("ha", encoding="utf-8")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        fail()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda path: write_text(path, "a"), lambda path: write_bytes(path, b"a")):
        with pytest.raises(OSError, match="No space left") as refused:
            write(tmp_path / "results.json")
        assert refused.value.filename == str(tmp_path / "results.json")
    assert list(tmp_path.iterdir()) == []
