"""`mois forgetting`: each bundle on each type, held-back phantoms beside a dataset."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import pytest

from datamodules.phantoms.lesion_types import is_held_back
from datamodules.phantoms.phantom import write_dataset as write_phantoms
from mois.cli import main as mois_main
from tests.support.datasets import write_dataset
from tests.support.example_bundles import random_bundle


@pytest.mark.ci
def test_each_bundle_is_measured_on_each_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = partial(write_phantoms, shape=(12, 128, 128))
    monkeypatch.setattr("mois.cli.forgetting_steps.write_dataset", lambda *given, **options: small(*given, **options))
    bundles = [str(random_bundle(tmp_path / name / "bundle", {"of": name})) for name in ("old", "new")]
    data, out = write_dataset(tmp_path / "data", subjects=1, held_out=1, instances=True), tmp_path / "out"
    asked = ["forgetting", *bundles, f"--data={data}", f"--out={out}", "--phantoms=1", "--device=cpu"]
    mois_main(asked)
    types = json.loads((out / "phantoms" / "lesion_types.json").read_text(encoding="utf-8"))
    assert all(is_held_back([one["intensity"]], [one["core"]], [one["texture"]]) for one in types.values())
    with (out / "forgetting.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["figure"] == "prompted_dice"]
    assert [(row["data"], row["type"], row["bundle"]) for row in rows] == [
        *(("data", kind, bundle) for kind in ("bright", "dark") for bundle in ("old", "new")),
        *(("held-back phantoms", kind, bundle) for kind in types for bundle in ("old", "new")),
    ]
    measured = [row for row in rows if row["mean"]]
    assert len(measured) >= 4
    assert all(row["change"] == "0.0" for row in measured if row["bundle"] == "new")  # the same weights

    scored = {file: file.stat().st_mtime_ns for file in out.rglob("finished/*.json")}
    assert len(scored) == 4
    mois_main(asked)  # nothing is scored again
    assert scored == {file: file.stat().st_mtime_ns for file in out.rglob("finished/*.json")}
    assert "change from old" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["A", "A", "--data=d"], "the same bundle is given twice; it is not compared with itself."),
        (["A", "--phantoms=0"], "--phantoms=0: there is nothing to measure on; give --data, or more than 0."),
        (["A", "--data=d,d"], "--data: the same dataset is given twice; leave one out."),
    ],
)
def test_contradictions_end_in_one_line(
    words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        mois_main(["forgetting", *words, f"--out={tmp_path / 'out'}"])
    assert capsys.readouterr().err == f"error: {line}\n"
