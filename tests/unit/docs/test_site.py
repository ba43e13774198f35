"""The pages name files and functions that exist, link to places that exist, and show the rooms as they are."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
MAP = (DOCS / "architecture.md").read_text(encoding="utf-8")
rooms = runpy.run_path(str(DOCS / "site" / "draw_rooms.py"))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_named_exists(page):
    named = re.findall(r"`((?:mois|adapters|datamodules|docs|configs|tests)/[\w./-]+\.\w+)`", page.read_text("utf-8"))
    assert [file for file in named if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    missing = []
    for link in links:
        file, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


def anchors(page: Path) -> set[str]:
    """Headings as GitHub and the site turn them into anchors."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def defined(file: Path) -> set[str]:
    tree = ast.parse(file.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_the_journeys_name_functions_that_exist():
    lines = [line for line in MAP.splitlines() if "->" in line and "`mois/" in line]
    missing = []
    for line in lines:
        for file, name in re.findall(r"`([\w/]+\.py)` -> `(\w+)`", line):
            if name not in defined(ROOT / file):
                missing.append(f"{file}: {name}")
    assert len(lines) >= 15
    assert missing == []


def test_every_package_has_a_line_and_a_page():
    packages = [room for row in rooms["layers"]() for room in row if room not in rooms["OUTER"]]
    reference = "".join(page.read_text("utf-8") for page in (DOCS / "reference").glob("*.md"))
    for room in packages:
        path = f"mois/{room}" if (ROOT / "mois" / room).is_dir() else f"mois/{room}.py"
        assert f"`{path}`" in MAP
        assert f"::: mois.{room}\n" in reference


def test_the_names_of_an_answer_stand_in_its_files():
    table = MAP.partition("## I want to change")[2].partition("\n## ")[0]
    missing = []
    for row in table.splitlines():
        told = re.findall(r"`([^`]+)`", row)
        texts = [(ROOT / file).read_text("utf-8") for file in told if file.endswith(".py")]
        names = [name for name in told if re.fullmatch(r"\w+", name)]
        missing += [name for name in names if not any(re.search(rf"\b{name}\b", text) for text in texts)]
    assert missing == []


def test_every_module_has_a_line():
    modules = [file for room in ("mois", "adapters", "datamodules") for file in (ROOT / room).rglob("*.py")]
    names = [name_of(file) for file in modules if not file.name.startswith("__")]
    assert [name for name in names if f"`{name}`" not in MAP] == []


def test_every_page_stands_in_the_menu():
    menu = str(yaml.safe_load((DOCS / "site" / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert [name for page in DOCS.rglob("*.md") if (name := str(page.relative_to(DOCS))) not in menu] == []


def test_the_picture_shows_the_imports():
    assert rooms["PICTURE"].read_text("utf-8") == rooms["picture"](), "run `make docs`, and commit the picture"
