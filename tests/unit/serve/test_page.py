"""The page's paths: what they answer, refuse, and leave alone."""

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

import mois.serve.page_reader
from mois.serve.host import Host
from mois.serve.page import POLICY, page_app
from mois.serve.safety import Guard
from mois.session import InteractiveSession
from mois.session.follow_up import TimePoint, time_point_of
from tests.support.session_fakes import lps, make_model, three_lesions

TOKEN = "secret-of-this-server-0123456789"
FIRST, SECOND = {"X-Reader": "aaaaaaaa"}, {"X-Reader": "bbbbbbbb"}


@pytest.fixture
def scan():
    return three_lesions()._replace(path="")


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path / "studies", make_model())
    yield host
    host.close()


@pytest.fixture
def page(host, scan):
    app = Guard(page_app(host, scan), TOKEN, frozenset({"127.0.0.1:1"}))
    with TestClient(app, base_url=f"http://127.0.0.1:1/{TOKEN}/", headers=FIRST) as client:
        yield client


def voxel(scan, *place):
    """A place of the fake scan in the page's voxels: the scan runs to left and back, the page to right and front."""
    index, row, column = place
    return [scan.shape[0] - 1 - column, scan.shape[1] - 1 - row, index]


def click(page, scan, *place, **more):
    return page.post("draw/click", json={"points": [voxel(scan, *place)], **more})


def wait_for_the_end(page) -> dict:
    while page.get("pulse").json()["finding"]["running"]:
        pass
    return page.get("state").json()


def test_actions_are_those_of_the_session(page, scan, host):
    session = InteractiveSession(make_model(), scan)
    session.click(lps(scan, 2, 20, 20))
    answer = click(page, scan, 2, 20, 20).json()
    assert answer["result"] == 1
    assert [row["id"] for row in answer["state"]["lesions"]] == [1]
    session.propagate()
    page.post("propagate")
    state = wait_for_the_end(page)
    assert state["finding"]["found"] == len(session.lesions()) - 1
    assert {row["id"]: row["ml"] for row in state["lesions"]} == {row.id: row.volume_ml for row in session.lesions()}
    other = next(row.id for row in session.lesions() if row.origin == "found")
    page.post("lesion/accept", json={"lesion": other})
    page.post("lesion/lock", json={"lesion": 1})
    statuses = {row["id"]: row["status"] for row in page.get("state").json()["lesions"]}
    assert (statuses[other], statuses[1]) == ("accepted", "locked")
    assert page.post("step/undo").json()["state"]["can_redo"]
    assert not page.post("step/redo").json()["state"]["can_redo"]
    page.post("lesion/unlock", json={"lesion": 1})
    page.post("lesion/remove", json={"lesion": 1})
    kept = page.post("lesion/reject", json={"lesion": other})
    assert kept.status_code == 400
    assert "locked" in kept.json()["error"]
    saved = page.post("step/save").json()["result"]
    assert saved.endswith("session")
    seat = host.open("test", scan)
    assert torch.equal((seat.look(lambda s: s.label_map()) == other), session.label_map() == other)


@pytest.mark.parametrize("kind", ["scribble", "box", "lasso"])
def test_drawings_are_those_of_the_session(page, scan, kind):
    places = [(2, 17, 17), (2, 17, 22), (2, 22, 22)] if kind != "box" else [(2, 16, 16), (2, 23, 23)]
    session = InteractiveSession(make_model(), scan)
    points = [lps(scan, *place) for place in places]
    session.box(*points) if kind == "box" else getattr(session, kind)(points)
    answer = page.post(f"draw/{kind}", json={"points": [voxel(scan, *place) for place in places]}).json()
    assert [row["ml"] for row in answer["state"]["lesions"]] == [row.volume_ml for row in session.lesions()]


def test_masks_are_given_by_number_and_only_while_they_are_shown(page, scan):
    (row,) = click(page, scan, 2, 20, 20).json()["state"]["lesions"]
    masks = page.post("masks", json={"numbers": [row["mask"], 10**6]}).json()
    assert list(masks) == [str(row["mask"])]
    (same,) = page.get("state").json()["lesions"]
    assert same["mask"] == row["mask"]
    (changed,) = click(page, scan, 2, 18, 18, lesion=1, positive=False).json()["state"]["lesions"]
    assert changed["mask"] != row["mask"]
    assert page.post("masks", json={"numbers": [row["mask"]]}).json() == {}


def test_pulse_says_how_much_of_the_scan_is_encoded(page):
    while (share := page.get("pulse").json()["encoded"]) < 1:
        assert share >= 0


