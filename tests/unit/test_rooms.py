"""Where names on users' disks and in the documentation lead, and how large a room may be."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.house import too_large
from tests.support.paths import ROOT

ON_DISK = {
    "adapters.Frozen": "adapters.plain",
    "adapters.Full": "adapters.plain",
    "adapters.IA3": "adapters.lora",
    "adapters.LoHa": "adapters.lora",
    "adapters.LoKr": "adapters.lora",
    "adapters.Lora": "adapters.lora",
    "datamodules.NiftiDataModule": "datamodules.nifti",
    "datamodules.PretrainDataModule": "datamodules.pretraining",
    "mois.backbones.SAM2": "mois.backbones.sam2",
    "mois.backbones.rules.SAM2Rules": "mois.backbones.rules",
    "mois.propagation.Attention": "mois.propagation.attention",
    "mois.propagation.Prototype": "mois.propagation.prototype",
    "mois.propagation.Similarity": "mois.propagation.similarity",
    "mois.training.ExportWeights": "mois.training.export",
}
"""Class paths that configs, checkpoints and bundles of users hold, and the module that defines the class."""

EARLIER = {
    "mois.bundle": ("Bundle",),
    "mois.exemplars": ("Exemplar", "ExemplarBank", "ModelIdentity"),
    "mois.io": ("DataError", "SubjectFiles", "read_dataset", "read_volume", "write_volume"),
}
"""Imports that the documentation of 0.1 taught."""


@pytest.mark.parametrize("path", ON_DISK)
def test_a_class_path_on_disk_leads_to_its_class(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert getattr(importlib.import_module(module), name).__module__ == ON_DISK[path]


@pytest.mark.parametrize("module", EARLIER)
def test_an_import_of_0_1_works_and_says_where_it_is_now(module: str) -> None:
    names = ", ".join(EARLIER[module])
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom {module} import {names}\nfrom {module} import {names}"
    run = subprocess.run(
        [sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count(f"{module} is now mois.") == 1


def test_what_travels_is_offered_to_the_author_of_a_plug_in() -> None:
    interfaces, records = importlib.import_module("mois.interfaces"), importlib.import_module("mois.records")
    for name in ("Episode", "Exemplars", "Features", "MaskPrediction", "Prompts", "SemanticPrediction", "Volume"):
        assert getattr(interfaces, name) is getattr(records, name)


def test_a_file_a_function_and_a_package_that_are_too_large_are_named(tmp_path: Path) -> None:
    for part in ("mois", "adapters", "datamodules", "tests"):
        (tmp_path / part).mkdir()
    (tmp_path / "train.py").write_text("\n" * 401)
    body = "\n".join(f"    a{line} = {line}" for line in range(50))
    (tmp_path / "mois" / "long.py").write_text(f'def long():\n    """Words."""\n{body}\n')
    (tmp_path / "adapters" / "__init__.py").touch()
    for number in range(17):
        (tmp_path / "adapters" / f"a{number}.py").touch()
    lines = list(too_large(tmp_path))
    assert [line.split(" has ")[0] for line in lines] == ["train.py", "mois/long.py: long", "adapters"]


def test_a_house_in_which_nothing_is_too_large_passes_the_check() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.house"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
