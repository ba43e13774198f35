"""`mois adapt`: from a folder of scans to a bundle, in one command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mois.cli import main as mois_main
from mois.sharing.bundle import Bundle
from mois.sharing.bundle_record import read_description

pytestmark = [pytest.mark.usefixtures("same_process"), pytest.mark.ci]


def test_from_a_folder_to_a_bundle(
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    root, out = make_dataset(subjects=2, lesions=9), tmp_path / "bundle"
    command = ["adapt", "--data", str(root), "--out", str(out), "--minutes", "0.05", "--device", "cpu"]
    mois_main(command)
    said = capsys.readouterr().out
    assert "pixel 0.6 mm: lesions are 6.77 mm across in the median, 11 pixels\n" in said
    assert "Dice of lesions that nobody clicked, with exemplars: " in said
    page = (tmp_path / "bundle_training" / "adaptation.html").read_text(encoding="utf-8")
    assert "Before and after" in page
    assert "The plan" in page
    record = read_description(out)
    assert (said + caplog.text).count(record.provenance["delivered"]) == 1
    assert Bundle.load(out).segmenter().settings.pixel_mm == 0.6

    with pytest.raises(SystemExit):  # never over a bundle
        mois_main(command)
    assert capsys.readouterr().err.startswith(f"error: out={out} is there already; ")

    shutil.move(out, tmp_path / "first")  # further, with the bundle as start
    mois_main([*command[:3], "--out", str(tmp_path / "second"), *command[5:], "--start_from", str(tmp_path / "first")])
    capsys.readouterr()
    assert f"start_from={tmp_path / 'first'}: adapter and propagation begin with what it holds" in caplog.text
    assert read_description(tmp_path / "second").model == record.model

    mois_main(command)  # the training is there: it goes on
    assert f"going on with the training in {tmp_path / 'bundle_training'}\n" in capsys.readouterr().out
    assert "weights_only" not in caplog.text  # a line of Lightning on a default that is never used


def test_one_scan_is_allowed_and_says_what_follows(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_dataset(subjects=1)
    mois_main(["adapt", "--data", str(root), "--out", str(tmp_path / "b"), "--minutes", "0.02", "--device", "cpu"])
    said = capsys.readouterr().out
    assert "validation: one patient with few slices: nothing validates, the last weights are delivered\n" in said
    assert "one scan: " in said
