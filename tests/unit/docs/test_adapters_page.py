"""The page on adapters is that of its rows, and knows each adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.bench.adapters_page import CHECKS, draw, read_rows, write_rows
from tests.support.adapter_methods import METHODS
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "adapters.md"


def row(method: str, seed: int, right: float | None, minutes: float = 6) -> dict[str, Any]:
    figures = {"steps": 280, "cpu_s": 360.2, "trained": 500, "share": 0.0004, "kb": 12.5}
    return {"method": method, "seed": seed, "minutes": minutes, **figures, "right": right} | {
        "wrong": 0.1,
        "no_exemplars": 0.4,
        "prompted_dice": 0.5,
    }


def test_the_page_is_that_of_the_committed_rows(tmp_path: Path) -> None:
    stored = read_rows(ROOT / "docs" / "adapters.json")
    draw(stored, tmp_path / "adapters.md")
    assert (tmp_path / "adapters.md").read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")
    assert stored["checks"].keys() == METHODS.keys() >= {row["method"] for row in stored["rows"]}
    assert all(found.keys() == CHECKS.keys() and False not in found.values() for found in stored["checks"].values())


def test_rows_of_the_longest_training_are_shown_as_means_over_seeds(tmp_path: Path) -> None:
    rows = [row("hra", 0, 0.5), row("hra", 1, 0.7), row("ia3", 0, 0.65), row("boft", 0, 0.9, minutes=0.3)]
    write_rows({"checks": {"hra": dict.fromkeys(CHECKS, True) | {"off": None}}, "rows": rows}, tmp_path / "a.json")
    stored = read_rows(tmp_path / "a.json")
    draw(stored, tmp_path / "a.md")
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert "| `ia3` | .65 | .10 | .50 | 0.04 % | 12 | 360 | 280 | 1 |" in text
    assert "| `hra` | .60 | .10 | .50 | 0.04 % | 12 | 360 | 280 | 2 |" in text
    assert text.index("`ia3` |") < text.index("`hra` | .60")  # the best first
    assert "boft` | .90" not in text
    assert f"Not measured yet ({len(METHODS) - 2}): beft, boft" in text
    assert "| yes | yes | yes | yes | \N{EN DASH} | yes | yes |" in text
    plot = (tmp_path / "images" / "adapters.svg").read_text(encoding="utf-8")
    assert plot.startswith("<?xml")
    assert "mathdefault" not in plot  # sizes are plain numbers
