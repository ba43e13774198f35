from __future__ import annotations

import csv
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from stand_in import Model
from torch.utils.data import DataLoader

from mois import __version__
from mois.cli import main as mois_main
from mois.cli.arguments import command_line
from mois.cli.commands import COMMANDS, with_options
from mois.cli.doctor_checks import Finding
from mois.cli.messages import NO_GPU
from mois.cli.train import MoisCLI
from mois.cli.train import main as train_main
from mois.cli.training_checks import choose_precision
from mois.sharing.calibration import Calibration
from mois.training.callbacks import step_seed
from tests.support.example_results import example_report
from tests.support.paths import ROOT

SMALL = [
    "--model.layer=stand_in.Layer",
    "--data=stand_in.Data",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--tracking.wandb=disabled",
]


@pytest.fixture(autouse=True)
def work_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MOIS_TRACEBACK", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


def train(*arguments: str) -> MoisCLI:
    with command_line(arguments):
        return MoisCLI(arguments, Model)


@pytest.fixture
def failing(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that has to end with code 2, and return the one line that it says."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            train(*arguments)
        assert stop.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed set")]
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return run


def losses(folder: str) -> dict[int, float]:
    with Path(folder, "metrics.csv").open(encoding="utf-8") as file:
        return {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "no command was given; choose one of fit, validate, test, predict"),
        (["fti"], "fti is no command; did you mean fit?"),
        (["fit", *SMALL, "--trainer.max_stps=3"], "trainer.max_stps is no setting; did you mean trainer.max_steps?"),
        (["fit", *SMALL, "--trainer.gpus=3"], "trainer.gpus is no setting; did you mean trainer.devices?"),
        (["fit", *SMALL, "--epochs=3"], "epochs is no setting; did you mean trainer.max_epochs?"),
        (["fit", *SMALL, "--resume=last"], "resume is no setting; did you mean ckpt_path?"),
        (["fit", *SMALL, "--batch=3"], "batch is no setting; did you mean data.init_args.batch_size?"),
        (["fit", *SMALL, "--trainer.max_epochs=abc"], "trainer.max_epochs=abc is not allowed; give int or null"),
        (["fit", *SMALL, "--model.rate=x"], "model.rate=x is not allowed; give float"),
        (
            ["fit", *SMALL, "--model.layer.init_args.widht=3"],
            "model.layer.init_args.widht is no setting of stand_in.Layer; did you mean width?",
        ),
        (
            ["fit", *SMALL, "--data.init_args.batchsize=3"],
            "data.init_args.batchsize is no setting of stand_in.Data; did you mean batch_size?",
        ),
        (["fit", "--data=stand_in.Dta"], "data=stand_in.Dta: stand_in has no class Dta; did you mean Data?"),
        (
            ["fit", "--data=datamodule.NiftiDataModule"],
            "data=datamodule.NiftiDataModule: there is no module datamodule; did you mean datamodules.NiftiDataModule?",
        ),
        (
            ["fit", *SMALL, "--model.layer.init_args.width=0"],
            "model.layer.init_args.width=0 is too small; choose 1 or more.",
        ),
        (
            ["test", *SMALL, "--ckpt_path=gone.ckpt"],
            "ckpt_path=gone.ckpt: there is no such file; . holds no checkpoint, train first (fit)",
        ),
        (
            ["fit", "--data=my_module.MyData"],
            "data=my_module.MyData: there is no module my_module; "
            "the folder of a module of yours has to be on PYTHONPATH",
        ),
        (
            ["fit", "--data=datamodule.MyData"],
            "data=datamodule.MyData: there is no module datamodule; "
            "the folder of a module of yours has to be on PYTHONPATH",
        ),
        pytest.param(
            ["fit", *SMALL, "--trainer.accelerator=gpu"],
            f"No supported gpu backend found! Without a GPU: {NO_GPU}",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
        (
            ["fit", *SMALL, f"--trainer={ROOT / 'configs' / 'trainer' / 'ddp.yaml'}", "--trainer.accelerator=cpu"],
            f"`devices` selected with `CPUAccelerator` should be an int > 0. Without a GPU: {NO_GPU}",
        ),
        (
            ["fit", *SMALL, "--checkpoints.mode=most"],
            "checkpoints.mode=most is not allowed; give max, min",
        ),
        (
            ["fit", "--data.init_args.batch_size=3", *SMALL],
            "data.init_args.batch_size stands before --data=stand_in.Data, which names its class; write it behind that",
        ),
        (
            ["fit", "--data.init_args.batch_size=3"],
            "data.init_args.batch_size: no class is named that has it; name one first, --data=MODULE.CLASS",
        ),
        (
            ["fit", *SMALL, "--data.init_args.names=[001,010]"],
            "data.init_args.names=1 is not allowed; give str or null: YAML takes names like 001 (1) and 010 (8) for "
            """numbers; put them in quotes, --data.init_args.names='["001", "010"]'""",
        ),
        (
            ["fit", *SMALL, "--data.init_args.batch_size=null"],
            "data.init_args.batch_size=null is not allowed; give int.",
        ),
        (["fit", *SMALL, "--data.init_args.batch_size=two"], "data.init_args.batch_size=two is not allowed; give int"),
        (
            ["fit", *SMALL, "--data.init_args.shares.first=null"],
            "data.init_args.shares.first=null is not allowed; give float.",
        ),
        (
            ["fit", *SMALL, "--data.init_args.shares.frist=1"],
            "data.init_args.shares.frist is no setting of stand_in.Data.shares; there is first.",
        ),
        (["fit", *SMALL, "--model.rate=null"], "model.rate=null is not allowed; give float"),
        (
            ["fit", *SMALL, "--model.layer=null"],
            "model.layer=null is not allowed; give a class (Layer) by its import path",
        ),
        (
            ["fit", *SMALL, "--model.layer=stand_in"],
            "model.layer=stand_in is no class; write its import path, MODULE.CLASS",
        ),
        (
            ["fit", *SMALL, "--model.layer=stand_in.Numbers"],
            "model.layer=stand_in.Numbers is no Layer; did you mean stand_in.Layer?",
        ),
        (
            ["fit", *SMALL, "--trainer.callbacks=[foo]"],
            "trainer.callbacks=foo is no class; write its import path, MODULE.CLASS",
        ),
        (
            ["fit", *SMALL, "--tracking=offline"],
            "tracking=offline is not allowed: tracking is a group of settings; set one of them, --tracking.NAME=VALUE",
        ),
        (["fit", *SMALL, "--trainer.max_steps"], "trainer.max_steps has no value; write --trainer.max_steps=VALUE"),
        (
            ["fit", *SMALL, "-trainer.max_steps=3"],
            "-trainer.max_steps=3 is taken for no option; write two hyphens: --trainer.max_steps=3",
        ),
        (
            ["fit", *SMALL, "\N{EM DASH}trainer.max_steps=3"],
            "\N{EM DASH}trainer.max_steps=3 is taken for no option; write two hyphens: --trainer.max_steps=3",
        ),
        (
            ["fit", *SMALL, "--trainer.max_steps 3"],
            "--trainer.max_steps 3 is one argument; write --trainer.max_steps=3",
        ),
        (
            ["fit", *SMALL, "extra"],
            "extra belongs to no option; write --OPTION=extra",
        ),
        (["fit", *SMALL, "--seed_everything=-1"], "seed_everything=-1 is no seed; choose 0 to 4294967295."),
        (
            ["fit", *SMALL, "--seed_everything=4294967296"],
            "seed_everything=4294967296 is no seed; choose 0 to 4294967295.",
        ),
    ],
)
def test_a_wrong_command_line_ends_in_one_line(failing: Callable[..., str], arguments: list[str], line: str) -> None:
    assert failing(*arguments) == line


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ("trainer: {max_stps: 3}", "trainer.max_stps is no setting (c.yaml); did you mean trainer.max_steps?"),
        ("trainr: {max_steps: 3}", "trainr.max_steps is no setting (c.yaml); did you mean trainer.max_steps?"),
        ("trainer: {max_steps: many}", "trainer.max_steps=many is not allowed; give int"),
        (
            "model: {layer: {class_path: stand_in.Layer, init_args: {widht: 3}}}",
            "model.layer.init_args.widht is no setting of stand_in.Layer (c.yaml); did you mean width?",
        ),
        (
            "model: {layer: {class_path: stand_in.Layer, init_args: {width: wide}}}",
            "model.layer.init_args.width=wide is not allowed; give int",
        ),
        (
            "model: {rate: '${oc.env:NOT_SET}'}",
            "model.rate: environment variable NOT_SET is not set; set it, or give a default: ${oc.env:NOT_SET,DEFAULT}",
        ),
        (
            "trainer: part/none.yaml",
            "trainer=part/none.yaml: there is no such file; paths in a config are relative to that config",
        ),
        ("trainer: {max_steps: 3", "c.yaml is no YAML: line 2, column 1: expected ',' or '}', but got '<stream end>'"),
        (
            "trainer: {max_steps: 3}\ntrainer: {max_epochs: 2}",
            "c.yaml is no YAML: line 2, column 1: trainer stands twice",
        ),
        (
            "model: {layer: stand_in.Layer}\ntrainer: 5",
            "trainer=5 (c.yaml) is not allowed: trainer is a group of settings; write them under it, "
            "trainer: {NAME: VALUE}",
        ),
        ("", "config=c.yaml is empty; a config is a table of settings, `key: value`."),
        ("hello", "config=c.yaml holds a str; a config is a table of settings, `key: value`."),
        ("1: 2", "c.yaml: key 1 is no text; write a setting's name"),
        ("trainer: &a {callbacks: [*a]}", "c.yaml: a value holds itself; write it out"),
        (
            "model: {layer: {class_path: stand_in.Layer, width: 3}}",
            "model.layer.width stands beside class_path (c.yaml); write it under model.layer.init_args",
        ),
        (
            "model: {layer: {class_path: stand_in.Layer, init_arg: {width: 3}}}",
            "model.layer.init_arg is no key of a class (c.yaml); did you mean init_args?",
        ),
        (
            "model: {layer: {class_path: stand_in.Layer, init_args: null}}",
            "model.layer.init_args of stand_in.Layer is null; write settings under it, or leave it out",
        ),
        (
            "model: {layer: {class_path: stand_in.Layer, init_args: {width: null}}}",
            "model.layer.init_args.width=null (c.yaml) is not allowed; give int.",
        ),
    ],
)
def test_a_wrong_config_ends_in_one_line(failing: Callable[..., str], config: str, line: str) -> None:
    Path("c.yaml").write_text(config + "\n", encoding="utf-8")
    assert failing("fit", "--config", "c.yaml", "--data=stand_in.Data") == line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("model: {} # Größe".encode("latin-1"), "byte 14 (0xf6) is no UTF-8"),
        ("\ufeffmodel: {}".encode("utf-16-le"), "byte 0 (0xff) is no UTF-8"),
        (b"model:\0 {}", "byte 6 is 0, so it is no text, or UTF-16 without its mark"),
    ],
)
def test_a_config_in_another_encoding_is_named(failing: Callable[..., str], content: bytes, said: str) -> None:
    Path("c.yaml").write_bytes(content)
    assert (
        failing("fit", "--config", "c.yaml", "--data=stand_in.Data")
        == f"c.yaml: {said}; save it as UTF-8 (Excel: CSV UTF-8)."
    )


