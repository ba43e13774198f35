"""A checkpoint that cannot be read says what to give instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from mois.training.checkpoints.checkpoint_io import read_checkpoint


def test_a_name_that_is_none_is_answered_with_those_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.ckpt").touch()
    with pytest.raises(ValueError, match="ckpt_path=bst: there is no such file; ") as error:
        read_checkpoint(Path("bst"))
    assert str(error.value).endswith(
        "; give best, last, previous or start (of trainer.default_root_dir/checkpoints), or the path of a checkpoint"
    )


def test_a_file_that_is_missing_is_answered_with_those_beside_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"gone.ckpt: there is no such file; {tmp_path} holds no checkpoint, train "):
        read_checkpoint(tmp_path / "gone.ckpt")
    (tmp_path / "last.ckpt").touch()
    (tmp_path / "mine.ckpt").touch()
    with pytest.raises(ValueError, match=f"there is --ckpt_path last, --ckpt_path {tmp_path / 'mine.ckpt'}"):
        read_checkpoint(tmp_path / "gone.ckpt")
