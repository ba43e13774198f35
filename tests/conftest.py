"""What several tests need: tiny datasets in the real file format, and the real scans where there are any."""

from __future__ import annotations

import gc
import locale
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.datasets import write_dataset

LEFT_OUT = pytest.StashKey[int]()
LOCALE = locale.setlocale(locale.LC_ALL)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its jobs in the background ignore Ctrl-C


def pytest_collection_finish() -> None:
    """Keep what was imported out of garbage collection: with it, a full collection takes a third of a second."""
    gc.collect()
    gc.freeze()


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count what -m and -k leave out."""
    stash = items[0].config.stash
    stash[LEFT_OUT] = stash.get(LEFT_OUT, 0) + len(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send a worker's count to the process that prints: xdist itself does not."""
    if (sent := getattr(session.config, "workeroutput", None)) is not None:
        sent["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take a worker's count; every worker collects the same tests."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how many tests were left out."""
    if count := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{count} tests left out by -m or -k; make test-ci runs those marked ci.")


@pytest.fixture(autouse=True)
def same_locale() -> Iterator[None]:
    """Undo what ITK does to a process that meets JPEG pictures: files would be read as ASCII from there on."""
    locale.setlocale(locale.LC_ALL, LOCALE)
    yield
    locale.setlocale(locale.LC_ALL, LOCALE)


@pytest.fixture
def same_process() -> Iterator[None]:
    """Undo what Lightning does to the process: it tells its children who they are through the environment."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture
def same_handlers() -> Iterator[None]:
    """Undo what a training does to the handlers of signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def work_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test in a folder of its own, without the user's variables."""
    monkeypatch.chdir(tmp_path)
    for name in ("MOIS_TRACEBACK", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Return `write_dataset` for a folder of this test."""
    return partial(write_dataset, tmp_path / "Dataset001_Cubes")


@pytest.fixture
def real_data() -> Path:
    """Return the folder of the real scans; skip the test where there is none."""
    folder = os.environ.get("MOIS_REAL_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MOIS_REAL_DATA names no folder with real scans")
    return Path(folder)
