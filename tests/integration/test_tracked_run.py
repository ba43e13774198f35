"""An offline run of W&B is read back: what it shows, and that no name of a scan, patient or folder is in it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

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
    arguments = [*LORA, *small, "--trainer.max_epochs=2", folder(run), "--tracking.wandb=offline"]
    train("fit", *[word for word in arguments if "validate_first" not in word], "--dry_step=false", *more)


@pytest.mark.parametrize("names", ["hashed", "plain"])
def test_names_are_in_the_record_only_where_they_are_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    root = write_named_scans(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", f"--data.init_args.root={root}"])
    fit(root, tmp_path / "run", f"--tracking.names={names}")
    found = found_in(tmp_path / "run" / "wandb") | found_in(tmp_path / "staging")
    if names == "plain":
        assert {SCANS[1], SCANS[2], FOLDER} <= found.keys()
        return
    assert found == {}
    assert found_in_records(tmp_path / "run") == []
    told = (tmp_path / "run" / "names.csv").read_text(encoding="utf-8")
    assert all(name in told for name in (*SCANS, *PATIENTS, str(root)))
    names_of_run = Names(hashed=True)
    names_of_run.add([*SCANS, *PATIENTS], [root])
    copy = tmp_path / "copy"
    copy_with_pseudonyms(tmp_path / "run" / "bundle", copy, names_of_run.text, names_of_run.settings)
    assert found_in(copy) == {}
    assert Bundle.load(copy).identity == Bundle.load(tmp_path / "run" / "bundle").identity


def found_in_records(run: Path) -> list[str]:
    """Return the names in what W&B's own reader gives: a name that a block of the file parts is whole there."""
    text = json.dumps(read_back(run)).lower()
    return [name for name in (*SCANS, *PATIENTS) if name in text]
