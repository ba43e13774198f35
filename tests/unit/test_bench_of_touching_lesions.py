"""The bench of touching lesions, by hand and with true masks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from tests.support.paths import ROOT

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
