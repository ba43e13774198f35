"""Every YAML that we ship trains, and so does the demo."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn.parallel import DistributedDataParallel

from datamodules import PretrainDataModule
from mois.backbones import SAM2
from mois.backbones.rules import SAM2Rules
from mois.cli import main as mois_main
from mois.cli.shipped_configs import config_names
from mois.cli.train import main
from mois.inference.settings import InferenceSettings
from mois.scans.image_files import read_image
from mois.serve.shipped_model import served_model
from mois.sharing.bundle import Bundle
from tests.support.datasets import save_nifti
from tests.support.paths import ROOT
from tests.support.small_runs import SCANS, SMALL, config, data, folder, losses, rows, train, validations

FILES = [ROOT / "configs" / f"{name}.yaml" for name in config_names()]
CONFIGS = [file for file in FILES if file.parent.name == "configs"]
ADAPTERS = [file for file in FILES if file.parent.name == "adapters"]
TRAINERS = [file for file in FILES if file.parent.name == "trainer"]
TESTED = {
    "compare_propagations", "demo", "ms_lesions", "neurofibroma", "pretrain_nano", "pretrain_nano_2", "sam2",
    "template", "zero_shot",
}  # fmt: skip
INIT = "--data.init_args."
ONE_PROCESS = ["--trainer.devices=1", "--trainer.strategy=auto"]
pytestmark = pytest.mark.usefixtures("same_process")


def write_brains(root: Path) -> None:
    """Write two brain-like scans as the real dataset has them: two channels, one class, 1 mm, int16, zero outside."""
    rng = np.random.default_rng(0)
    shape = (40, 48, 24)
    where = np.moveaxis(np.indices(shape), 0, -1) + 0.5
    brain = (((where / shape - 0.5) * 2.1) ** 2).sum(-1) < 1
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    for patient, lesions in (("patient07", 6), ("patient19", 16)):
        label = np.zeros(shape, np.uint8)
        for x, y, z in rng.permutation(np.argwhere(brain[3:-3, 3:-3, 3:-3]))[:lesions] + 3:
            label[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = 1
        for channel in (0, 1):
            image = brain * (rng.normal(1000, 60, shape) + 700.0 * label)
            save_nifti(root / "imagesTr" / f"{patient}_{channel:04d}.nii.gz", image.astype(np.int16), affine)
        save_nifti(root / "labelsTr" / f"{patient}.nii.gz", label, affine)
    description = {"channel_names": {"0": "FLAIR", "1": "T2"}, "labels": {"background": 0, "lesion": 1}}
    (root / "dataset.json").write_text(json.dumps({**description, "numTraining": 2, "file_ending": ".nii.gz"}))


def test_every_config_is_short_and_says_how_to_run_it() -> None:
    assert {file.stem for file in CONFIGS} == TESTED  # a new one needs a test below
    for file in (*CONFIGS, *ADAPTERS, *TRAINERS):
        lines = file.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 30
        assert lines[0].startswith("# ")
        assert re.search(r"mois (fit|test) --config ", lines[0])
        assert yaml.safe_load(file.read_text(encoding="utf-8"))


def test_the_shipped_model_of_the_viewers_has_the_settings_of_zero_shot() -> None:
    options = yaml.safe_load((ROOT / "configs" / "zero_shot.yaml").read_text(encoding="utf-8"))["model"]["inference"]
    shipped = served_model(None, 1.5, "cpu").segmenter.settings
    assert shipped == InferenceSettings(**options)


def test_demo_trains(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    scans = data(make_dataset(subjects=2), val_subjects="[p1]", batch_size=1)
    train("fit", config("demo.yaml"), *SCANS, *ONE_PROCESS, *scans, "--trainer.max_steps=2", folder(tmp_path / "run"))
    assert list(losses(tmp_path / "run")) == [0, 1]
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert saved["model"]["inference"]["pixel_mm"] == 2  # unset: that of the data
    assert json.loads((tmp_path / "run" / "bundle" / "bundle.json").read_text())["inference"]["pixel_mm"] == 2


@pytest.mark.parametrize(
    "name", [name if name == "hra" else pytest.param(name, marks=pytest.mark.ci) for name in (f.stem for f in ADAPTERS)]
)
def test_each_adapter_trains_and_its_bundle_loads(name: str, make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    scans = data(make_dataset(subjects=2), val_subjects="[p1]", batch_size=1)
    chosen = [config("demo.yaml"), config(f"adapters/{name}.yaml")]
    train("fit", *chosen, *SCANS, *ONE_PROCESS, *scans, "--trainer.max_steps=2", folder(tmp_path / "run"))
    assert list(losses(tmp_path / "run")) == [0, 1]
    made = Bundle.load(tmp_path / "run" / "bundle", "cpu")
    given = yaml.safe_load((ROOT / "configs" / "adapters" / f"{name}.yaml").read_text(encoding="utf-8"))
    arguments = (made.identity.arguments or {})["adapter"]
    assert arguments.get("config") == given["model"]["adapter"].get("init_args", {}).get("config")


def test_the_template_trains_a_copy_with_nothing_but_its_marked_lines_set(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    template = (ROOT / "configs" / "template.yaml").read_text(encoding="utf-8")
    values = {
        "root": f"{make_dataset(subjects=2, held_out=1)}",
        "pixel_mm": "2",
        "val_subjects": "[p1]",
        "test_subjects": "null",
    }
    marked = [line for line in template.splitlines() if "# SET: " in line]
    assert sorted(line.partition(":")[0].strip() for line in marked) == sorted(values)
    lines = [
        f"{line.partition(':')[0]}: {values[line.partition(':')[0].strip()]}" if line in marked else line
        for line in template.splitlines()
    ]
    mine = tmp_path / "mine.yaml"
    mine.write_text("\n".join(lines), encoding="utf-8")
    small = [f"{INIT}{name}" for name in ("episodes_per_epoch=1", "batch_size=1")]
    run = [f"--config={mine}", *SMALL, *small, folder(tmp_path / "run")]
    train("fit", *run, "--trainer.max_epochs=1", "--seed_everything=1")  # after one step of 0 exemplars harm
    assert list(losses(tmp_path / "run")) == [0]
    train("test", *run, "--ckpt_path=best")
    assert (tmp_path / "run" / "test" / "report.html").is_file()
    assert "companions" not in template
    assert "configs/mine.yaml" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


@pytest.mark.ci
def test_ms_lesions_trains_on_one_patient_and_tests_on_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_brains(tmp_path / "Dataset501_MSLesions")
    monkeypatch.setenv("MOIS_REAL_DATA", str(tmp_path))
    run = [config("ms_lesions.yaml"), *SMALL, "--trainer.accelerator=auto", folder(tmp_path / "run")]
    run += [f"--data.init_args.{name}" for name in ("batch_size=1", "episodes_per_epoch=2")]
    train("fit", *run, "--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=2")
    assert list(losses(tmp_path / "run")) == [0, 1, 2, 3]
    (slab,) = validations(tmp_path / "run")
    assert slab["val/right"] >= 0
    train("test", *run, "--ckpt_path=best")
    result = json.loads((tmp_path / "run" / "test" / "metrics.json").read_text(encoding="utf-8"))
    assert [row["subject"] for row in result["subjects"]] == ["patient07"]
    # one class: nothing else's exemplars to be wrong with
    words = result["summary"]["conditioning"]
    assert [words[name]["n"] for name in ("right", "no_exemplars", "wrong", "swapped")] == [1, 1, 0, 0]


def test_neurofibroma_trains_with_another_backbone(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    backbone = [f"--model.backbone.init_args.{name}" for name in ("size=nano", "weights=random", "patch_px=64")]
    small = [*SCANS, *data(make_dataset(subjects=2), fold=0, batch_size=1, episodes_per_epoch=2, num_workers=0)]
    train("fit", config("neurofibroma.yaml"), *backbone, *small, "--trainer.max_epochs=1", folder(tmp_path / "run"))
    assert list(losses(tmp_path / "run")) == [0, 1]


@pytest.mark.ci
def test_the_line_in_the_readme_for_metas_weights_trains_tests_and_leaves_a_bundle(
    make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (given,) = re.findall(r"`mois (fit --config configs/sam2.yaml[^`]*)`", (ROOT / "README.md").read_text())
    meta = SAM2("tiny", "random", patch_px=64)  # as Meta's file holds it
    torch.save({"model": meta.weights()}, tmp_path / "sam2.1_hiera_tiny.pt")
    monkeypatch.chdir(ROOT)
    run = given.replace("DIR", str(make_dataset(subjects=2))).split()
    run += [f"--model.backbone.init_args.weights={tmp_path / 'sam2.1_hiera_tiny.pt'}", *SCANS, f"{INIT}num_workers=0"]
    run += [f"{INIT}batch_size=1", f"{INIT}episodes_per_epoch=1", folder(tmp_path / "run"), "--dry_step=false"]
    small = ["--model.backbone.init_args.patch_px=64", "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
    train(*run, *small)
    assert list(losses(tmp_path / "run")) == [0]
    made = Bundle.load(tmp_path / "run" / "bundle")
    assert made.segmenter().tracking.maps == 6
    assert made.identity.behaviour == asdict(SAM2Rules())


@pytest.mark.slow
@pytest.mark.real_data
def test_ms_lesions_trains_on_the_real_scans(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOIS_REAL_DATA", str(real_data))
    run = [config("ms_lesions.yaml"), *SMALL, "--data.init_args.batch_size=1", "--trainer.limit_val_batches=0"]
    train("fit", *run, "--trainer.max_steps=2", folder(tmp_path / "run"))
    assert list(losses(tmp_path / "run")) == [0, 1]


def phantoms(**options: int) -> list[str]:
    """Return arguments for tiny batches of phantoms, which are scored at 9 mm."""
    given = {"batch_size": 1, "num_workers": 0, **options}
    return [*SMALL, *ONE_PROCESS, "--model.inference.pixel_mm=9", *(f"{INIT}{key}={given[key]}" for key in given)]


@pytest.mark.ci
def test_pretrain_nano_2_trains_and_exports_what_an_adaptation_loads(tmp_path: Path) -> None:
    small = [*phantoms(episodes_per_epoch=4, batch_size=2, val_subjects=1), f"{INIT}val_pictures=0"]
    run = [config("pretrain_nano_2.yaml"), *small, f"{INIT}episodes_per_piece=2", "--trainer.max_epochs=1"]
    train("fit", *run, "--trainer.check_val_every_n_epoch=1", folder(tmp_path / "run"))
    weights = {file.stem: file for file in (tmp_path / "run" / "weights").glob("*.safetensors")}
    assert weights.keys() == {"nano", "nano_learnedmatching"}
    chosen = [f"--model.backbone.init_args.weights={weights['nano']}"]
    chosen += [f"--model.propagation.init_args.weights={weights['nano_learnedmatching']}"]
    train("validate", *run, *chosen, folder(tmp_path / "next"))


@pytest.mark.ci
def test_pretrain_nano_trains_and_exports_what_an_adaptation_loads(tmp_path: Path) -> None:
    small = phantoms(episodes_per_epoch=2, val_subjects=1)
    run = [config("pretrain_nano.yaml"), *small, "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
    train("fit", *run, folder(tmp_path / "run"))
    assert list(losses(tmp_path / "run")) == [0, 1]
    (scored,) = validations(tmp_path / "run")
    assert {"val/no_exemplars", "val/attention/no_exemplars"} <= scored.keys()
    same, other = (PretrainDataModule(2, val_subjects=1, patch_px=64, exemplars=2, seed=seed) for seed in (0, 1))
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["data"] == same.fingerprint() != other.fingerprint()

    weights = {file.stem: file for file in (tmp_path / "run" / "weights").glob("*.safetensors")}
    assert weights.keys() == {"nano", "nano_similarity", "nano_attention"}
    chosen = [f"--model.backbone.init_args.weights={weights['nano']}", "--model.companions=[]"]
    chosen += ["--model.propagation=mois.propagation.Attention"]
    chosen += [f"--model.propagation.init_args.weights={weights['nano_attention']}"]
    train("validate", *run, *chosen, folder(tmp_path / "next"))
    (again,) = validations(tmp_path / "next")
    assert again["val/no_exemplars"] == pytest.approx(scored["val/attention/no_exemplars"], abs=0.05)  # half precision


@pytest.mark.ci
def test_compare_propagations_trains_all_four(tmp_path: Path) -> None:
    small = phantoms(episodes_per_epoch=1, val_subjects=1)
    train("fit", config("compare_propagations.yaml"), *small, "--trainer.max_epochs=1", folder(tmp_path / "run"))
    (row,) = [row for row in rows(tmp_path / "run") if row["train/loss"]]
    for prefix in ("", "attention/", "attention2/", "attention3/"):
        assert float(row[f"train/loss_{prefix}semantic"]) > 0
    (scored,) = validations(tmp_path / "run")
    assert {f"val/{prefix}no_exemplars" for prefix in ("", "attention/", "attention2/", "attention3/")} <= scored.keys()


@pytest.mark.ci
def test_zero_shot_tests_all_three_for_every_number_of_exemplars(tmp_path: Path) -> None:
    small = [argument for argument in phantoms(test_subjects=1) if "prompted" not in argument]
    train("test", config("zero_shot.yaml"), *small, folder(tmp_path / "run"))
    for part in ("", "matching", "prototype"):
        result = json.loads((tmp_path / "run" / "test" / part / "metrics.json").read_text(encoding="utf-8"))
        assert [point["count"] for point in result["curve"]["points"]] == [0, 1, 3, 5, 10, 20]
        assert result["provenance"]["backbone"]["source"] == "bundled-2"


@pytest.mark.parametrize("part", TRAINERS, ids=lambda file: file.stem)
def test_every_trainer_part_trains(
    make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: Path
) -> None:
    def refuse(self: DistributedDataParallel) -> None:
        raise AssertionError("buffers are broadcast before a forward pass: ranks without a volume would miss it")

    monkeypatch.setattr(DistributedDataParallel, "_sync_buffers", refuse)
    job = {"JOB_ID": 7, "JOB_NAME": "mois", "NNODES": 1, "NTASKS": 1, "NTASKS_PER_NODE": 1, "PROCID": 0, "LOCALID": 0}
    for name, value in {**job, "NODEID": 0, "NODELIST": "localhost"}.items() if "slurm" in part.stem else ():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    here = [] if part.stem == "cpu" else ["--trainer.accelerator=cpu", "--trainer.devices=1"]
    scans = data(make_dataset(subjects=2), val_subjects="[p1]", episodes_per_epoch=1, batch_size=1, num_workers=0)
    run = [config("demo.yaml"), *SCANS, *scans, f"--trainer={part}", *here, "--trainer.max_epochs=1"]
    run += ["--trainer.check_val_every_n_epoch=1"]
    main(["fit", *run, folder(tmp_path / "run")])
    assert list(losses(tmp_path / "run")) == [0]
    assert len(validations(tmp_path / "run")) == 1


@pytest.mark.slow
def test_the_demo_ends_in_a_summary_and_goes_on_where_it_was(
    make_dataset: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    make_dataset(subjects=2, held_out=2).rename(out / "data")
    small = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    small["trainer"] |= {"devices": 1, "strategy": "auto", "max_epochs": 1, "enable_progress_bar": False}
    small["trainer"] |= {"check_val_every_n_epoch": 1}
    small["data"]["init_args"] |= {"split": {"val_subjects": ["p1"]}, "patch_px": 64}
    small["data"]["init_args"] |= {"batch_size": 1, "episodes_per_epoch": 2}
    small["data"]["init_args"] |= {"pixel_mm": 2, "num_workers": 0}
    small["model"]["inference"] = {"pixel_mm": 2, "tile_px": 64}
    small["tracking"] = {"wandb": "disabled"}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    commands: list[str] = []
    killed_at = "fit"

    def here(command: list[str]) -> int:
        commands.append(command[3])
        if command[3] == killed_at:
            return 1
        main(command[3:])
        return 0

    monkeypatch.setattr("mois.cli.demo_steps.run_command", here)
    demo = ["demo", f"--out={out}", f"--training={tmp_path / 'small.yaml'}"]
    with pytest.raises(SystemExit, match="1"):
        mois_main(demo)
    killed_at = ""
    mois_main(demo)
    assert commands == ["test", "fit", "fit", "test"]
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    words = {"right", "wrong", "swapped", "no_exemplars", "unprompted_dice", "lesion_f1"}
    assert summary["before"].keys() == summary["after"].keys() == words
    assert 0 < summary["trainable_fraction"] < 0.15
    assert summary["seed"] == 0
    assert summary["minutes"] > 0
    assert "before: done already" in capsys.readouterr().out
    candidates, report = out / "after" / "test" / "candidates.csv", out / "after" / "test" / "report.html"
    assert candidates.read_text(encoding="utf-8").splitlines()[0].endswith(",confidence")
    assert "before calibration" in report.read_text(encoding="utf-8")


def test_phantoms_from_the_command_line_can_be_examined_and_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "phantoms"
    mois_main(["phantom", f"--out={root}", "--subjects=1", "--test_subjects=1", "--types=[ring,dark]"])
    assert read_image(root / "imagesTr" / "phantom_0000_0000.nii.gz")[0].shape == (160, 256, 28)
    with suppress(SystemExit):  # with 1 where this machine lacks something, whatever it is
        mois_main(["doctor", f"--root={root}", f"--runs={tmp_path}"])
    (about_scans,) = [line for line in capsys.readouterr().out.splitlines() if " data: " in line]
    assert about_scans.startswith("ok")
    scans = data(root, batch_size=1, val_subjects="[]", pixel_mm=3)
    run = [config("demo.yaml"), *SMALL, *ONE_PROCESS, *scans, "--model.inference.pixel_mm=3"]
    run += ["--trainer.max_steps=1", folder(tmp_path / "run")]
    train("fit", *run)
    assert list(losses(tmp_path / "run")) == [0]
