"""What is imported is declared, and what is declared is imported."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT

OURS = {"mois", "adapters", "datamodules", "tests", *(file.stem for file in (ROOT / "tests").rglob("*.py"))}
NOT_IMPORTED = {
    "torchvision": "sam2 needs it, which is installed without its dependencies",
    "omegaconf": "jsonargparse's parser mode; the errors are told by their module's name",
    "pytest-xdist": "a plug-in",
    "ruff": "a program",
    "mypy": "a program",
    "import-linter": "a program",
    "types-pyyaml": "types alone",
    "pandas-stubs": "types alone",
    "scipy-stubs": "types alone",
    "schemathesis": "a program",
}
EXTRAS = ("nnunet", "dicom", "serve", "sweep")
OWN_ENVIRONMENT = {"monailabel"}
"""In requirements-viewers.txt: made by `make viewers`."""


def declared(*extras: str) -> dict[str, Requirement]:
    """Return the requirements of the package itself, or of some of its extras, by their canonical names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["optional-dependencies"][extra] for extra in extras] or [project["dependencies"]]
    lines = [Requirement(line) for group in groups for line in group]
    return {canonicalize_name(line.name): line for line in lines if line.name != "mois"}  # dev takes other extras


def imported(*places: str) -> set[str]:
    """Return the distributions of all modules that these files and folders import."""
    files = [
        file for place in places for file in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
    ]
    ours = [file for file in files if "third_party" not in file.parts]  # a package with requirements of its own
    names = {name for file in ours for name in _modules(file)} - OURS - sys.stdlib_module_names
    where = packages_distributions()
    return {canonicalize_name(where[name][0]) if name in where else name for name in names}


def _modules(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (one.name.partition(".")[0] for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def test_every_package_that_is_imported_is_declared() -> None:
    assert imported("mois", "adapters", "datamodules", "train.py") - declared().keys() == {
        *declared(*EXTRAS),
        *OWN_ENVIRONMENT,
    }
    assert imported("tests") - declared().keys() - declared("dev", "loggers", *EXTRAS).keys() - OWN_ENVIRONMENT == set()


def test_every_package_that_is_declared_is_imported() -> None:
    assert declared().keys() - imported("mois", "adapters", "datamodules") - NOT_IMPORTED.keys() == set()
    assert declared("dev").keys() - imported("tests") - NOT_IMPORTED.keys() == set()
    assert NOT_IMPORTED.keys() & imported("mois", "adapters", "datamodules", "tests") == set()


@pytest.mark.parametrize(
    "line",
    [*declared().values(), *declared("dev", "dicom", "serve", "sweep", "loggers").values()],
    ids=lambda line: line.name,
)
def test_every_requirement_has_a_lower_bound_that_the_pinned_version_keeps(line: Requirement) -> None:
    assert {one.operator for one in line.specifier} & {">=", "=="}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8") + (ROOT / "requirements-sam2.txt").read_text("utf-8")
    pinned = {
        canonicalize_name(name): at
        for name, _, at in (row.split()[0].partition("==") for row in pins.splitlines() if "==" in row)
    }
    assert line.specifier.contains(pinned[canonicalize_name(line.name)], prereleases=True)


def test_the_parser_whose_messages_are_read_has_an_upper_bound() -> None:
    assert not declared()["jsonargparse"].specifier.contains("4.54.0")
