"""The real server of MONAI Label, driven by its own client: a whole story, and the page of the docs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from datamodules.phantoms.lesion_types import NAMED_TYPES
from datamodules.phantoms.phantom import write_dataset
from mois.scans.datasets import read_dataset
from mois.scans.image_files import read_image
from mois.scans.volumes import read_volume
from mois.serve.shipped_model import served_model
from mois.session import InteractiveSession
from tests.support.lesions_apart import largest_apart
from tests.support.monailabel_server import (
    NEEDS_SERVER,
    PIXEL_MM,
    PYTHON,
    ask,
    form,
    infer,
    play,
    server,
    started,
)
from tests.support.paths import ROOT

pytestmark = NEEDS_SERVER


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A phantom of 28 x 256 x 160, and its lesion ids."""
    root = tmp_path_factory.mktemp("phantom")
    write_dataset(root, subjects=1, seed=3, types=[NAMED_TYPES["ring"]], test_subjects=0, sessions=1, channels=1)
    (image,) = sorted((root / "imagesTr").glob("*.nii.gz"))
    (ids,) = sorted((root / "instancesTr").glob("*.nii.gz"))
    return image, read_image(ids)[0]


def middles(ids: np.ndarray, count: int) -> list[list[int]]:
    """A voxel in the middle of each of the largest lesions that lie apart."""
    found = []
    for number in largest_apart(ids, count):
        inside = np.argwhere(ids == number)
        middle = inside[np.argmin(((inside - inside.mean(0)) ** 2).sum(1))]
        found.append([int(value) for value in middle])
    return found


def in_python(image: Path, places: list[list[int]], beside: list[list[int]]) -> InteractiveSession:
    """Play the clicks of the story in a session, and propagate."""
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
        session = in_python(image, places, beside)
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
    picture = nib.load(whole)
    labels = np.asanyarray(picture.dataobj)
    nib.save(nib.Nifti1Image(np.where(np.isin(labels, [1, 2]), labels, 0).astype(np.int32), picture.affine), target)


PAGE = (ROOT / "docs" / "viewers" / "monailabel.md").read_text("utf-8")


def test_the_page_is_followed_from_the_scan_to_the_accepted_lesions(tmp_path):
    bash = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    assert bash[0] == "make viewers\n"
    *prepare, serve = bash[1].splitlines()
    lines = [line.replace("mois ", f"{ROOT / '.venv' / 'bin' / 'python'} -m mois.cli ", 1) for line in prepare]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-ec", "\n".join(lines)], cwd=tmp_path, env=environment, check=True, capture_output=True)
    mois, *options = serve.split()
    assert mois == "mois"
    command = [ROOT / ".venv" / "bin" / "python", "-m", "mois.cli", *options, "--port", "0"]
    with started(*command, where=tmp_path) as (url, _):  # goes on in .venv-viewers by itself
        (python,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
        shown = re.search(r'"(http://127.0.0.1:8000/[^"]+)"', python)
        (tmp_path / "page.py").write_text(python.replace(shown[1], url), encoding="utf-8")
        done = subprocess.run(
            [str(PYTHON), "page.py"], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=900
        )
        assert done.returncode == 0, done.stderr
        names, accepted = done.stdout.splitlines()
        assert names.startswith("{'lesion 1': 1, 'lesion 2': 2, ")
        assert accepted.startswith("['lesion 1', 'lesion 2'")
        labels = read_image(tmp_path / "scans" / "labels" / "final" / "scan.nii.gz")[0]
        free = np.argwhere(labels[40:120, 40:120, 14] == 0)[3000] + [40, 40]
        seconds = click_during_a_propagation(url, [*free.tolist(), 14])
        assert seconds < 10  # on a busy machine; the propagation takes longer
    (subject,) = read_dataset(tmp_path / "scans" / "dataset")
    assert subject.read().lesions.max() >= 2


def click_during_a_propagation(url: str, place: list[int]) -> float:
    """Return the seconds in which a click is answered while a propagation runs."""
    body, kind = form(params="{}")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, url, "POST", "/infer/propagate?image=scan", body, **{"Content-Type": kind})
        time.sleep(0.3)
        given, _ = form(params=json.dumps({"label": "during", "foreground": [place]}))
        begin = time.monotonic()
        status, text = ask(url, "POST", "/infer/click?image=scan&output=json", given, **{"Content-Type": kind})
        seconds = time.monotonic() - begin
        assert status == 200, text
        assert not running.done()
        assert running.result()[0] == 200
    return seconds
