"""Scans that other processes score have the results that this process would give."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mois.cli import main
from mois.evaluation.evaluate_scans import Evaluation, evaluate_scans
from mois.evaluation.scored_systems import score_by_model
from mois.evaluation.settings import ProtocolSettings
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.scans.datasets import read_dataset
from tests.support.fake_model import FakeBackbone, FakePropagation

Make = Callable[..., Path]


@pytest.mark.ci
def test_scans_scored_by_other_processes_have_the_same_results(make_dataset: Make, tmp_path: Path) -> None:
    scans = read_dataset(make_dataset(subjects=3))
    segmenter = VolumeSegmenter(FakeBackbone(), FakePropagation(), InferenceSettings(tile_px=32, batch_size=6))
    protocol = ProtocolSettings(prompted=1, counts=(0, 1))
    task = Evaluation(score_by_model(segmenter), protocol, {"model": "m"}, robustness=True)
    for scorers in (0, 2):
        evaluate_scans(task, scans, tmp_path / str(scorers), scorers=scorers)
    here, there = (
        {path.relative_to(tmp_path / name): path for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("0", "2")
    )
    assert here.keys() == there.keys()
    with_seconds = ("metrics.json", "subjects.csv", "p0.json", "p1.json", "p2.json")
    for name in (name for name in here if name.name not in with_seconds):
        assert here[name].read_bytes() == there[name].read_bytes(), name
    assert {path.suffix for path in here} >= {".gz", ".png", ".json", ".csv"}
    first = [json.loads(files[Path("finished/p0.json")].read_text(encoding="utf-8")) for files in (here, there)]
    for record in first:
        del record["report"]["seconds"]
    assert first[0]["report"] == first[1]["report"]
    assert first[0]["left"] == first[1]["left"]


def test_a_scan_that_cannot_be_scored_is_named(make_dataset: Make, tmp_path: Path) -> None:
    scans = read_dataset(make_dataset(subjects=1))

    def no_score() -> None:
        raise ValueError("all voxels are lesions")

    task = Evaluation(lambda *_: no_score, ProtocolSettings(), {"model": "m"})  # type: ignore[arg-type, return-value]
    for scorers in (0, None):
        with pytest.raises(ValueError, match=r"^scan p0: all voxels are lesions$"):
            evaluate_scans(replace(task), scans, tmp_path, scorers=scorers)


def test_fewer_than_no_scorers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", f"--data={tmp_path}", f"--out={tmp_path / 'out'}", "--bundle=b", "--score_processes=-1"])
    assert "--score_processes=-1 must be 0 or more" in capsys.readouterr().err
