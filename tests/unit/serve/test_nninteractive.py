"""The official client of nnInteractive drives sessions: voxels as in Python, undo, leases, drawings, limits."""

import contextlib
import random
import re
import struct

import httpx
import nibabel
import nrrd
import numpy as np
import pytest

from mois.serve.host import Host
from mois.serve.nninteractive.client import Client
from mois.serve.nninteractive.leases import Leases
from mois.serve.nninteractive.wire import pack, unpack
from mois.serve.refusals import Refusal
from mois.session import InteractiveSession
from tests.support.nninteractive_story import TOKEN, further_paths, play_client, play_python, scan, served, told
from tests.support.paths import ROOT
from tests.support.session_fakes import make_model, three_lesions

remote = pytest.importorskip("nnInteractive.inference.remote")
IMAGE = three_lesions().image.numpy()
SPACING = [1.5, 1.5, 5.0]
# voxels (column, row, slice) of the array: two in A1, two in A2, one in B1; outside A1's middle
PLACES = [(20, 20, 2), (18, 18, 1), (30, 44, 4), (32, 46, 4), (12, 40, 2)]
OUTSIDE = (22, 22, 2)


@pytest.fixture
def url(tmp_path):
    with served(tmp_path / "studies", make_model()) as url:
        yield url


def connect(url, image=IMAGE, spacing=SPACING):
    client = remote.nnInteractiveRemoteInferenceSession(url, api_key=TOKEN)
    client.set_image(image[None], {"spacing": spacing})
    client.set_target_buffer(np.zeros(image.shape, dtype=np.uint8))
    return client


def labels_of(content, tmp_path):
    file = tmp_path / ("result.seg.nrrd" if content.startswith(b"NRRD") else "result.nii.gz")
    file.write_bytes(content)
    if file.suffix == ".nrrd":
        return nrrd.read(str(file))[0]
    return np.asarray(nibabel.load(file).dataobj)


def test_story_gives_the_label_map_of_python(url, tmp_path):
    session = InteractiveSession(make_model(), scan(IMAGE, SPACING))
    play_python(session, PLACES, OUTSIDE)
    with connect(url) as client:
        content = play_client(client, PLACES, OUTSIDE)
    assert np.array_equal(labels_of(content, tmp_path), session.label_map().numpy())
    assert len(np.unique(session.label_map())) > 3


def test_buffer_shows_the_current_lesion_through_clicks_undo_and_reset(url):
    session = InteractiveSession(make_model(), scan(IMAGE, SPACING))
    with connect(url) as client:

        def shows(lesion):
            return np.array_equal(client.target_buffer, (session.label_map() == lesion).numpy())

        client.add_point_interaction(PLACES[0], include_interaction=True)
        first = session.click([1.5 * PLACES[0][0], 1.5 * PLACES[0][1], 5.0 * PLACES[0][2]])
        assert client.target_buffer.any()
        assert shows(first)
        client.add_point_interaction(OUTSIDE, include_interaction=False)
        session.click([1.5 * OUTSIDE[0], 1.5 * OUTSIDE[1], 5.0 * OUTSIDE[2]], first, positive=False)
        assert shows(first)
        client.reset_interactions()
        assert not client.target_buffer.any()
        client.add_point_interaction(PLACES[4], include_interaction=True)
        second = session.click([1.5 * PLACES[4][0], 1.5 * PLACES[4][1], 5.0 * PLACES[4][2]])
        assert shows(second)
        assert client.undo()
        session.undo()
        assert not client.target_buffer.any()
        assert client.undo()  # of the object before the reset
        session.undo()
        assert shows(first)
        assert client.undo()
        assert not client.target_buffer.any()
        assert not client.undo()


def test_lease_that_ended_is_said_and_the_same_image_finds_its_lesions(url):
    client = connect(url)
    client.add_point_interaction(PLACES[0], include_interaction=True)
    token, http = client._lease_token, further_paths(client)
    http.post("/release")
    with pytest.raises(remote.SessionExpiredError, match="its lesions are kept"):
        client.add_point_interaction(PLACES[2], include_interaction=True)
    with connect(url) as again:
        assert again._lease_token != token
        rows = told(further_paths(again).get("/lesions"))["lesions"]
        assert [row["id"] for row in rows] == [1]
        assert again.undo()


