"""Sessions need nothing that only Linux and macOS have; what else uses such calls is listed here."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mois
from tests.support.other_system import MODULES, OF_OS, OF_SIGNAL, OURS

ROOT = Path(mois.__file__).parents[1]
LISTED = {
    # every use asks first whether the system has the call
    "mois/machine/system_calls.py": {
        "pread",
        "pwrite",
        "O_DIRECTORY",
        "register_at_fork",
        "sched_getaffinity",
        "sysconf",
    },
    "mois/scans/decompress.py": {"alarm"},
    # training alone: workers of data end with their training
    "datamodules/loading.py": {"SIGHUP", "SIGUSR1", "SIGUSR2", "pthread_sigmask"},
    # only where a pipe was closed, which raises BrokenPipeError
    "mois/cli/messages.py": {"SIGPIPE"},
}
"""Files that use a call that Windows lacks, and the calls."""


def used(path: Path) -> set[str]:
    """Names of `os` and `signal` that Windows lacks, and modules that it lacks, in a file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            missing = {"os": OF_OS, "signal": OF_SIGNAL}.get(node.value.id, ())
            found |= {node.attr} & set(missing)
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names} & set(MODULES)
        if isinstance(node, ast.ImportFrom):
            missing = {"os": OF_OS, "signal": OF_SIGNAL}.get(node.module or "", ())
            found |= {name.name for name in node.names} & set(missing)
            found |= {node.module or ""} & set(MODULES)
    return found


def test_calls_that_windows_lacks_are_listed() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): names
        for package in OURS
        for path in sorted((ROOT / package).rglob("*.py"))
        if (names := used(path))
    }
    assert found == LISTED


@pytest.mark.ci
def test_a_session_is_played_without_what_windows_lacks(tmp_path: Path) -> None:
    assert run(tmp_path / "session", "story") == "played"
    assert (tmp_path / "session" / "lesions.nii.gz").is_file()


@pytest.mark.slow
def test_every_module_is_imported_without_what_windows_lacks(tmp_path: Path) -> None:
    count, word = run(tmp_path, "imports").split()
    assert word == "modules"
    assert int(count) > 150


def run(folder: Path, what: str) -> str:
    program = [sys.executable, "-m", "tests.support.other_system", str(folder), what]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()
