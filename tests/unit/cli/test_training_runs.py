"""Trainings by the command line: records, checkpoints, loggers, trainer parts."""

from __future__ import annotations

import csv
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from stand_in import Model

from mois.cli.train import MoisCLI, quieten
from mois.cli.training_checks import choose_precision
from mois.sharing.calibration import Calibration
from mois.training.callbacks import step_seed
from tests.support.command_lines import SMALL, losses, train
from tests.support.example_results import example_report
from tests.support.paths import ROOT

pytestmark = pytest.mark.usefixtures("work_elsewhere")


def test_a_short_epoch_gives_no_warning() -> None:
    with warnings.catch_warnings(record=True) as shown:
        quieten()
        warnings.warn("The number of training batches (8) is smaller than the logging interval", stacklevel=1)
        warnings.warn("Checkpoint directory runs/mine exists and is not empty.", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["something else"]


def test_a_run_says_what_made_it() -> None:
    cli = train("fit", *SMALL, "--trainer.max_steps=6", "--checkpoints.every_n_steps=4", "--seed_everything=7")
    folder = Path("runs/run")
    assert cli.datamodule.seed == 7
    assert yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["data"]["init_args"]["batch_size"] == 2
    record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert (record["seed"], record["data"]) == (7, "numbers somewhere")
    assert record["packages"]["sam2"] == "1.1.0"
    for name in ("best", "last"):
        checkpoint = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert sorted(checkpoint["state_dict"]) == ["layer.trained.bias", "layer.trained.weight"]
        assert checkpoint["mois"]["provenance"] == record
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    with (folder / "tables" / "parameters_000000.csv").open() as file:
        assert list(csv.reader(file)) == [["part", "parameters", "trained"], ["layer", "6", "4"], ["all", "6", "4"]]


def test_a_resumed_run_repeats_the_losses_of_an_uninterrupted_one() -> None:
    whole = [*SMALL, "--trainer.max_steps=11", "--trainer.default_root_dir=whole"]
    halves = [*SMALL, "--trainer.default_root_dir=halves", "--checkpoints.every_n_steps=3"]
    train("fit", *whole)
    train("fit", *halves, "--trainer.max_steps=6")  # the second epoch has 4 batches, 2 of them are done
    Path("halves/checkpoints/best.ckpt").unlink()
    train("fit", *halves, "--trainer.max_steps=11", "--ckpt_path=last")
    assert losses("halves") == losses("whole")
    assert len(losses("whole")) == 11


def test_wandb_goes_on_in_the_same_run() -> None:
    recorded = [*SMALL[:-1], "--tracking.wandb=offline"]
    train("fit", *recorded, "--trainer.max_steps=2")
    train("fit", *recorded, "--trainer.max_steps=4", "--ckpt_path=last")
    runs = [path.name for path in Path("runs/run/wandb").glob("offline-run-*")]
    assert len(runs) == 2
    run_id = torch.load("runs/run/checkpoints/last.ckpt", weights_only=True)["mois"]["run_id"]
    assert all(run_id in name for name in runs)


def test_last_without_a_checkpoint_starts_anew_and_a_second_start_is_refused(failing: Callable[..., str]) -> None:
    train("fit", *SMALL, "--trainer.max_steps=1", "--ckpt_path=last")
    assert failing("fit", *SMALL, "--trainer.max_steps=1") == (
        "trainer.default_root_dir=runs/run holds a training already; go on with it (--ckpt_path last), "
        "or choose another folder"
    )


def test_a_training_that_is_never_validated_says_so(
    failing: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        train("fit", *SMALL, "--trainer.max_steps=1", "--trainer.check_val_every_n_epoch=9")
    assert "this training was never validated: there is no best.ckpt (test with --ckpt_path last)" in caplog.text
    missing = failing("test", *SMALL, "--ckpt_path=best")
    there = "there is --ckpt_path last, --ckpt_path start"
    assert missing == f"ckpt_path=runs/run/checkpoints/best.ckpt: there is no such file; {there}"


def test_the_best_checkpoint_is_the_one_that_is_tested() -> None:
    train("fit", *SMALL, "--trainer.max_steps=8")
    best = torch.load("runs/run/checkpoints/best.ckpt", weights_only=True)
    cli = train("test", *SMALL, "--ckpt_path=best")
    assert torch.equal(cli.model.layer.trained.weight, best["state_dict"]["layer.trained.weight"])
    assert Path("runs/run/config_test.yaml").is_file()


def test_a_test_is_as_sure_of_its_candidates_as_the_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "reports", {"": [example_report("v0", "v0", 0.5, 1)]}, raising=False)
    train("fit", *SMALL, "--trainer.max_steps=8")
    monkeypatch.setattr(Model, "calibrations", {}, raising=False)
    train("test", *SMALL, "--ckpt_path=best")
    validated = Model.reports[""][0].candidates
    fitted = Calibration.fit([one.peak for one in validated], [one.hit for one in validated])
    assert Model.calibrations == {"": fitted}


def test_a_monitor_that_nothing_logs_is_named_after_the_first_validation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train("fit", *SMALL, "--trainer.max_steps=8", "--checkpoints.monitor=val/rigth")
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: checkpoints.monitor=val/rigth is no figure of the validation; it logged val/right, val/score"
    )