def test_idle_and_silent_leases_end(monkeypatch):
    now, ended = [100.0], []
    monkeypatch.setattr("mois.serve.nninteractive.leases.time.monotonic", lambda: now[0])
    leases = Leases(2, idle_s=60.0, silent_s=10.0, ended=ended.append)
    idle, silent = leases.claim(lambda number: number), leases.claim(lambda number: number)
    with pytest.raises(Refusal, match="2 clients are at work"):
        leases.claim(lambda number: number)
    for seconds in range(9, 55, 9):  # one shows that it is alive, and the other says nothing
        now[0] = 100.0 + seconds
        assert leases.of(idle.token, acts=False) is idle
    assert ended == [2]
    with pytest.raises(Refusal, match="has ended"):
        leases.of(silent.token, acts=True)
    assert leases.left_s(idle) == 60.0 - 54.0
    now[0] = 161.0
    with pytest.raises(Refusal, match="has ended"):
        leases.of(idle.token, acts=True)
    assert ended == [2, 1]


def test_second_client_is_told_who_writes_and_a_full_server_says_so(tmp_path):
    with (
        served(tmp_path / "studies", make_model(), most_clients=2) as url,
        connect(url) as first,
        connect(url) as second,
    ):
        first.add_point_interaction(PLACES[0], include_interaction=True)
        with pytest.raises(httpx.HTTPStatusError) as refused:
            second.add_point_interaction(PLACES[2], include_interaction=True)
        assert refused.value.response.status_code == 409
        assert refused.value.response.json()["detail"].startswith("client 1 writes to this scan")
        assert len(told(further_paths(second).get("/lesions"))["lesions"]) == 1
        with pytest.raises(remote.ServerAtCapacityError):
            connect(url)


def test_boxes_scribbles_lassos_and_masks_land_on_the_lesion(url):
    box = [[15, 26], [15, 26], [2, 3]]
    drawn = np.zeros(IMAGE.shape, dtype=np.uint8)
    drawn[18:23, 20, 2] = 1
    outline = np.zeros(IMAGE.shape, dtype=np.uint8)
    outline[15:26, 15, 2] = outline[15:26, 25, 2] = outline[15, 15:26, 2] = outline[25, 15:26, 2] = 1
    mask = np.zeros(IMAGE.shape, dtype=np.uint8)
    mask[16:24, 16:24, 1:4] = 1
    prompts = {
        "box": lambda client: client.add_bbox_interaction(box, include_interaction=True),
        "scribble": lambda client: client.add_scribble_interaction(drawn, include_interaction=True),
        "part of a scribble": lambda client: client.add_scribble_interaction(
            drawn[16:24, 18:22, 2:3], include_interaction=True, interaction_bbox=[[16, 24], [18, 22], [2, 3]]
        ),
        "lasso": lambda client: client.add_lasso_interaction(outline, include_interaction=True),
        "mask": lambda client: client.add_initial_seg_interaction(mask),
    }
    with connect(url) as client:
        for name, prompt in prompts.items():
            prompt(client)
            inside = client.target_buffer[16:24, 16:24, 2].mean()
            outside = client.target_buffer.sum() - client.target_buffer[14:26, 14:26].sum()
            assert (inside > 0.8, outside) == (True, 0), name
            assert client.undo(), name
            assert not client.target_buffer.any(), name


def test_flipped_image_gives_the_flipped_lesion(tmp_path):
    flipped = np.ascontiguousarray(IMAGE[::-1, :, ::-1])
    x, y, z = PLACES[0]
    with served(tmp_path / "studies", make_model()) as url:
        with connect(url) as client:
            client.add_point_interaction(PLACES[0], include_interaction=True)
            plain = client.target_buffer.copy()
        with connect(url, flipped) as client:
            voxel = (IMAGE.shape[0] - 1 - x, y, IMAGE.shape[2] - 1 - z)
            client.add_point_interaction(voxel, include_interaction=True)
            overlap = (client.target_buffer[::-1, :, ::-1] * plain).sum()
            assert 2 * overlap / (client.target_buffer.sum() + plain.sum()) > 0.9