def test_preview_changes_nothing(page, scan):
    shown = page.post("preview/click", json={"points": [voxel(scan, 2, 20, 20)]}).json()
    assert shown["lesion"] == 1
    assert shown["mask"][1][2] == 1  # one slice
    assert page.get("state").json()["actions"] == 0
    outside = page.post("preview/click", json={"points": [[-5, 0, 0]]}).json()
    assert outside["mask"] is None
    assert "outside" in outside["why"]


def test_bank_goes_out_and_comes_in(page, scan):
    click(page, scan, 2, 20, 20)
    bank = page.get("bank.safetensors").content
    page.post("step/undo")
    assert page.put("bank", content=bank).json()["state"]["exemplars"] == 1
    refused = page.put("bank", content=b"no bank")
    assert refused.status_code == 400
    assert "/tmp" not in refused.json()["error"]


def test_second_page_watches_until_the_first_closes(page, scan):
    click(page, scan, 2, 20, 20)
    state = page.get("state", headers=SECOND).json()
    assert (state["role"], state["writer"], len(state["lesions"])) == ("watcher", "page aaaa", 1)
    refused = page.post("step/undo", headers=SECOND)
    assert refused.status_code == 409
    assert "page aaaa writes" in refused.json()["error"]
    assert page.post("leave", params={"name": FIRST["X-Reader"]}).status_code == 200
    assert page.get("pulse", headers=SECOND).json()["role"] == "writer"


def test_page_that_was_not_heard_of_lets_the_next_write(page, monkeypatch):
    page.get("scan")
    monkeypatch.setattr(mois.serve.page_reader, "SILENT_S", -1.0)
    assert page.get("state", headers=SECOND).json()["role"] == "writer"


def test_only_so_many_pages(page):
    answers = [page.get("pulse", headers={"X-Reader": f"page{n:08}"}).status_code for n in range(40)]
    assert answers[0] == 200
    assert answers[-1] == 503


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("draw/click", {"points": []}),
        ("draw/click", {"points": [[0, 0, 0], [1, 1, 1]]}),
        ("draw/click", {"points": [[1e9, 0, 0]]}),
        ("draw/click", {"points": [["nan", 0, 0]]}),
        ("draw/box", {"points": [[0, 0, 0]]}),
        ("draw/scribble", {"points": [[0, 0, 0]] * 10_001}),
        ("draw/pencil", {"points": [[0, 0, 0]]}),
        ("lesion/accept", {"lesion": 99}),
        ("lesion/close", {"lesion": 1}),
        ("step/close", {}),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(page, path, body):
    answer = page.post(path, json=body)
    assert 400 <= answer.status_code < 500
    assert "\n" not in answer.json()["error"]


def test_files_are_the_pages_own_and_load_nothing_else(page):
    index = page.get("")
    assert index.headers["content-security-policy"] == POLICY
    assert "http://" not in index.text
    assert "https://" not in index.text
    for name in ("page.js", "page.css", "niivue/niivue.js", "niivue/LICENSE"):
        assert page.get(f"web/{name}").status_code == 200
    for name in ("../page.py", "%2e%2e/page.py", "..%2fpage.py", "/etc/passwd", "nothing.js"):
        assert page.get(f"web/{name}").status_code == 404


def test_page_of_another_site_cannot_act(page, scan):
    answer = page.post("draw/click", json={"points": [voxel(scan, 2, 20, 20)]}, headers={"Origin": "http://evil.org"})
    assert answer.status_code == 403
    assert page.get(f"http://127.0.0.1:1/{'x' * len(TOKEN)}/state").status_code == 401


def test_lesions_of_an_earlier_scan_are_the_same_new_or_gone(host, scan):
    earlier = InteractiveSession(make_model(), scan._replace(subject="before"))
    earlier.click(lps(scan, 2, 20, 20))
    app = Guard(page_app(host, scan, time_point_of(earlier)), TOKEN, frozenset({"127.0.0.1:1"}))
    with TestClient(app, base_url=f"http://127.0.0.1:1/{TOKEN}/", headers=FIRST) as page:
        assert page.get("scan").json()["earlier"] == "before"
        click(page, scan, 2, 20, 20)
        new = click(page, scan, 2, 40, 12).json()["result"]
        changes = page.get("follow_up").json()
        assert [(row["status"], row["earlier"], row["lesions"]) for row in changes["rows"]] == [
            ("same", [1], [1]),
            ("new", [], [new]),
        ]
        assert changes["rows"][0]["change_percent"] == 0
        assert changes["total"]["ml_now"] == pytest.approx(sum(row["ml_now"] for row in changes["rows"]))
        assert abs(changes["rows"][1]["at"][2] - 2) <= 1
        lines = page.get("follow_up.csv").text.splitlines()
        assert [line.split(",")[0] for line in lines] == ["status", "same", "new", "total"]


