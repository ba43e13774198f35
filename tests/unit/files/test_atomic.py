"""A file is there as a whole or not at all."""

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from mois.files.atomic import read_regular, whole_file, whole_folder, write_bytes, write_text


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


@pytest.mark.parametrize("kind", ["pipe", "symbolic link", "folder", "socket"])
def test_what_is_no_regular_file_is_not_written_over(tmp_path: Path, kind: str) -> None:
    path, kept = tmp_path / "x", tmp_path / "kept"
    kept.write_bytes(b"kept")
    with socket.socket(socket.AF_UNIX) as listener:
        match kind:
            case "pipe":
                os.mkfifo(path)
            case "symbolic link":
                path.symlink_to(kept)
            case "folder":
                path.mkdir()
            case _:
                listener.bind(str(path))
        with pytest.raises(ValueError, match=f"x is a {kind}, which is not written over; remove it"):
            write_bytes(path, b"new")
    assert kept.read_bytes() == b"kept"
    assert {one.name for one in tmp_path.iterdir()} == {"x", "kept"}


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a pipe, not a regular file"):
        read_regular(tmp_path / "pipe")
    with pytest.raises(ValueError, match="zero is a device, not a regular file"):
        read_regular(Path("/dev/zero"))
    (tmp_path / "large").write_bytes(bytes(100))
    with pytest.raises(ValueError, match="has 100 bytes, of 99 at most"):
        read_regular(tmp_path / "large", 99)


def test_a_folder_takes_the_place_of_another_whole_or_not_at_all(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with whole_folder(tmp_path / "made", ("old", "new", "half")) as part:
            write_text(part / text, text)
    assert [one.name for one in (tmp_path / "made").iterdir()] == ["new"]
    with suppress(RuntimeError), whole_folder(tmp_path / "made", ("old", "new", "half")) as part:
        write_text(part / "half", "")
        raise RuntimeError
    assert [one.name for one in tmp_path.rglob("*")] == ["made", "new"]
    (tmp_path / "link").symlink_to(tmp_path / "made")
    with (
        pytest.raises(ValueError, match="is a symbolic link, which is not written over"),
        whole_folder(tmp_path / "link", ()),
    ):
        pass


def test_a_long_name_leaves_room_for_that_of_its_unfinished_file(tmp_path: Path) -> None:
    for name in ("x" * 251 + ".csv", "\N{SNOWMAN}" * 80 + ".csv"):
        write_text(tmp_path / name, "1")
        assert (tmp_path / name).read_text(encoding="utf-8") == "1"


def test_what_a_user_put_into_a_folder_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "made"
    (folder / "own").mkdir(parents=True)
    (folder / "notes").mkdir()
    write_text(folder / "notes" / "a.txt", "note")
    with whole_folder(folder, ("own",)) as part:
        (part / "own").mkdir()
        write_text(part / "own" / "b", "new")
    assert sorted(str(one.relative_to(folder)) for one in folder.rglob("*.*")) == ["notes/a.txt"]
    assert (folder / "own" / "b").read_text(encoding="utf-8") == "new"
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if target == folder and self.suffix == ".part":
            raise OSError(5, "failed", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="failed"), whole_folder(folder, ("own",)):
        pass
    assert (folder / "notes" / "a.txt").read_text(encoding="utf-8") == "note"
    assert (folder / "own" / "b").read_text(encoding="utf-8") == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["made"]