def test_the_saved_config_makes_the_same_run_again() -> None:
    train("fit", *SMALL, "--trainer.max_steps=3", "--seed_everything=5", "--trainer.default_root_dir=first")
    train("fit", "--config=first/config.yaml", "--trainer.default_root_dir=second")
    assert losses("second") == losses("first")


def test_loggers_of_the_user_stand_beside_the_csv() -> None:
    wanted = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=other"]
    asks_at_setup = "--trainer.callbacks={class_path: DeviceStatsMonitor, init_args: {cpu_stats: false}}"
    cli = train("fit", *SMALL, "--trainer.max_steps=1", *wanted, asks_at_setup)
    assert [type(logger).__name__ for logger in cli.trainer.loggers] == ["CsvLogger", "CSVLogger"]
    cli = train(
        "fit", *SMALL, "--trainer.max_steps=1", "--trainer.logger=false", "--trainer.default_root_dir=runs/bare"
    )
    assert cli.trainer.loggers == []


def test_a_checkpoint_that_runs_code_is_refused(failing: Callable[..., str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return Path("hacked").touch, ()  # type: ignore[return-value]

    torch.save({"state_dict": Evil()}, "evil.ckpt", pickle_module=pickle)
    assert failing("test", *SMALL, "--ckpt_path=evil.ckpt") == (
        "ckpt_path=evil.ckpt: it holds more than tensors and plain values, and loading it could run foreign code; "
        "give a checkpoint that a training wrote"
    )
    assert not Path("hacked").exists()


def test_a_checkpoint_that_is_cut_short_is_refused(failing: Callable[..., str]) -> None:
    torch.save({"state_dict": torch.zeros(1000)}, "whole.ckpt")
    Path("half.ckpt").write_bytes(Path("whole.ckpt").read_bytes()[:2000])
    assert failing("test", *SMALL, "--ckpt_path=half.ckpt") == (
        "ckpt_path=half.ckpt: it is cut short; give another one"
    )


@pytest.mark.parametrize("part", sorted((ROOT / "configs" / "trainer").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_trainer_part_is_understood(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NNODES", "2")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    monkeypatch.setattr(MoisCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(MoisCLI, "_run_subcommand", lambda self, subcommand: None)
    Path("c.yaml").write_text(
        "trainer: {max_steps: 5}\nmodel: {layer: stand_in.Layer}\ndata: stand_in.Data\n", encoding="utf-8"
    )
    trainer = train("fit", "--config=c.yaml", f"--trainer={part}").settings["trainer"]
    assert trainer["max_steps"] == 5
    assert trainer["gradient_clip_val"] == 1.0
    assert trainer["use_distributed_sampler"] is False
    assert trainer["default_root_dir"] == "runs/c"
    assert len(part.read_text(encoding="utf-8").splitlines()) <= 30


def test_precision_is_chosen_by_what_the_device_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert choose_precision("auto") == "bf16-mixed"
    assert choose_precision("cpu") == "32-true"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert choose_precision("gpu") == "32-true"


def test_a_seed_belongs_to_its_step() -> None:
    seeds = {step_seed(run, epoch, batch) for run in range(2) for epoch in range(3) for batch in range(4)}
    assert len(seeds) == 24
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3) < 2**63
