"""The page of look-alikes: each class of a set with its own figures; finished rows are kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT))  # the bench is run as `python -m tests.bench.look_alikes`, and installed nowhere
from tests.bench import gallery, look_alikes

FIGURES = {"right": 0.5, "wrong": None, "no_exemplars": 0.25, "lesion_f1": 0.125, "false_lesions": 7}


def test_each_class_has_its_picture_with_its_own_figures(tmp_path: Path) -> None:
    rows = {
        name: look_alikes.row_of(tmp_path, name, *look_alikes.SHOWN) for name in ("MS change 01", "cells3d", "none")
    }
    rows["MS change 01"].write_text(json.dumps({"1": FIGURES, "2": FIGURES | {"right": 0.75, "false_lesions": 12}}))
    rows["cells3d"].write_text(json.dumps({"1": FIGURES}))  # measured before pictures were
    for target in (1, 2):
        file = gallery.pictures_of(rows["MS change 01"]) / "overlays" / f"patient01_class{target}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)
    page = gallery.write_gallery(tmp_path, rows).read_text()
    assert page.count("<h2") == 1
    assert page.count("data:image/png") == 2
    assert page.index("class 1: right 0.50, wrong \N{EN DASH}, no_exemplars 0.25") < page.index("class 2: right 0.75")
    assert "12 false lesions" in page
    assert "cells3d" not in page


def test_a_row_that_is_there_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look_alikes, "evaluate_volume", lambda *_: pytest.fail("it was measured again"))
    path = look_alikes.row_of(tmp_path, "cells3d", *look_alikes.SHOWN)
    path.write_text("{}")
    assert look_alikes.measure(tmp_path, "cells3d", *look_alikes.SHOWN) == path
