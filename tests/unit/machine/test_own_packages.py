"""A package of another project in the place of ours is noticed before anything of it is run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mois.machine.own_packages import refuse_foreign_packages, warn_of_hidden_package
from tests.support.paths import ROOT


def test_our_packages_are_found() -> None:
    refuse_foreign_packages()


def test_a_missing_package_is_named() -> None:
    with pytest.raises(ValueError, match=r"the package adaptors has to be the one beside mois, .* but there is none"):
        refuse_foreign_packages(("adaptors",))


def install(folder: Path, name: str) -> None:
    """Write what an installed project leaves: its package, and its metadata."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise SystemExit('foreign code ran')\n")
    about = folder / f"{name}-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")


def test_a_project_that_ours_hides_is_named_in_one_line_at_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "adapters")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.path.append(sys.path.pop(sys.path.index(str(tmp_path))))
    with pytest.warns(UserWarning, match=r"import adapters gives the package of mois, .*; it hides the installed proj"):
        warn_of_hidden_package("adapters")
    refuse_foreign_packages()
    code = f"import sys; sys.path[:] = [{str(ROOT)!r}, *sys.path, {str(tmp_path)!r}]; import adapters"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert run.stderr.count("it hides the installed project adapters") == 1


def editable(finder: object) -> bool:
    """Return whether a finder belongs to an editable installation, which has packages of its own."""
    return str(getattr(finder, "__module__", "")).startswith("__editable__")


def test_a_project_in_the_same_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "datamodules")
    (tmp_path / "mois" / "machine").mkdir(parents=True)
    monkeypatch.setattr("mois.machine.own_packages.__file__", str(tmp_path / "mois" / "machine" / "own_packages.py"))
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.setattr("sys.meta_path", [finder for finder in sys.meta_path if not editable(finder)])
    monkeypatch.delitem(sys.modules, "datamodules", raising=False)
    with pytest.raises(ValueError, match=r"the project datamodules .* and mois were installed over each other"):
        refuse_foreign_packages(("datamodules",))


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
