"""The script that draws examples of pretraining's pictures."""

import runpy
import sys

import pytest

from tests.support.paths import ROOT


@pytest.mark.slow
def test_examples_are_drawn(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["draw_pictures.py", str(tmp_path / "out"), "--seed", "1"])
    runpy.run_path(str(ROOT / "docs" / "site" / "draw_pictures.py"), run_name="__main__")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"scenes.png", "episodes.png"}