def test_a_config_may_begin_with_a_byte_order_mark() -> None:
    Path("c.yaml").write_text("\ufefftrainer: {max_steps: 1}\nmodel: {layer: stand_in.Layer}\n", encoding="utf-8")
    assert train("fit", "--config=c.yaml", *SMALL[1:]).trainer.global_step == 1


def test_names_that_look_like_numbers_are_found_in_a_config(failing: Callable[..., str]) -> None:
    Path("c.yaml").write_text(
        "data:\n  class_path: stand_in.Data\n  init_args: {names: [001, p2]}\nmodel: {layer: stand_in.Layer}\n",
        encoding="utf-8",
    )
    assert failing("fit", "--config=c.yaml") == (
        "data.init_args.names=1 is not allowed; give str or null: YAML takes names like 001 (1) and 010 (8) for "
        'numbers; put them in quotes, names: ["001", "010"]'
    )


def test_a_config_that_is_missing_is_named(failing: Callable[..., str], tmp_path: Path) -> None:
    assert failing("fit", "--config=none.yaml") == f"config: there is no file {tmp_path / 'none.yaml'}"


def test_a_list_that_is_none_is_offered_an_empty_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_main(["fit", "--model.companions=null", "--data=stand_in.Data"])
    assert capsys.readouterr().err == (
        "error: model.companions=null is not allowed; give a list, [] for an empty one\n"
    )


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "configure_optimizers", lambda self: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        train("fit", *SMALL, "--trainer.max_steps=1")


