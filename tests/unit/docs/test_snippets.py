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


MODULE = re.compile(r"python -m ((?:mois|tests)(?:\.\w+)*)")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = [file for folder in ("mois", "tests/bench", "tests/support") for file in sorted((ROOT / folder).rglob("*.py"))]


def test_modules_that_are_run_by_name_have_a_command():
    """Python runs a module without a command, too: nothing happens, and nothing is said."""
    named = {name for file in (*PAGES, *CODE) for name in MODULE.findall(file.read_text("utf-8"))}
    assert {"mois", "mois.cli.nnunet", "tests.bench.run"} <= named
    files = {name: ROOT / Path(*name.split(".")) for name in named}
    missing = [
        name
        for name, file in files.items()
        if not (file / "__main__.py").is_file()
        and '__name__ == "__main__"' not in file.with_suffix(".py").read_text("utf-8")
    ]
    assert not missing
