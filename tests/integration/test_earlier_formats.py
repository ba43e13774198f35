"""Files that earlier versions wrote load, and give the voxels and losses that they gave then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mois.cli import main as mois_main
from mois.records import Volume
from mois.scans.image_files import read_image
from mois.scans.volumes import read_volume
from mois.session import InteractiveSession
from mois.sharing.bank import ExemplarBank
from mois.sharing.bundle import Bundle
from tests.support.paths import FIXTURES
from tests.support.small_runs import losses, train

FIRST = FIXTURES / "format_1"
EXPECTED: dict[str, Any] = json.loads((FIRST / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(FIRST / "bundle")


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to write into, as the working folder: paths in the files are relative to it."""
    shutil.copytree(FIRST, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def scan(name: str) -> Volume:
    path = FIRST / "data" / "imagesTr" / f"{name}_0000.nii.gz"
    return read_volume(path, None, subject=name, patient=name, classes={})


def voxels(session: InteractiveSession) -> dict[str, int]:
    ids, counts = np.unique(session.label_map().numpy(), return_counts=True)
    return dict(zip(map(str, ids.tolist()), counts.tolist(), strict=True))


def test_a_session_of_the_first_format_loads_as_it_was_left(copied: Path, bundle: Bundle) -> None:
    session = InteractiveSession.load(copied / "session", bundle.model(), scan("p0"))
    assert len(session.actions) == EXPECTED["actions"]
    assert voxels(session) == EXPECTED["session_voxels"]
    np.testing.assert_array_equal(session.label_map().numpy(), read_image(FIRST / "session" / "lesions.nii.gz")[0])
    assert session.undo()
    session.close()


def test_a_journal_of_the_first_format_replays_to_the_same_voxels(bundle: Bundle) -> None:
    session = InteractiveSession.replay(FIRST / "session", bundle.model(), scan("p0"))
    np.testing.assert_array_equal(session.label_map().numpy(), read_image(FIRST / "session" / "lesions.nii.gz")[0])


def test_a_bank_of_the_earlier_format_finds_the_same_lesions(bundle: Bundle) -> None:
    bank = ExemplarBank.load(FIRST / "bank.safetensors", bundle.identity, bundle.inference.pixel_mm)
    assert len(bank) == 6
    assert sum(item.negative for item in bank) == 1
    session = InteractiveSession(bundle.model(), scan("p1"))
    session.use_bank(FIRST / "bank.safetensors")
    session.propagate()
    np.testing.assert_array_equal(session.label_map().numpy(), read_image(FIRST / "found_with_bank.nii.gz")[0])
    assert voxels(session) == EXPECTED["with_bank_voxels"]


def test_a_training_of_the_first_format_goes_on_with_the_same_losses(copied: Path) -> None:
    train("fit", f"--config={copied / 'run' / 'config.yaml'}", "--trainer.default_root_dir=run", "--ckpt_path=last")
    assert losses(copied / "run") == pytest.approx({int(k): v for k, v in EXPECTED["losses"].items()}, rel=1e-5)


def test_a_training_of_before_the_score_goes_on_is_tested_and_shared(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = yaml.safe_load((copied / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert old.pop("checkpoints")["monitor"] == "val/right"  # a config of today has no such line
    (copied / "today.yaml").write_text(yaml.safe_dump(old), encoding="utf-8")
    run = ["--config=today.yaml", "--trainer.default_root_dir=run"]
    with caplog.at_level("INFO"):
        made = train("fit", *run, "--ckpt_path=last")
    assert made.settings["checkpoints"]["monitor"] == "val/right"
    assert "val/right decides here which checkpoint is best.ckpt" in caplog.text
    assert "checkpoints.monitor=" not in caplog.text
    assert sorted(file.stem for file in (copied / "run" / "checkpoints").iterdir()) == ["best", "last", "previous"]
    assert Bundle.load(copied / "run" / "bundle").figures["score"] is not None
    split = ["--data.init_args.split.val_subjects=[]", "--data.init_args.split.test_subjects=[p1]"]
    train("test", *run, *split, "--ckpt_path=best")
    assert (copied / "run" / "test" / "metrics.json").is_file()


def test_segment_goes_on_in_a_folder_of_the_first_format(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_image(copied / "segmented" / "lesions.nii.gz")[0]
    image = "data/imagesTr/p0_0000.nii.gz"
    mois_main(["segment", image, "--bundle", "bundle", "--prompts", "prompts.json", "--out", "segmented"])
    assert "going on after 3 actions" in capsys.readouterr().out
    np.testing.assert_array_equal(read_image(copied / "segmented" / "lesions.nii.gz")[0], before)


def test_an_evaluation_of_the_first_format_is_compared(copied: Path) -> None:
    shutil.copytree("evaluated", "again")
    mois_main(["compare", "evaluated", "again", "--names", "a,b", "--out", "compared"])
    (page,) = (copied / "compared").glob("*.html")
    assert "unprompted" in page.read_text(encoding="utf-8")