def test_a_fault_that_a_library_finds_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def called_wrongly(self: Model) -> None:
        try:
            json.loads("{")
        except ValueError:
            DataLoader([], batch_size=-1)

    monkeypatch.setattr(Model, "configure_optimizers", called_wrongly)
    with pytest.raises(ValueError, match="batch_size should be"):
        train("fit", *SMALL, "--trainer.max_steps=1")


def test_the_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOIS_TRACEBACK", "1")
    with pytest.raises(ValueError, match="too small"):
        train("fit", *SMALL, "--model.layer.init_args.width=0")


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
    assert missing == "ckpt_path=runs/run/checkpoints/best.ckpt: there is no such file; there is --ckpt_path last"


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
        "error: checkpoints.monitor=val/rigth is no figure of the validation; it logged val/right"
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
        "give a checkpoint that train.py wrote"
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


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["doctr"], "doctr is no command; did you mean doctor?"),
        (["fit", "--config=c.yaml"], "fit is a command of train.py: python train.py fit"),
        (
            ["segment", "--bundle=b", "scan.nii.gz"],
            "scan.nii.gz belongs to no option; write it right behind the command, segment scan.nii.gz ...",
        ),
        (["phantom", "--out=p", "--seed=-1"], "seed=-1 is no seed; choose 0 to 4294967295."),
        (["phantom"], "not set: out; set it with --out=VALUE, or in a file given with --config FILE"),
        (["phantom", "--out=p", "--subjcts=2"], "subjcts is no setting; did you mean subjects?"),
        (
            ["evaluate", "--data=none", "--out=o", "--protocol.counts", "1"],
            "protocol.counts=1 is not allowed; give a list such as [1,3]",
        ),
        (
            ["evaluate", "--data=none", "--out=o", "--protocol.promptd", "3"],
            "protocol.promptd is no setting; did you mean protocol.counts?",
        ),
        (["phantom", "--out=p", "--subjects=two"], "subjects=two is not allowed; give int"),
        (
            ["phantom", "--out=p", "--types", "ring,rng"],
            "types=rng: no such lesion type; there is solid_bright, ring, striped, dark",
        ),
        (
            ["phantom", "--out=p", "--types=[rng]"],
            "types=rng: no such lesion type; there is solid_bright, ring, striped, dark",
        ),
    ],
)
def test_wrong_mois_commands_end_in_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        mois_main(arguments)
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        (["evaluate", "--trust", "lab"], ["evaluate", '--trust=["lab"]']),
        (["segment", "a.nii", "--trust=lab,lib.x"], ["segment", "--image=a.nii", '--trust=["lab", "lib.x"]']),
        (["compare", "A", "B", "--names=[a,b]"], ["compare", '--runs=["A", "B"]', "--names=[a,b]"]),
        (["evaluate", "--trust=null", "--out", "trust"], ["evaluate", "--trust=null", "--out", "trust"]),
        (["compare", "A", "B", "--out", "C"], ["compare", '--runs=["A", "B"]', "--out", "C"]),
        (["doctr"], ["doctr"]),
        ([], []),
    ],
)  # fmt: skip
def test_words_become_the_lists_that_options_take(given: list[str], parsed: list[str]) -> None:
    assert with_options(given) == parsed


