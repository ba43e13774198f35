"""What the demo says is what stands in metrics.json."""

from pathlib import Path
from typing import Any

import pytest

from mois.cli import demo_steps as demo
from mois.evaluation.figures import ClassReport, Figures, SubjectReport
from mois.evaluation.result_files import write_result_files


def metrics(out: Path, **dice: float) -> dict[str, Any]:
    reports = [
        SubjectReport(name, name, (ClassReport(1, Figures(right=0.5, unprompted_dice=value), (), ()),), 0, {})
        for name, value in dice.items()
    ]
    return write_result_files(out, reports)


def test_the_demos_figures_are_those_of_the_files(tmp_path: Path) -> None:
    before, after = metrics(tmp_path / "a", one=0.2, two=0.4), metrics(tmp_path / "b", one=0.5, two=0.5)
    words = demo._words(after)
    assert list(words) == list(demo.WORDS)
    assert (words["right"], words["unprompted_dice"], words["wrong"]) == (0.5, 0.5, None)
    gain = demo._gain(before, after)
    assert gain["mean"] == pytest.approx(0.2)
    assert gain["ci95"] == pytest.approx([0.1, 0.3])
