"""Starts the real server of MONAI Label with our app, and plays requests through its own client."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PYTHON = ROOT / ".venv-viewers" / "bin" / "python"
"""Python of the environment of `make viewers`."""
NEEDS_SERVER = [
    pytest.mark.ci,
    pytest.mark.skipif(not PYTHON.exists(), reason="the server of MONAI Label is not installed: make viewers"),
]
PIXEL_MM = 3.0


@contextlib.contextmanager
def server(studies: Path, *options: str):
    """Start `mois serve monailabel`, and give its address."""
    with started(PYTHON, "-m", "mois.cli", *serving(studies), *options, where=studies.parent) as (url, _):
        yield url


def serving(studies: Path) -> list[str]:
    return ["serve", "monailabel", "--studies", str(studies), "--port", "0", "--pixel_mm", str(PIXEL_MM)]


@contextlib.contextmanager
def started(*command: object, where: Path):
    """Start a server in a folder, and give its address and its process."""
    log = where / "server.log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment["PATH"] = f"{ROOT / '.venv' / 'bin'}{os.pathsep}{environment['PATH']}"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=stream, stderr=subprocess.STDOUT, cwd=where, env=environment
        )
        try:
            yield wait_for_address(process, log), process
        finally:
            process.terminate()
            process.wait(60)


def wait_for_address(process: subprocess.Popen, log: Path) -> str:
    """Wait until the server answers, and return the address that it printed, with its secret."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text("utf-8")
        if printed := re.search(r"http://127\.0\.0\.1:\d+/[\w-]{20,}", log.read_text("utf-8")):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{printed[0]}/info/", timeout=60).read()
                return printed[0]
        time.sleep(0.3)
    raise AssertionError(log.read_text("utf-8"))


def play(url: str, folder: Path, *requests: dict) -> list:
    """Play requests through the client, and return the answers."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [str(PYTHON), str(ROOT / "tests/support/monailabel_client.py"), url, str(folder)],
        input=json.dumps(requests),
        capture_output=True,
        encoding="utf-8",
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "[", "null"))]


def infer(model: str, **params: object) -> dict:
    return {"do": "infer", "model": model, "params": params}


def ask(url: str, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Send a request, and return status and text."""
    request = urllib.request.Request(f"{url}{path}", body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8", "replace")


def form(**fields: str) -> tuple[bytes, str]:
    lines = "".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    )
    return f"{lines}--x--\r\n".encode(), "multipart/form-data; boundary=x"