def test_prompts_wait_for_predict(url):
    with connect(url) as client:
        client.add_point_interaction(PLACES[0], include_interaction=True, run_prediction=False)
        client.add_point_interaction(OUTSIDE, include_interaction=False, run_prediction=False)
        assert not client.target_buffer.any()
        client._predict()
        assert client.target_buffer[PLACES[0]]
        assert not client.target_buffer[OUTSIDE]


def test_suggestion_selection_and_placed_result(url, tmp_path):
    with connect(url) as client:
        http = further_paths(client)
        client.add_point_interaction(PLACES[0], include_interaction=True)
        told(http.post("/propagate"))
        suggested = told(http.post("/suggest", json={"count": 2}))["suggestions"]
        assert all(len(each["coordinates"]) == 3 for each in suggested)
        assert http.post("/select", json={"lesion": 99}).status_code == 400
        affine = [[-2.0, 0, 0, 7], [0, -2.0, 0, 8], [0, 0, 2.0, 9], [0, 0, 0, 1]]
        (tmp_path / "placed.nii.gz").write_bytes(http.post("/result", json={"affine": affine}).content)
        assert np.allclose(nibabel.load(tmp_path / "placed.nii.gz").affine, affine)
        assert http.post("/result", json={"affine": [[0] * 4] * 4}).status_code == 400
        assert told(http.get("/progress")) == {"share": 1.0}