@pytest.mark.parametrize("given", [[], ["--help"], ["-h"]])
def test_all_commands_are_listed_a_line_each(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    mois_main(given)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [command.__name__ for command in COMMANDS]
    assert all(len(line) <= 100 and line.endswith(".") for line in lines[2:])


def test_help_waits_for_no_heavy_package() -> None:
    code = (
        "import sys\nfrom mois.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'lightning', 'sam2', 'peft', 'torchio') if name in sys.modules])"
    )
    text = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout
    assert "phantom" in text
    assert text.splitlines()[-1] == "[]"


def test_doctor_says_one_line_for_each_thing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mois.cli.doctor_checks.packages", lambda: Finding("packages", False, "torch is missing; run `make setup`")
    )
    with pytest.raises(SystemExit, match="1"):
        mois_main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["packages:", "device:", "disk:", "tracking:"]
    assert lines[0] == "FIX  packages: torch is missing; run `make setup`"


def test_data_that_needs_no_seed_gets_none() -> None:
    cli = train(
        "fit", *[a.replace("stand_in.Data", "stand_in.DataWithoutSeed") for a in SMALL], "--trainer.max_steps=1"
    )
    assert "seed" not in cli.settings["data"]["init_args"]


def test_the_seed_is_said_once(failing: Callable[..., str]) -> None:
    Path("c.yaml").write_text(
        "data: {class_path: stand_in.Data, init_args: {seed: 3}}\nmodel: {layer: stand_in.Layer}\n", encoding="utf-8"
    )
    assert failing("fit", "--config=c.yaml", "--seed_everything=4", "--trainer.max_steps=1") == (
        "data.init_args.seed=3 (c.yaml) is not taken: seed_everything=4 serves all; leave it out"
    )


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    from mois.cli import main as mois
    from mois.cli.train import main as train

    for program in (mois, train):
        program(["--version"])
        assert capsys.readouterr().out.startswith(f"mois {__version__}")
