"""The bench of touching lesions, by hand and with true masks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mois.evaluation.true_lesions import TrueLesions
from mois.geometry import SliceGrid
from mois.inference.lesion_maps import ScanRule
from mois.machine.steps import Steps
from mois.records import Exemplars
from mois.session.models import model_on_scan
from tests.support.paths import ROOT
from tests.support.session_fakes import make_model, three_lesions

sys.path.insert(0, str(ROOT))  # the bench is run as `python -m tests.bench.touching`, and installed nowhere
from tests.bench import touching


def test_split_and_merged_lesions_are_counted() -> None:
    """Lesion 1 (20 ml) is found in two parts, lesions 2 and 3 (2 ml each) as one, and 5 is false."""
    true, found = np.zeros((1, 8, 10), np.int32), np.zeros((1, 8, 10), np.int32)
    true[0, 0:4, 0:5] = 1
    true[0, 6, 0:2], true[0, 6, 2:4] = 2, 3
    found[0, 0:4, 0:3], found[0, 0:4, 3:5] = 1, 2
    found[0, 6, 0:4] = 3
    found[0, 0, 8:10] = 5
    counts = touching.score(found, true, voxel_ml=1.0)
    assert (counts.large, counts.split, counts.merged) == (1, 1, 1)
    assert counts.f1 == 2 * 2 / (2 * 2 + 2 + 1)  # 1 and one of 2 and 3 are found; 2 false, 1 missed


def test_true_cores_part_true_masks(tmp_path: Path) -> None:
    touching.main(["--crowded", "1", "--plexiform", "1", "--out", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["crowded, cores"]["f1"] >= figures["crowded, whole"]["f1"] > 0.8
    assert figures["plexiform, cores"]["split"] <= 0.05 * figures["plexiform, cores"]["large"]


@pytest.mark.parametrize(("peak_level", "found"), [(0.5, 2), (1 - 1e-6, 0)])
def test_each_way_has_the_level_of_peaks_of_the_scan(
    peak_level: float, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is sure of both lesions of a class, but no more than its exemplars if these ask for more."""

    def rule(*_: object) -> Steps[ScanRule]:
        yield None
        return ScanRule(peak_level=peak_level)

    monkeypatch.setattr(model_on_scan, "rule_steps", rule)
    volume = three_lesions()
    grid = SliceGrid.of(volume.shape, volume.affine)
    truth = TrueLesions.of(volume, grid)
    arms = touching.with_model(make_model(), volume, truth, grid)
    assert {name: int(arm(truth.classes[1]).max()) for name, arm in arms.items()} == dict.fromkeys(arms, found)


def test_each_class_is_clicked_as_often_as_the_bench_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lesions of a class and one of the other: undone clicks on the first class take none of the second."""
    asked: list[int] = []

    def rule(segmenter: object, encoded: object, exemplars: Exemplars, *_: object) -> Steps[ScanRule]:
        yield None
        asked.append(int(exemplars.positive.sum()))
        return ScanRule()

    monkeypatch.setattr(model_on_scan, "rule_steps", rule)
    monkeypatch.setattr(touching, "PROMPTED", 2)
    volume = three_lesions()
    grid = SliceGrid.of(volume.shape, volume.affine)
    truth = TrueLesions.of(volume, grid)
    whole = touching.with_model(make_model(), volume, truth, grid)["whole"]
    for kind in (1, 2):
        whole(kind)
    assert asked == [2, 1]
