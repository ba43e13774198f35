"""`mois folds`: every scan is tested by a model that never saw it."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from datamodules.splits import Fold, Splits, SplitSettings, divide, folds_of
from mois.cli import main as mois_main
from mois.cli.fold_steps import FoldRuns, resolved_config
from mois.cli.folds import with_training_options
from mois.scans.datasets import read_dataset
from tests.support.datasets import write_dataset
from tests.support.small_runs import LORA, data

pytestmark = pytest.mark.usefixtures("same_process")


def test_options_of_the_training_are_settings_of_the_folds() -> None:
    words = [
        "--config=a.yaml",
        "--only=[1]",
        "--trainer.max_epochs",
        "3",
        "--data.init_args.root=d",
        "--checkpoint",
        "best",
    ]
    own = ["--training=a.yaml", "--only=[1]", "--checkpoint=best"]
    settings = json.dumps(["--trainer.max_epochs=3", "--data.init_args.root=d"])
    assert with_training_options(words) == [*own, f"--settings={settings}"]


def test_a_shipped_config_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        mois_main(
            ["folds", "--config", "demo", "--config", "adapters/lora", f"--data.init_args.root={tmp_path / 'nowhere'}"]
        )
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'nowhere' / 'dataset.json'}: no such file")


def test_a_further_config_goes_over_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = with_training_options(["--config", "first.yaml", "--config=second.yaml", "--out", "f"])
    assert words == ["--training=first.yaml", "--out=f", '--settings=["--config=second.yaml"]']
    monkeypatch.chdir(tmp_path)
    Path("second.yaml").write_text("seed_everything: 5\ntrainer:\n  max_epochs: 2\n", encoding="utf-8")
    resolved = resolved_config(["--config", "demo", "--config=second.yaml"])  # a shipped one by its name
    assert (resolved["seed_everything"], resolved["trainer"]["max_epochs"]) == (5, 2)
    assert resolved["data"]["class_path"] == "datamodules.NiftiDataModule"


def test_a_fold_that_is_not_there_is_refused_before_the_first_trains(tmp_path: Path) -> None:
    runs = FoldRuns(tmp_path, {}, (Fold(["b"], ["a"]), Fold(["a"], ["b"])), "last", 0)
    assert [*runs.checked(None)] == [0, 1]
    assert runs.checked([1]) == [1]
    with pytest.raises(ValueError, match=r"only=2: there are 2 folds; choose 0 to 1\."):
        runs.checked([0, 2])


def test_folds_leave_the_test_scans_out(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", subjects=4, held_out=1)
    folds = folds_of(read_dataset(root), SplitSettings(test_subjects=["p3", "p4"]), root)
    assert sorted(name for fold in folds for name in fold.val) == ["p0", "p1", "p2"]
    assert all(set(fold.train) | set(fold.val) == {"p0", "p1", "p2"} for fold in folds)


@pytest.mark.parametrize("choice", [{"val_slab": 0.25}, {"val_subjects": ["p1"]}, {"fold": 1}])
def test_a_planned_split_makes_room_for_the_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: dict[str, object]
) -> None:
    """`mois init` keeps slices of every scan for validation where patients are few."""
    root = write_dataset(tmp_path / "data", subjects=3, lesions=6)
    scans = read_dataset(root)
    (tmp_path / "small.yaml").write_text("seed_everything: 3\n", encoding="utf-8")
    settings = [*LORA, *data(root, **choice)]
    runs = FoldRuns.plan(tmp_path / "small.yaml", tmp_path / "folds", settings, "last")
    made: list[Splits] = []

    def here(command: Sequence[str]) -> int:
        given = yaml.safe_load(Path(command[command.index("--config") + 1]).read_text(encoding="utf-8"))
        arguments = given["data"]["init_args"]
        made.append(divide(scans, SplitSettings(**arguments["split"]), root, 3))
        return 0

    monkeypatch.setattr("mois.cli.fold_steps.run_command", here)
    for number in range(3):
        runs.run(number)
    fits, tests = made[::2], made[1::2]
    assert sorted(scan.subject for one in fits for scan in one.val) == ["p0", "p1", "p2"]
    assert [one.test for one in tests] == [one.val for one in fits]
    assert [one.train for one in tests] == [one.train for one in fits]


def test_folds_are_not_made_of_all_scans_where_a_few_were_chosen(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", subjects=4, lesions=6)
    (tmp_path / "small.yaml").write_text("seed_everything: 3\n", encoding="utf-8")
    settings = [*LORA, *data(root, train_subjects=["p0", "p2"])]
    line = (
        r"data\.init_args\.split\.train_subjects=\['p0', 'p2'\]: mois folds says who trains; set it to null, and name "
        r"scans that no fold may take in data\.init_args\.split\.test_subjects\."
    )
    with pytest.raises(ValueError, match=f"^{line}$"):
        FoldRuns.plan(tmp_path / "small.yaml", tmp_path / "folds", settings, "last")


@pytest.mark.ci
def test_folds_of_six_patients_give_six_rows_and_go_on_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_dataset(tmp_path / "data", subjects=6, lesions=6)
    (tmp_path / "small.yaml").write_text("seed_everything: 3\n", encoding="utf-8")
    small = [*LORA, *data(root, episodes_per_epoch=1, num_workers=0), "--trainer.max_steps=1", "--dry_step=false"]
    made: list[str] = []

    def here(command: Sequence[str]) -> int:
        if len(made) == 2:  # killed in the training of the second fold
            made.append("killed")
            return 1
        made.append(command[3])
        mois_main(command[3:])
        return 0

    monkeypatch.setattr("mois.cli.fold_steps.run_command", here)
    asked = ["folds", f"--config={tmp_path / 'small.yaml'}", f"--out={tmp_path / 'folds'}", *small]
    with pytest.raises(SystemExit):
        mois_main(asked)
    mois_main(asked)
    assert made == ["fit", "test", "killed", *["fit", "test"] * 4]
    mois_main(asked)
    assert len(made) == 11  # nothing again

    with (tmp_path / "folds" / "test" / "subjects.csv").open() as file:
        subjects = list(csv.DictReader(file))
    assert [row["subject"] for row in subjects] == [f"p{number}" for number in range(6)]
    metrics = json.loads((tmp_path / "folds" / "test" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["summary"]["n_patients"] == 6
    assert len(metrics["summary"]["prompted"]["dice"]["ci95"]) == 2
    for number in range(5):
        provenance = json.loads((tmp_path / "folds" / f"fold{number}" / "provenance_test.json").read_text())
        assert provenance["trained_on"] == []
    assert (tmp_path / "folds" / "test" / "report.html").is_file()
    mois_main(["compare", str(tmp_path / "folds"), str(tmp_path / "folds" / "fold0"), f"--out={tmp_path / 'compared'}"])
    assert "6 patients" in capsys.readouterr().out
