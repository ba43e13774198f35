from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stand_in import Model
from torch.utils.data import DataLoader

from mois.cli.fold_steps import resolved_config
from mois.cli.messages import NO_GPU
from mois.cli.settings import with_null_fields
from mois.cli.train import main as train_main
from tests.support.command_lines import SMALL, train
from tests.support.paths import ROOT

pytestmark = pytest.mark.usefixtures("work_elsewhere")


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
            ["fit", *SMALL, "--trainer=ddp"],
            "trainer=ddp is not allowed: trainer is a group of settings; did you mean trainer/ddp, a shipped config?",
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
            DataLoader([], batch_size=-1)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "configure_optimizers", called_wrongly)
    with pytest.raises(ValueError, match="batch_size should be"):
        train("fit", *SMALL, "--trainer.max_steps=1")


def test_the_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOIS_TRACEBACK", "1")
    with pytest.raises(ValueError, match="too small"):
        train("fit", *SMALL, "--model.layer.init_args.width=0")


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


@pytest.mark.parametrize("words", [["--data.init_args.split.fold=null"], ["--data.init_args.split.fold", "null"]])
def test_null_is_taken_for_a_field_of_a_record_as_in_a_file(words: list[str]) -> None:
    data = ["--data=datamodules.NiftiDataModule", "--data.init_args.split.val_slab=0.2"]
    known = with_null_fields([*data, *words, "--data.init_args.split.val_slab=null", "--ckpt_path", "null"])
    assert known == [
        *data,
        '--data.init_args.split={"fold": null}',
        "--data.init_args.split.val_slab=null",  # no number, so the parser refuses it by its name
        "--ckpt_path=null",
    ]


def test_a_null_on_the_command_line_takes_the_place_of_a_value_in_the_config(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "data: {class_path: datamodules.NiftiDataModule, init_args: {root: d, split: {fold: 1, val_slab: 0.0}}}"
    )
    split = resolved_config(["--config", str(tmp_path / "c.yaml"), "--data.init_args.split.fold=null"])["data"]
    assert (split["init_args"]["split"]["fold"], split["init_args"]["root"]) == (None, "d")
