"""The wheel alone, in an environment that does not see the checkout, works from an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

from mois.cli.shipped_configs import config_names
from tests.support.paths import ROOT

pytestmark = pytest.mark.ci

SOURCES = ("mois", "adapters", "datamodules", "configs", "pyproject.toml", "README.md", "LICENSE")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel of a copy of the sources, beside which lie files of a user."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source, target = ROOT / name, folder / "sources" / name
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    for own in (
        "configs/mine.yaml",
        "configs/trainer/mine.yaml",
        "mois/weights/mine.safetensors",
        "mois_of_mine/notes.py",
    ):
        (folder / "sources" / own).parent.mkdir(exist_ok=True)
        (folder / "sources" / own).write_text("# a file of the user\n", encoding="utf-8")
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "sources")]
    subprocess.run(build, check=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """Return an environment with the wheel, and with the packages of this one but not its checkout."""
    environment = wheel.parent / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    packages = next(environment.glob("lib/python*/site-packages"))
    subprocess.run([*PIP, "--python", str(python), "install", "--no-deps", str(wheel)], check=True)
    # a line of a .pth file becomes a path; the .pth files that lie there are not read, so the checkout is not found
    (packages / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    return environment


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, where nothing leads to the checkout."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(environment: Path, *words: str, program: str = "mois") -> str:
    command = [str(environment / "bin" / program), *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_holds_one_copy_of_each_config_and_the_marks_of_typed_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    configs = [f"mois/configs/{name}.yaml" for name in config_names()]
    assert sorted(name for name in names if name.endswith(".yaml")) == sorted(configs)
    assert {"mois/py.typed", "adapters/py.typed", "datamodules/py.typed"} <= set(names)
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"mois", "adapters", "datamodules"}


def test_the_wheel_holds_no_file_of_the_user(wheel: Path) -> None:
    assert [name for name in zipfile.ZipFile(wheel).namelist() if "mine" in name] == []


def test_the_installed_packages_are_those_of_the_wheel(installed: Path, empty: Path) -> None:
    lines = "import mois, adapters, datamodules; print(*(one.__file__ for one in (mois, adapters, datamodules)))"
    files = run(installed, "-c", lines, program="python").split()
    assert all(Path(file).is_relative_to(installed) for file in files)
    assert list(empty.iterdir()) == []


def test_its_configs_are_listed_and_written(installed: Path, empty: Path) -> None:
    assert "demo " in run(installed, "configs")
    assert run(installed, "-m", "mois", "configs", program="python") == run(installed, "configs")
    run(installed, "configs", "trainer/ddp", "--out", "mine.yaml")
    written = (empty / "mine.yaml").read_text(encoding="utf-8")
    assert written == (ROOT / "configs" / "trainer" / "ddp.yaml").read_text(encoding="utf-8")


def test_its_demo_ends_with_the_figures_of_the_checkout_and_a_shipped_config_trains(
    installed: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(installed, "phantom", "demo/data", "--subjects=2", "--test_subjects=1", "--types=[ring,dark]")
    run(installed, "configs", "demo", "--out", "small.yaml")
    small = yaml.safe_load((empty / "small.yaml").read_text(encoding="utf-8"))
    small["trainer"] |= {"devices": 1, "strategy": "auto", "max_epochs": 1, "check_val_every_n_epoch": 1}
    small["data"]["init_args"] |= {"split": {"val_subjects": ["phantom_0001"]}, "pixel_mm": 3, "patch_px": 64}
    small["data"]["init_args"] |= {"batch_size": 1, "episodes_per_epoch": 2, "num_workers": 0}
    small["model"]["inference"] = {"pixel_mm": 3, "tile_px": 64}
    (empty / "small.yaml").write_text(yaml.safe_dump(small), encoding="utf-8")
    run(installed, "demo", "--out", "demo", "--training", "small.yaml")
    (empty / "checkout").mkdir()
    (empty / "demo" / "data").rename(empty / "checkout" / "data")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    checkout = [sys.executable, "-m", "mois", "demo", "--out", "checkout", "--training", "small.yaml"]
    subprocess.run(checkout, check=True, capture_output=True)
    monkeypatch.delenv("PYTHONPATH")
    ours, theirs = (
        json.loads((empty / name / "summary.json").read_text(encoding="utf-8")) for name in ("demo", "checkout")
    )
    for part in ("before", "after"):
        assert ours[part].keys() >= {"right", "unprompted_dice"}
        assert ours[part] == pytest.approx(theirs[part], abs=1e-6)
    (empty / "checkout" / "data").rename(empty / "demo" / "data")

    few = ["--trainer.max_steps=2", "--trainer.devices=1", "--trainer.strategy=auto", "--trainer.limit_val_batches=0"]
    data = ["--data.init_args.root=demo/data", "--data.init_args.split.val_subjects=[phantom_0001]"]
    run(installed, "fit", "--config", "demo", *few, *data, "--data.init_args.num_workers=0")
    assert (empty / "runs" / "demo" / "bundle" / "bundle.json").is_file()
