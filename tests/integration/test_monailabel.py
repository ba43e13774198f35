"""The real server of MONAI Label with our app, driven by its own client, in the environment of `make viewers`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from datamodules.phantoms.lesion_types import NAMED_TYPES
from datamodules.phantoms.phantom import write_dataset
from mois.scans.image_files import read_image
from mois.scans.volumes import read_volume
from mois.serve.shipped_model import served_model
from mois.session import InteractiveSession
from tests.support.paths import ROOT

PYTHON = ROOT / ".venv-viewers" / "bin" / "python"
pytestmark = [
    pytest.mark.ci,
    pytest.mark.skipif(not PYTHON.exists(), reason="the server of MONAI Label is not installed: make viewers"),
]
PIXEL_MM = 3.0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def server(studies: Path, *options: str):
    """Start `mois serve monailabel`, and give its address."""
    port = free_port()
    command = ["serve", "monailabel", "--studies", studies, "--port", port, "--pixel_mm", PIXEL_MM, *options]
    log = studies.parent / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [str(part) for part in (PYTHON, "-m", "mois.cli", *command)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=studies.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 240
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text("utf-8")
        try:
            urllib.request.urlopen(f"{url}/info/", timeout=5).read()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
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


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A phantom of 28 x 256 x 160, and its lesion ids."""
    root = tmp_path_factory.mktemp("phantom")
    write_dataset(root, subjects=1, seed=3, types=[NAMED_TYPES["ring"]], test_subjects=0, sessions=1, channels=1)
    (image,) = sorted((root / "imagesTr").glob("*.nii.gz"))
    (ids,) = sorted((root / "instancesTr").glob("*.nii.gz"))
    return image, read_image(ids)[0]


def middles(ids: np.ndarray, count: int) -> list[list[int]]:
    """A voxel in the middle of each of the largest lesions."""
    sizes = np.bincount(ids.ravel().astype(np.int64))
    sizes[0] = 0
    found = []
    for number in np.argsort(-sizes)[:count]:
        inside = np.argwhere(ids == number)
        middle = inside[np.argmin(((inside - inside.mean(0)) ** 2).sum(1))]
        found.append([int(value) for value in middle])
    return found


def in_python(image: Path, places: list[list[int]], beside: list[list[int]], wrong: int | None, right: list[int]):
    """Play the story in a session: 5 clicks on 3 lesions, a correction, propagate, reject one, accept two."""
    volume = read_volume(image, None, subject="scan", patient="scan", classes={})
    session = InteractiveSession(served_model(None, PIXEL_MM, "cpu"), volume)

    def click(place, lesion, positive=True):
        x, y, z, _ = (volume.affine @ volume.affine.new_tensor([*place, 1])).tolist()
        return session.click((-x, -y, z), lesion, positive)

    for lesion, place in enumerate(places, start=1):
        click(place, None)
        if lesion <= 2:
            click(beside[lesion - 1], lesion)
    click(beside[2], 1, positive=False)
    session.propagate()
    return session


def test_the_story_gives_the_label_map_of_a_session_in_python(phantom, tmp_path):
    image, ids = phantom
    places = middles(ids, 3)
    beside = [[i, j, k + 1] for i, j, k in places[:2]] + [[places[0][0] + 6, places[0][1], places[0][2]]]
    studies = tmp_path / "studies"
    studies.mkdir()
    (studies / "scan.nii.gz").write_bytes(image.read_bytes())
    with server(studies) as url:
        first = play(
            url,
            tmp_path / "answers",
            infer("click", label="a", foreground=places[:1], background=[]),
            infer("click", label="a", foreground=[places[0], beside[0]], background=[]),
            infer("click", label="b", foreground=places[1:2], background=[]),
            infer("click", label="b", foreground=[places[1], beside[1]], background=[]),
            infer("click", label="c", foreground=places[2:3], background=[]),
            infer("click", label="a", foreground=[places[0], beside[0]], background=[beside[2]]),
            infer("propagate"),
        )
        session = in_python(image, places, beside, None, [])
        assert np.array_equal(read_image(tmp_path / "answers" / "6.nii.gz")[0], session.label_map().numpy())

        wrong = next(row for row in first[6]["lesions"] if row["origin"] == "found")
        (rejected,) = play(url, tmp_path / "rejected", infer("reject", label=wrong["label"]))
        session.reject(wrong["value"])
        session.propagate()
        whole = read_image(tmp_path / "rejected" / "0.nii.gz")[0]
        assert np.array_equal(whole, session.label_map().numpy())
        assert wrong["label"] not in rejected["label_names"]

        two = tmp_path / "two.nii.gz"
        keep_two(tmp_path / "rejected" / "0.nii.gz", two)
        saved, lesions = play(url, tmp_path / "saved", {"do": "save", "file": str(two)}, infer("lesions"))
        assert saved["accepted"] == ["a", "b"]
        for lesion in (1, 2):
            session.accept(lesion)
        assert np.array_equal(read_image(tmp_path / "saved" / "1.nii.gz")[0], session.label_map().numpy())
        assert [row["status"] for row in lesions["lesions"]] == [
            "accepted" if row.id in (1, 2) else "open" for row in session.lesions()
        ]


def keep_two(whole: Path, target: Path) -> None:
    """Write the lesions 1 and 2 of a label map, as a reader saves them."""
    import nibabel as nib

    picture = nib.load(whole)
    labels = np.asanyarray(picture.dataobj)
    nib.save(nib.Nifti1Image(np.where(np.isin(labels, [1, 2]), labels, 0).astype(np.int32), picture.affine), target)