def test_page_of_the_docs_works_word_by_word(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "viewers" / "nninteractive.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {"address": url, "key": TOKEN, "image": IMAGE}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 3
    assert names["client"].target_buffer[20, 20, 2]
    assert nrrd.read("lesions.seg.nrrd")[0].max() >= 1
    assert "mois serve nninteractive\n" in page
    names["client"].close()


def test_wrong_requests_are_answered_in_one_line(url):
    with connect(url) as client:
        http = further_paths(client)
        for path, body in {
            "/add_point_interaction": {"coordinates": [1, 2], "include_interaction": True},
            "/add_bbox_interaction": {"bbox_coords": [[0, 5], [0, 5], [0, 99]], "include_interaction": True},
            "/set_target_buffer": {"shape": [1, 2, 3]},
            "/reject": {"lesion": 3},
            "/accept": {},
        }.items():
            answer = http.post(path, json=body)
            assert answer.status_code == 400, path
            assert "\n" not in answer.json()["error"]
        assert http.post("/add_point_interaction", json={"coordinates": "x"}).status_code == 422
        for spacing in ([1, 1], [0, 1, 1], "x", [1, 1, 1e9]):
            with pytest.raises(httpx.HTTPStatusError):
                client.set_image(IMAGE[None], {"spacing": spacing})
        with pytest.raises(httpx.HTTPStatusError):
            client.set_image(np.stack([IMAGE, IMAGE]), {"spacing": SPACING})
        with pytest.raises(httpx.HTTPStatusError):
            client.set_image(np.full_like(IMAGE, np.nan)[None], {"spacing": SPACING})


def header(shape, name=b"uint8", chunks=((8, b"12345678"),)):
    start = struct.pack("<4sBBBB", b"NNIA", 1, 1, len(shape), len(name)) + name + struct.pack(f"<{len(shape)}q", *shape)
    packed = b"".join(struct.pack("<QQ", length, len(part)) + part for length, part in chunks)
    return start + struct.pack("<I", len(chunks)) + packed


def test_size_is_refused_before_anything_is_decompressed():
    with pytest.raises(Refusal) as refused:
        unpack(header((30000, 30000, 30000)), 3)
    assert refused.value.status == 413
    with pytest.raises(Refusal) as refused:
        unpack(header((2**31, 2**31, 2**31)), 3)
    assert refused.value.status == 413


def test_bomb_is_refused():
    bomb = pack(np.zeros(10_000_000, dtype=np.uint8))
    assert len(bomb) < 100_000
    frame = bomb[bomb.index(struct.pack("<Q", 10_000_000), 20) + 16 :]
    for shape, length in (((100,), 100), ((100,), 10_000_000), ((10_000_000,), 100)):
        with pytest.raises(Refusal, match="damaged"):
            unpack(header(shape, chunks=((length, frame),)), 1)


DAMAGED = [b"", b"NNIA", b"x" * 40, header((2, 2, 2), b"object"), header((2, 2)), header((0, 2, 2))]


@pytest.mark.parametrize("body", [*DAMAGED, header((2, 2, 2), chunks=())])
def test_damaged_array_is_refused(body):
    with pytest.raises(Refusal):
        unpack(body, 3)


def test_array_with_damaged_bytes_is_read_or_refused():
    chance = random.Random(0)
    whole = [pack(np.arange(3600, dtype=np.int16).reshape(3, 30, 40)), pack(np.zeros((3, 30, 40), dtype=np.uint8))]
    for _ in range(500):
        body = bytearray(chance.choice(whole))
        for _ in range(chance.choice((1, 2, 8, 40))):
            body[chance.randrange(len(body))] = chance.randrange(256)
        with contextlib.suppress(Refusal):
            assert unpack(bytes(body), 3).ndim == 3


def test_array_survives_the_way_there_and_back():
    for dtype in ("uint8", "int16", "float32", "bool"):
        array = (np.arange(60).reshape(3, 4, 5) % 7).astype(dtype)
        assert np.array_equal(unpack(pack(array), 3), array)
    from nnInteractive.inference.remote.serialization import pack_array, unpack_array

    array = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    assert np.array_equal(unpack(pack_array(array), 3), array)
    assert np.array_equal(unpack_array(pack(array)), array)


def test_image_that_claims_too_much_is_refused_by_the_server(url):
    with connect(url) as client:
        http = further_paths(client)
        answer = http.post("/set_image", content=header((1, 30000, 30000, 30000)), headers={"X-Meta": "{}"})
        assert answer.status_code == 413
        assert told(http.get("/lesions"))["lesions"] == []


def test_client_works_with_a_secret_address_instead_of_a_key(url):
    with remote.nnInteractiveRemoteInferenceSession(f"{url}/{TOKEN}") as client:
        assert client.ping()
    with pytest.raises(httpx.HTTPStatusError):
        remote.nnInteractiveRemoteInferenceSession(url)


def test_a_refused_prompt_of_several_is_named_and_the_others_are_done(tmp_path):
    host = Host(tmp_path / "studies", make_model())
    client = Client(host, "client 1")
    client.set_image(IMAGE[None], {"spacing": SPACING})
    client.point(PLACES[0], True, run=False)
    client.point((0, 0, 99), True, run=False)
    client.point(PLACES[1], True, run=False)
    with pytest.raises(ValueError, match=r"^prompt 2 of 3, click: .*outside the scan"):
        client.predict()
    assert client.actions == 1
    client.predict()
    assert client.actions == 2  # the third went on waiting
    host.close()


def test_a_line_of_which_a_click_is_refused_leaves_nothing(tmp_path, monkeypatch):
    host = Host(tmp_path / "studies", make_model())
    client = Client(host, "client 1")
    client.set_image(IMAGE[None], {"spacing": SPACING})
    client.point(PLACES[4], True, run=True)
    client.reset()
    before = client.seat.look(lambda session: session.label_map())
    done = []

    def click(session, *given):
        done.append(given)
        if len(done) == 3:
            raise ValueError("the third click is refused.")
        return real(session, *given)

    real = InteractiveSession.click
    monkeypatch.setattr(InteractiveSession, "click", click)
    line = np.zeros(IMAGE.shape, dtype=np.uint8)
    line[20, 20, 1:4] = 1  # across three slices: three clicks
    with pytest.raises(ValueError, match="the third click is refused"):
        client.scribble(line, None, True, run=True)
    assert np.array_equal(client.seat.look(lambda session: session.label_map()), before)
    client.undo()  # takes back the first point, and nothing else
    assert not client.seat.look(lambda session: session.label_map()).any()
    host.close()
