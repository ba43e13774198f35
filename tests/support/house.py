"""The size of the house, as `make check` holds it: `python -m tests.support.house`.

A file has at most 400 lines, a function 50 without its docstring, a package 16 files, and the top of `mois` 12.
`mois/cli` may have more files, since each of its commands has its own.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.paths import ROOT

FILE_LINES, FUNCTION_LINES, PACKAGE_FILES, TOP_FILES = 400, 50, 16, 12
PARTS = ("mois", "adapters", "datamodules", "tests")


def too_large(root: Path = ROOT) -> Iterator[str]:
    """Yield one line for each file, function and package that is too large."""
    for file in [root / "train.py", *(file for part in PARTS for file in sorted((root / part).rglob("*.py")))]:
        source = file.read_text(encoding="utf-8")
        name = file.relative_to(root)
        if (lines := source.count("\n")) > FILE_LINES:
            yield f"{name} has {lines} lines, more than {FILE_LINES}: split it by its reasons to change"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (lines := _lines(node)) > FUNCTION_LINES:
                yield f"{name}: {node.name} has {lines} lines without its docstring, more than {FUNCTION_LINES}"
    for package in sorted({file.parent for part in PARTS[:3] for file in (root / part).rglob("__init__.py")}):
        files = [file for file in package.glob("*.py") if file.name not in ("__init__.py", "__main__.py")]
        name = package.relative_to(root)
        most = TOP_FILES - 1 if str(name) == "mois" else PACKAGE_FILES
        if len(files) > most and name != Path("mois/cli"):
            yield f"{name} has {len(files)} files besides __init__.py, more than {most}: part it into rooms"


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines a function has without its docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


if __name__ == "__main__":
    found = list(too_large())
    sys.exit("\n".join(found) or 0)
