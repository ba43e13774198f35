"""Examples in docstrings are run, so that what they show is true."""

from __future__ import annotations

import doctest
import importlib

import pytest

from tests.support.paths import ROOT

PACKAGES = ("adapters", "datamodules", "mois")
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def test_some_modules_have_examples() -> None:
    assert {"adapters.placement", "mois.lesions", "mois.metrics.overlap"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples_show_what_the_code_returns(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted
    assert result.failed == 0
