"""A package of another project in the place of ours is noticed before anything of it is run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mois.machine.own_packages import refuse_foreign_packages
from tests.support.paths import ROOT


def test_our_packages_are_found() -> None:
    refuse_foreign_packages()


def test_a_missing_package_is_named() -> None:
    with pytest.raises(ValueError, match=r"the package adaptors has to be the one beside mois, .* but there is none"):
        refuse_foreign_packages(("adaptors",))


@pytest.mark.parametrize("command", [["-m", "mois.cli", "doctor"], [str(ROOT / "train.py"), "fit", "--help"]])
def test_another_projects_adapters_end_every_command_in_one_line(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "__init__.py").write_text("raise SystemExit('foreign code ran')\n")
    code = (
        f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); sys.path.insert(0, {str(tmp_path)!r}); "
        f"sys.argv = {['program', *command[-1 if '-m' not in command else 2 :]]!r}; "
        + ("from mois.cli import script; script()" if "-m" in command else "from mois.cli.train import main; main()")
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 2, run.stderr
    assert run.stderr.startswith("error: the package adapters has to be the one beside mois")
    assert "foreign code ran" not in run.stderr + run.stdout
