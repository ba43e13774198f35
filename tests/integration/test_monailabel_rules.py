"""What the server of MONAI Label refuses and keeps: routes, names, uploads, saved labels, clients, a kill."""

from __future__ import annotations

import gzip
import json

import nibabel as nib
import numpy as np
import pytest

from mois.scans.datasets import read_dataset
from mois.scans.image_files import read_image, write_volume
from tests.support.monailabel_server import (
    NEEDS_SERVER,
    PYTHON,
    ask,
    form,
    infer,
    play,
    server,
    serving,
    started,
)
from tests.support.session_fakes import three_lesions

pytestmark = NEEDS_SERVER


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
        ("GET", "/session/11111111-1111-1111-1111-111111111111?image=true", 404),
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
    assert str(studies) not in text
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