def test_the_earlier_scan_is_given_on_the_grid_of_now(host, scan, monkeypatch):
    earlier = InteractiveSession(make_model(), scan._replace(subject="before"))
    earlier.click(lps(scan, 2, 20, 20))
    earlier.click(lps(scan, 2, 40, 12))
    motion = np.eye(4)
    motion[:3, :3] = np.diag([-1, 1, 1])  # as a scan whose voxels run the other way
    there = time_point_of(earlier)
    turned = torch.from_numpy(motion) @ there.volume.affine
    other = TimePoint(there.volume._replace(affine=turned), there.labels)
    monkeypatch.setattr("mois.session.follow_up.alignment.register", lambda *_: motion)
    app = Guard(page_app(host, scan, other), TOKEN, frozenset({"127.0.0.1:1"}))
    with TestClient(app, base_url=f"http://127.0.0.1:1/{TOKEN}/", headers=FIRST) as page:
        about = page.get("earlier").json()
        assert (about["subject"], about["registered"]) == ("before", True)
        assert [row["id"] for row in about["lesions"]] == [1, 2]
        assert about["lesions"][0]["ml"] == pytest.approx(earlier.lesions()[0].volume_ml)
        assert page.get("earlier.nii").content == page.get("image.nii").content
        click(page, scan, 2, 20, 20)
        changes = page.get("follow_up").json()
        same, gone = changes["rows"]
        assert same["at"] == same["earlier_at"]
        assert gone["at"] == gone["earlier_at"] == about["lesions"][1]["at"]
        assert changes["actions"] == 1
        assert changes["in_both"] is None


def test_scans_that_cannot_be_registered_are_refused_in_one_line_and_searched_once(host, scan, monkeypatch):
    searched = []

    def refuse(*scans):
        searched.append(scans)
        raise ValueError("the scans look alike nowhere.")

    monkeypatch.setattr("mois.session.follow_up.alignment.register", refuse)
    shifted = scan.affine + torch.eye(4, dtype=torch.float64).roll(3, 1)
    other = TimePoint(scan._replace(affine=shifted), torch.zeros(scan.shape, dtype=torch.int32))
    app = Guard(page_app(host, scan, other), TOKEN, frozenset({"127.0.0.1:1"}))
    with TestClient(app, base_url=f"http://127.0.0.1:1/{TOKEN}/", headers=FIRST) as page:
        for path in ("earlier", "earlier.nii", "follow_up", "follow_up.csv"):
            answer = page.get(path)
            assert (answer.status_code, answer.json()["error"]) == (400, "the scans look alike nowhere.")
        assert click(page, scan, 2, 20, 20).status_code == 200
    assert len(searched) == 1


def test_without_an_earlier_scan_there_is_nothing_to_compare(page):
    assert page.get("scan").json()["earlier"] == ""
    answer = page.get("follow_up")
    assert answer.status_code == 404
    assert "--earlier" in answer.json()["error"]


def test_refusals_name_keys_of_the_page_and_no_arguments_of_python(page, scan):
    click(page, scan, 2, 20, 20)
    choose = "choose lesion 1 in the list and press C to correct it, or take the place out of it first (hold Shift)."
    assert click(page, scan, 2, 20, 20).json()["error"] == f"this place lies in lesion 1; {choose}"
    at = {"points": [voxel(scan, 2, 20, 20)]}
    assert page.post("preview/click", json=at).json()["why"] == f"this place lies in lesion 1; {choose}"
    line = {"points": [voxel(scan, 2, 20, 20), voxel(scan, 2, 20, 22)]}
    assert page.post("draw/scribble", json=line).json()["error"] == f"the scribble crosses lesion 1; {choose}"
    outside = click(page, scan, 2, 5, 5, positive=False).json()["error"]
    assert outside == "a negative click outside every lesion; choose a lesion in the list and press C first."
    page.post("lesion/lock", json={"lesion": 1})
    locked = click(page, scan, 2, 18, 18, lesion=1).json()["error"]
    assert locked == "lesion 1 is locked; choose it and press L to unlock it."
    gone = page.post("lesion/accept", json={"lesion": 7}).json()["error"]
    assert gone == "lesion 7 does not exist; there is 1."
