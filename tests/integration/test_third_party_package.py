"""A package of somebody else brings a backbone of another family, an adapter, a propagation and a datamodule."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from adapters import Lora, Placement
from mois.sharing.bundle import Bundle
from mois.testing import check_adapter, check_backbone, check_datamodule, check_propagation
from tests.support.paths import ROOT
from tests.support.small_runs import BACKBONE, SMALL, folder, losses, train, validations

SOURCE = ROOT / "tests" / "support" / "third_party" / "mois_resnet"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Install the package into a folder of its own, as pip does."""
    work = tmp_path_factory.mktemp("third_party")
    shutil.copytree(SOURCE, work / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, str(work / "site"), str(work / "source")], check=True)
    sys.path.insert(0, str(work / "site"))
    yield work / "site"
    sys.path.remove(str(work / "site"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "mois_resnet"]:
        del sys.modules[name]


@pytest.mark.ci
def test_it_installs_trains_and_its_bundle_loads_if_it_is_trusted(installed: Path, tmp_path: Path) -> None:
    assert (installed / "mois_resnet" / "backbone.py").is_file()
    train(
        "fit",
        "--model.backbone=mois_resnet.ResNetSAM",
        f"{BACKBONE}heads=random",
        "--model.adapter=mois_resnet.LateLayers",
        "--model.propagation=mois_resnet.MeanToken",
        "--data=mois_resnet.Discs",
        f"--data.init_args.folder={tmp_path / 'scans'}",
        *SMALL,
        "--trainer.max_epochs=2",
        folder(tmp_path / "run"),
    )
    assert list(losses(tmp_path / "run")) == [0, 1, 2, 3]
    assert validations(tmp_path / "run")
    bundle = tmp_path / "run" / "bundle"
    with pytest.raises(ValueError, match=r"trust its module: --trust mois_resnet, or trust="):
        Bundle.load(bundle, "cpu")
    made = Bundle.load(bundle, "cpu", trust=["mois_resnet"])
    assert type(made.backbone).__name__ == "ResNetSAM"
    assert made.backbone.identity.name == "resnet18-nano"


@pytest.mark.ci
@pytest.mark.usefixtures("installed")
def test_each_part_keeps_its_contract(tmp_path: Path) -> None:
    package = import_module("mois_resnet")
    check_backbone(package.ResNetSAM(heads="random"))
    check_adapter(package.LateLayers(), package.ResNetSAM(heads="random"), package.MeanToken())
    heads = Lora(placement=Placement(["decoder", "memory_attention", "memory_encoder"]))
    check_adapter(heads, package.ResNetSAM(heads="random"), package.MeanToken())
    with pytest.raises(ValueError, match=r"'trunk' with stages \(3, 4\) matches no layer; there are 0.0.conv1"):
        Lora().attach(package.ResNetSAM(heads="random"), package.MeanToken())
    check_propagation(package.MeanToken())
    check_datamodule(package.Discs(tmp_path))
