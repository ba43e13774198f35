"""What several tests need: tiny datasets in the real file format, and the real scans where there are any."""

import json
import locale
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

SPACING_MM = (2.0, 6.0, 2.0)  # right-left, anterior-posterior, superior-inferior: slices are coronal
SHAPE = (40, 8, 48)

LEFT_OUT = pytest.StashKey[int]()
LOCALE = locale.setlocale(locale.LC_ALL)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its jobs in the background ignore Ctrl-C


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


def save_nifti(path: Path, array: NDArray, affine: NDArray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*SPACING_MM, 1.0]) if affine is None else affine), path)
    return path


def scan_with_lesions(seed: int = 0, lesions: int = 12) -> tuple[NDArray, NDArray, NDArray]:
    """Return image, class map (1 bright, 2 dark, in turn) and lesion ids of cubes of 3 x 2 x 3 voxels in noise."""
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 3, SHAPE).astype(np.float32)
    image[:4], image[-4:] = 0, 0
    classes, ids = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.int32)
    cells = [(x, y, z) for x in range(6, 32, 8) for y in (0, 3, 6) for z in range(2, 44, 8)]
    for number, cell in enumerate(rng.permutation(cells)[:lesions]):
        place = tuple(slice(at, at + edge) for at, edge in zip(cell, (3, 2, 3), strict=True))
        ids[place] = number + 1
        classes[place] = 1 + number % 2
        image[place] = 180 if number % 2 == 0 else 30
    return image, classes, ids


def write_dataset(root: Path, subjects: int = 2, held_out: int = 0, lesions: int = 12, instances: bool = False) -> Path:
    """Write scans p0, p1, ... in nnU-Net's raw layout; return their folder."""
    for number in range(subjects + held_out):
        part = "Tr" if number < subjects else "Ts"
        image, classes, ids = scan_with_lesions(number, lesions)
        save_nifti(root / f"images{part}" / f"p{number}_0000.nii.gz", image)
        save_nifti(root / f"labels{part}" / f"p{number}.nii.gz", classes)
        if instances:
            save_nifti(root / f"instances{part}" / f"p{number}.nii.gz", ids)
    description = {
        "channel_names": {"0": "T2"},
        "labels": {"background": 0, "bright": 1, "dark": 2},
        "numTraining": subjects,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


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
