"""An offline run of W&B is read back: what it shows, and that no name of a scan, patient or folder is in it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mois.cli import main as mois_main
from mois.report.lesion_table import COLUMNS
from mois.sharing.bundle import Bundle
from mois.sharing.hidden_bundle import copy_with_pseudonyms
from mois.tracking.names import Names
from tests.support.named_scans import FOLDER, PATIENTS, SCANS, found_in, write_named_scans
from tests.support.small_runs import LORA, data, folder, train
from tests.support.wandb_records import read_back

pytestmark = pytest.mark.usefixtures("same_process")


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))


def fit(root: Path, run: Path, *more: str) -> None:
    small = data(root, val_subjects=f"[{SCANS[1]},{SCANS[2]}]", episodes_per_epoch=2, num_workers=0)
    train("fit", *LORA, *small, folder(run), "--tracking.wandb=offline", "--dry_step=false", *more)


def test_the_record_shows_every_item_and_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, run = write_named_scans(tmp_path), tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", f"--data.init_args.root={root}"])
    asked = ["--tracking.names=hashed", "--tracking.experiment=cubes", "--trainer.max_epochs=2"]
    fit(root, run, *asked)

    assert found_in(run / "wandb") | found_in(tmp_path / "staging") == {}
    records = read_back(run)
    text = json.dumps(records).lower()
    assert [name for name in (*SCANS, *PATIENTS, FOLDER) if name.lower() in text] == []
    told = (run / "names.csv").read_text(encoding="utf-8")
    assert all(name in told for name in (*SCANS, *PATIENTS, str(root)))

    (start, *_) = [record["run"] for record in records if "run" in record]
    assert (start["run_group"], start["job_type"], start["host"]) == ("cubes", "fit", "hidden")
    metrics: list[Any] = [record["metric"] for record in records if "metric" in record]
    assert [one["step_metric"] for one in metrics if one.get("glob_name") == "*"] == ["trainer/global_step"]
    history: list[Any] = [record["history"]["item"] for record in records if "history" in record]
    check_steps([item for item in history if "train/loss" in item])
    made: list[Any] = [record["artifact"] for record in records if "artifact" in record]
    stored = [one["manifest"]["contents"] for one in made if "lesions" in one["name"]]
    assert [sum(entry["path"].endswith(".png") for entry in contents) for contents in stored] == [24, 24]
    check_validations(history, next((run / "wandb").glob("offline-run-*")) / "files")
    check_lineage(records, run)

    names = Names(hashed=True)
    names.add([*SCANS, *PATIENTS], [root])
    copy_with_pseudonyms(run / "bundle", tmp_path / "copy", names.text, names.settings)
    assert found_in(tmp_path / "copy") == {}
    assert Bundle.load(tmp_path / "copy").identity == Bundle.load(run / "bundle").identity


def check_steps(items: list[dict[str, Any]]) -> None:
    """Rates, norms and shares of the time of every step, against the true step."""
    assert [item["trainer/global_step"] for item in items] == [0, 1, 2, 3]
    for item in items:
        shares = [item[f"time/{part}"] for part in ("data", "forward", "backward", "optimiser", "validation")]
        assert sum(shares) == pytest.approx(1, abs=1e-3)
        norms = [item[f"train/gradient_norm{part}"] for part in ("", "_adapter", "_propagation")]
        assert norms[0] == pytest.approx(np.hypot(norms[1], norms[2]), rel=1e-3)
        assert item["train/learning_rate"] > 0
    assert items[2]["time/validation"] > 0.1


def check_validations(history: list[dict[str, Any]], files: Path) -> None:
    """At both validations: the table with its pictures, and the same two scans with masks by class."""
    tables = [item for item in history if "val/lesions.path" in item]
    assert [item["trainer/global_step"] for item in tables] == [2, 4]
    for item in tables:
        table = json.loads((files / item["val/lesions.path"]).read_text(encoding="utf-8"))
        assert table["columns"] == list(COLUMNS)
        assert len(table["data"]) == 24  # 12 lesions in each of two scans
        assert {row[1] for row in table["data"]} == {"bright", "dark"}
        assert all(row[0].startswith("id-") and row[3] > 0 and 0 <= row[4] <= 1 for row in table["data"])
    for number in (1, 2):
        shown = [item for item in history if f"val/scan{number}.path" in item]
        assert [item["trainer/global_step"] for item in shown] == [2, 4]
        assert shown[0][f"val/scan{number}.sha256"] == shown[1][f"val/scan{number}.sha256"]  # the same slice
        truth = np.asarray(Image.open(files / shown[0][f"val/scan{number}.masks.truth.path"]))
        assert set(np.unique(truth)) == {0, 1, 2}
        assert f"val/scan{number}.masks.model.path" in shown[0]
        assert shown[0][f"val/scan{number}.caption"].startswith("id-")


def check_lineage(records: list[Any], run: Path) -> None:
    """The bundle is an artifact that names the data."""
    made: list[Any] = [record["artifact"] for record in records if "artifact" in record]
    (bundle,) = [one for one in made if one["type"] == "model"]
    provenance = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    facts = json.loads(bundle["metadata"])
    assert facts["made_from"] == {"dataset": f"data-{provenance['data'][:12]}"}
    assert {"bundle.json", "propagation.safetensors"} <= {entry["path"] for entry in bundle["manifest"]["contents"]}


@pytest.mark.ci
def test_plain_names_are_in_the_record_and_a_child_names_its_parent(tmp_path: Path) -> None:
    root = write_named_scans(tmp_path)
    fit(root, tmp_path / "parent", "--trainer.max_steps=1", "--tracking.wandb=disabled")
    parent = f"--start_from={tmp_path / 'parent' / 'bundle'}"
    fit(root, tmp_path / "run", "--trainer.max_epochs=1", "--tracking.names=plain", parent)
    assert {SCANS[1], SCANS[2], FOLDER} <= found_in(tmp_path / "run" / "wandb").keys()
    made: list[Any] = [record["artifact"] for record in read_back(tmp_path / "run") if "artifact" in record]
    assert {one["type"] for one in made} >= {"model", "checkpoint"}
    (facts,) = [json.loads(one["metadata"]) for one in made if one["type"] == "model"]
    assert facts["made_from"]["parent"].startswith("bundle-")


def test_an_evaluation_is_recorded_as_a_training_is(tmp_path: Path) -> None:
    root = write_named_scans(tmp_path)
    out = root / f"{SCANS[0]} out"  # a folder that tells names, too
    asked = ["evaluate", f"--data={root}", f"--predictions={root / 'labelsTr'}", f"--out={out}", "--split=all"]
    mois_main([*asked, "--protocol.counts=[]", "--log", "--tracking.wandb=offline", "--tracking.names=hashed"])
    (told,) = [
        line.split(",")[0] for line in (out / "names.csv").read_text().splitlines() if SCANS[0] in line.split(",")
    ]
    assert found_in(out / "wandb") | found_in(tmp_path / "staging") == {}
    records = read_back(out)
    history: list[Any] = [record["history"]["item"] for record in records if "history" in record]
    (start, *_) = [record["run"] for record in records if "run" in record]
    assert (start["run_group"], start["job_type"]) == (f"{told} out", "evaluate")
    assert [item["test/unprompted_dice"] for item in history if "test/unprompted_dice" in item] == [1.0]
    (table,) = [item["test/lesions.path"] for item in history if "test/lesions.path" in item]
    (files,) = (out / "wandb").glob("offline-run-*/files")
    rows = json.loads((files / table).read_text(encoding="utf-8"))["data"]
    assert len(rows) == 36
    assert {row[1] for row in rows} == {"bright", "dark"}
    assert {"test/scan1.masks.truth.path", "test/scan2.masks.model.path"} <= {name for item in history for name in item}
