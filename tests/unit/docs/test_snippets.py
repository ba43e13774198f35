"""The Python of the pages runs as it stands, one page from top to bottom."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support.paths import ROOT

EARLIER = ROOT / "tests" / "fixtures" / "format_1"


def python_of(page: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), flags=re.M | re.S))


@pytest.mark.filterwarnings("ignore:.*unverified")
@pytest.mark.parametrize("page", ["README.md", "docs/tutorials/first_session.md"])
def test_a_pages_python_runs(page, tmp_path, monkeypatch):
    shutil.copytree(EARLIER / "bundle", tmp_path / "runs" / "demo" / "bundle")
    shutil.copytree(EARLIER / "data", tmp_path / "runs" / "demo" / "data")
    monkeypatch.chdir(tmp_path)
    code = python_of(page)
    assert "InteractiveSession" in code
    exec(compile(code, page, "exec"), {})
    assert (tmp_path / "out" / "lesions.nii.gz").is_file()


def test_the_plug_in_of_the_page_passes_the_contract():
    code = python_of("docs/plug_ins.md")
    known: dict[str, object] = {}
    exec(compile(code, "docs/plug_ins.md", "exec"), known)
    assert "DecoderNorms" in known


COMMAND = re.compile(r"python3? -m (\w+(?:\.\w+)*)")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = ("mois", "adapters", "datamodules", "tests/bench", "tests/support", "docs/site")
CODE = [ROOT / "Makefile", ROOT / "train.py", *(file for at in FOLDERS for file in sorted((ROOT / at).rglob("*.py")))]


def own_modules(text: str) -> set[str]:
    """Return the modules of this repository that a text runs by name, and not those of others, such as pip."""
    tops = {file.stem for file in ROOT.iterdir() if file.suffix == ".py" or (file.is_dir() and any(file.glob("*.py")))}
    return {name for name in COMMAND.findall(text) if name.split(".")[0] in {*tops, "tests"}}


def has_command(name: str) -> bool:
    file = ROOT / Path(*name.split("."))
    code = file.with_suffix(".py")
    return (file / "__main__.py").is_file() or (code.is_file() and '__name__ == "__main__"' in code.read_text("utf-8"))


def test_modules_that_are_run_by_name_have_a_command():
    """Python runs a module without a command, too: nothing happens, and nothing is said."""
    named = set().union(*(own_modules(file.read_text("utf-8")) for file in (*PAGES, *CODE)))
    assert {"mois", "mois.cli.nnunet", "tests.bench.run"} <= named
    assert {name for name in named if not has_command(name)} == set()


def test_modules_without_a_command_are_found_in_every_package():
    names = {"mois.cli", "adapters.lora", "datamodules.nifti", "tests.bench.units", "mois.not_there"}
    text = "; ".join(f"python -m {name}" for name in (*sorted(names), "pip", "venv"))
    assert own_modules(text) == names
    assert {name for name in names if has_command(name)} == {"mois.cli"}
