"""The real server of MONAI Label with our app, driven by its own client, in the environment of `make viewers`."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from datamodules.phantoms.lesion_types import NAMED_TYPES
from datamodules.phantoms.phantom import write_dataset
from mois.scans.datasets import read_dataset
from mois.scans.image_files import read_image, write_volume
from mois.scans.volumes import read_volume
from mois.serve.shipped_model import served_model
from mois.session import InteractiveSession
from tests.support.paths import ROOT
from tests.support.session_fakes import three_lesions

PYTHON = ROOT / ".venv-viewers" / "bin" / "python"
pytestmark = [
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


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory):
    """A server of a small scan: its address and its folder."""
    studies = tmp_path_factory.mktemp("small") / "studies"
    scan = three_lesions()
    studies.mkdir()
    for name in ("scan", "later"):
        write_volume(scan.image, scan.affine, studies / f"{name}.nii.gz")
    with server(studies) as url:
        yield url, studies


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


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/logs/", 404),
        ("POST", "/reload", 404),
        ("GET", "/proxy/dicom/anything", 404),
        ("DELETE", "/datastore/image?id=scan", 404),
        ("GET", "/datastore/dataset", 404),
        ("POST", "/train/", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/datastore/image?image=../secret", 400),
        ("GET", "/datastore/label?label=scan&tag=..%2F..", 400),
        ("GET", "/datastore/image?image=none", 404),
        ("GET", "/session/11111111-1111-1111-1111-111111111111", 404),
        ("GET", "/session/..%2F..", 404),
        ("GET", "/train/", 404),
    ],
)
def test_other_routes_and_names_that_lead_out_are_refused(small, method, path, status):
    url, _ = small
    got, text = ask(url, method, path)
    assert got == status
    assert set(json.loads(text)) == {"error", "detail"}


def test_without_the_secret_nothing_is_answered(small):
    url, _ = small
    bare, _, secret = url.rpartition("/")
    assert ask(bare, "GET", "/info/")[0] == 401
    assert ask(f"{bare}/{secret[:-1]}x", "GET", "/info/")[0] == 401


def test_a_page_of_another_site_cannot_act(small):
    url, _ = small
    body, kind = form(params="{}")
    answer = {"Content-Type": kind}
    assert ask(url, "POST", "/infer/lesions?image=scan", body, Origin="http://evil.example", **answer)[0] == 403
    assert ask(url, "GET", "/info/", Host="evil.example")[0] == 421
    status, _ = ask(url, "OPTIONS", "/infer/lesions", Origin="http://evil.example")
    assert status == 403


@pytest.mark.parametrize(
    ("path", "params", "said"),
    [
        ("/infer/nothing?image=scan", "{}", "there is no such task; choose click"),
        ("/infer/lesions?image=none", "{}", "there is no such image"),
        ("/infer/lesions", "{}", "Neither Image nor File"),
        ("/infer/lesions?image=scan", "[]", "params must be a JSON object"),
        ("/infer/lesions?image=scan", "{", "params"),
        ("/infer/lesions?image=scan", '{"image": "/etc/passwd"}', "must be a plain name"),
        ("/infer/lesions?image=scan", '{"session": {}, "image": "/etc/passwd"}', "params must not have session"),
        ("/infer/click?image=scan", '{"label": "a", "foreground": [[1, 2, 999]]}', "lies outside the scan"),
    ],
)
def test_a_request_that_cannot_be_done_is_refused_in_one_line(small, path, params, said):
    url, _ = small
    body, kind = form(params=params)
    status, text = ask(url, "POST", path, body, **{"Content-Type": kind})
    assert status == 400
    assert said in json.loads(text)["error"]
    assert "\n" not in json.loads(text)["error"]


def test_an_upload_that_is_no_image_is_refused_and_leaves_nothing(small, tmp_path):
    url, studies = small
    files = {}
    files["none"] = tmp_path / "none.nii.gz"
    files["none"].write_bytes(b"no image")
    files["huge"] = tmp_path / "huge.nii"
    header = nib.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.eye(4)).header.copy()
    header["dim"][1:4] = 30000
    files["huge"].write_bytes(header.binaryblock + bytes(4) + bytes(64))
    files["bomb"] = tmp_path / "bomb.nii.gz"
    whole = nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)).to_bytes()
    files["bomb"].write_bytes(gzip.compress(whole + bytes(1 << 28)))
    answers = play(
        url, tmp_path / "answers", *({"do": "upload", "file": str(file), "image": name} for name, file in files.items())
    )
    for answer in answers:
        assert "Status: 400" in answer["refused"]
        assert str(studies) not in answer["refused"]
    assert not [file for file in studies.glob("*") if file.name.split(".")[0] in files]
    assert not [file for file in (studies / ".uploads").glob("*") if file.is_file()]


def test_an_image_uploaded_is_clicked_and_saved_for_a_training(small, tmp_path):
    url, studies = small
    scan = three_lesions()
    file = tmp_path / "mine.nii.gz"
    write_volume(scan.image, scan.affine, file)
    place = [20, 20, 2]
    uploaded, clicked, first = play(
        url,
        tmp_path / "answers",
        {"do": "upload", "file": str(file), "image": "mine"},
        infer("click", label="a", foreground=[place]) | {"image": "mine"},
        {"do": "next", "strategy": "expected_gain"},
    )
    assert uploaded == {"image": "mine"}
    assert clicked["label_names"] == {"a": 1}
    assert first["id"] in ("later", "mine", "scan")
    (saved,) = play(
        url, tmp_path / "saved", {"do": "save", "image": "mine", "file": str(tmp_path / "answers" / "1.nii.gz")}
    )
    assert saved["accepted"] == ["a"]

    (subject,) = read_dataset(studies / "dataset")
    lesions = read_image(tmp_path / "answers" / "1.nii.gz")[0]
    assert np.array_equal(subject.read().lesions.numpy() > 0, lesions > 0)
    assert np.array_equal(read_image(studies / "dataset" / "imagesTr" / "mine_0000.nii.gz")[0], scan.image.numpy())


def test_an_image_sent_for_a_while_has_its_session(small, tmp_path):
    url, _ = small
    scan = three_lesions()
    file = tmp_path / "passing.nii.gz"
    write_volume(scan.image + 1, scan.affine, file)
    made, answer = play(
        url,
        tmp_path / "answers",
        {"do": "create_session", "file": str(file)},
        infer("click", label="a", foreground=[[20, 20, 2]]) | {"session": True},
    )
    assert len(made["session_id"]) == 36
    assert answer["label_names"] == {"a": 1}


def test_the_log_names_no_image(small):
    _, studies = small
    text = (studies.parent / "server.log").read_text("utf-8")
    assert "scan.nii" not in text
    assert "mine" not in text
    assert "Traceback" not in text


def test_the_scan_on_which_an_action_helps_most_comes_next(small, tmp_path):
    url, _ = small
    *_, offered = play(
        url,
        tmp_path / "answers",
        infer("click", label="a", foreground=[[20, 20, 2]]),
        infer("propagate"),
        {"do": "next", "strategy": "expected_gain"},
    )
    assert offered["id"] == ("scan" if "suggestion" in offered else "later")


def test_a_second_client_is_told_who_writes(small, tmp_path):
    url, _ = small
    scan = three_lesions()
    file = tmp_path / "shared.nii.gz"
    write_volume(scan.image + 2, scan.affine, file)
    shared = {"image": "shared"}
    _, first, second, look = play(
        url,
        tmp_path / "answers",
        {"do": "upload", "file": str(file), "image": "shared"},
        infer("click", label="a", foreground=[[20, 20, 2]], client_id="anna") | shared,
        infer("click", label="b", foreground=[[12, 40, 2]], client_id="ben") | shared,
        infer("lesions", client_id="ben") | shared,
    )
    assert first["label_names"] == {"a": 1}
    assert "Status: 409" in second["refused"]
    assert "anna writes to this scan" in second["refused"]
    assert look["label_names"] == {"a": 1}


def test_a_client_goes_on_after_the_server_was_killed(tmp_path):
    studies = tmp_path / "studies"
    studies.mkdir()
    scan = three_lesions()
    write_volume(scan.image, scan.affine, studies / "scan.nii.gz")
    click = infer("click", label="a", foreground=[[20, 20, 2]])
    with started(PYTHON, "-m", "mois.cli", *serving(studies), where=tmp_path) as (url, process):
        play(url, tmp_path / "before", click, infer("click", label="b", foreground=[[12, 40, 2]]), infer("lesions"))
        process.kill()
        process.wait(60)
    with server(studies) as again:
        assert again.rpartition("/")[2] == url.rpartition("/")[2]  # the address of before, but for the port
        corrected = infer("click", label="a", foreground=[[20, 20, 2]], background=[[24, 24, 2]])
        lesions, _ = play(again, tmp_path / "after", infer("lesions"), corrected)
    assert lesions["label_names"] == {"a": 1, "b": 2}
    assert np.array_equal(
        read_image(tmp_path / "before" / "2.nii.gz")[0], read_image(tmp_path / "after" / "0.nii.gz")[0]
    )


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
        assert seconds < 10  # on a busy machine; docs/viewers/monailabel.md has the time on a free one
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
